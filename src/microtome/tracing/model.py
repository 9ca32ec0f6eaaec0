"""The Model: the user's module, its tokenizer and its anatomy, opened for reading and changing."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from microtome.models.anatomy import Anatomy
from microtome.models.fingerprint import fingerprint
from microtome.models.readout import Readout
from microtome.tracing import prompts as batches
from microtome.tracing.attaching import Attaching
from microtome.tracing.catalog import Catalog, SiteInfo
from microtome.tracing.instrument import Instrument, listed
from microtome.tracing.interventions import Intervention
from microtome.tracing.passes import one_pass, require_eval
from microtome.tracing.prompts import Batch, Prompts
from microtome.tracing.sites import Site
from microtome.tracing.trace import Trace

if TYPE_CHECKING:
    from microtome.tracing.generation import Generation
    from microtome.tracing.gradients import Gradients
    from microtome.tracing.replay import BaseRun
    from microtome.tracing.verification import Verification
    from microtome.tracing.weights import Weights

Capture = str | Site | Sequence[str | Site]
Logits = Literal["all", "last"] | None


class Model(Attaching):
    """A network under study: the user's own module, its tokenizer and its anatomy.

    The module is not copied or changed; hooks are put on for a call and taken off after it. It has
    to be in evaluation mode.

    Attributes:
        module: The user's module.
        tokenizer: Its tokenizer, or None.
        anatomy: Where its parts are, or None where it is not a transformer.
        name: Folder, hub id or class it was opened from.
        bos: Whether texts get a beginning-of-sequence token.
        readout: Where its answer is read, and what its logits stand for.
        codecs: Codecs attached by :meth:`attach`.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        tokenizer: Any = None,
        anatomy: Anatomy | None = None,
        name: str = "",
        bos: bool = False,
        readout: Readout | None = None,
    ) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.anatomy = anatomy
        self.name = name or type(module).__name__
        self.bos = bos
        self.readout = readout or Readout()
        self.catalog = Catalog(anatomy, module)

    @property
    def device(self) -> torch.device:
        """Device of the first parameter, where inputs go."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first floating-point parameter."""
        found = (p.dtype for p in self.module.parameters() if p.is_floating_point())
        return next(found, torch.float32)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the names, shapes and values of the weights."""
        return fingerprint(self.module)

    def sites(self) -> tuple[SiteInfo, ...]:
        """Return every site with whether it can be read and written, or why not."""
        return self.catalog.sites()

    def tokenize(self, text: str, *, bos: bool | None = None) -> tuple[int, ...]:
        """Return the token ids of a text under the model's BOS rule.

        Raises:
            TokenizerError: If the model has no tokenizer.
        """
        return batches.tokenize(self.tokenizer, text, bos=self.bos if bos is None else bos)

    def decode(self, ids: Sequence[int] | torch.Tensor) -> str:
        """Return the text of token ids."""
        batches.require_tokenizer(self.tokenizer)
        return str(self.tokenizer.decode([int(i) for i in ids]))

    def tokens(self, ids: Sequence[int] | torch.Tensor) -> list[str]:
        """Return one text for each token, for display."""
        if self.tokenizer is None:
            return [str(int(i)) for i in ids]
        return batches.token_texts(self.tokenizer, [int(i) for i in ids])

    def batch(self, prompts: Prompts, *, left: bool = False) -> Batch:
        """Return prompts as one padded batch of token ids on the model's device.

        Raises:
            PromptError: If a prompt is empty, too long or malformed.
        """
        return batches.batch_of(
            prompts,
            tokenizer=self.tokenizer,
            bos=self.bos,
            vocab=_vocab(self.module, self.anatomy),
            context=None if self.anatomy is None else self.anatomy.context,
            device=self.device,
            left=left,
        )

    def trace(
        self,
        prompts: Prompts,
        *,
        capture: Capture = (),
        interventions: Iterable[Intervention] = (),
        logits: Logits = "all",
        to: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        grad: bool = False,
    ) -> Trace:
        """Run the model once and keep what was asked.

        Args:
            prompts: Texts, token ids or a tensor ``[batch, pos]``; for other modules their input
                tensor. Prompts of different length are padded on the right.
            capture: Sites to keep; ``"resid_post"`` means that of every block.
            interventions: Changes, in order; captures see the values after them.
            logits: ``"all"``, ``"last"`` (where the answer is read: the last of each row, or
                the first in models that say so) or None.
            to: Device for captured values; theirs by default.
            dtype: Type for captured values; theirs by default.
            grad: Keep the graph, so that captured values can be differentiated.

        Returns:
            The trace.

        Raises:
            PromptError: If a prompt is empty, too long or malformed.
            SiteError: If a site does not exist or cannot be read or written.

        Example:
            >>> import microtome as mt
            >>> from microtome.models.families import build
            >>> model = mt.load(build("gpt2"))
            >>> trace = model.trace([[1, 2, 3]], capture="blocks.0.attn.z[head=1]")
            >>> trace["blocks.0.attn.z[head=1]"].shape[:3]
            torch.Size([1, 3, 1])
        """
        return one_pass(
            self,
            prompts,
            capture=capture,
            interventions=listed(interventions),
            logits=logits,
            to=to,
            dtype=dtype,
            grad=grad,
        )

    @contextlib.contextmanager
    def under(self, interventions: Iterable[Intervention]) -> Iterator[None]:
        """Apply interventions to every call of the module inside the scope.

        Any code that calls the module sees them, ``generate`` included. Positions are absolute,
        also with a cache.

        Args:
            interventions: Changes, in order.
        """
        from microtome.tracing.scope import scoped

        require_eval(self.module, self.name)
        instrument = Instrument(self.module, self.catalog, interventions=interventions)
        with scoped(self.module, instrument):
            yield

    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int = 20,
        interventions: Iterable[Intervention] = (),
        steps: Literal["all", "prompt", "new"] | range = "all",
        use_cache: bool = True,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Generation:
        """Continue prompts token by token, under interventions.

        Args:
            prompts: Texts or token ids.
            max_new_tokens: How many tokens to add at most.
            interventions: Changes, in order.
            steps: Where they act: everywhere, on the prompt's positions, on the new ones, or on the
                positions read in chosen steps (step 0 reads the prompt).
            use_cache: Keep keys and values; the text is the same without.
            temperature: 0 for greedy, else sampling.
            seed: For sampling.

        Returns:
            Token ids and texts of the new tokens.
        """
        from microtome.tracing.generation import generate

        return generate(
            self,
            prompts,
            max_new_tokens=max_new_tokens,
            interventions=tuple(listed(interventions)),
            steps=steps,
            use_cache=use_cache,
            temperature=temperature,
            seed=seed,
        )

    def gradients(
        self,
        metric: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        sites: Capture,
        prompts: Prompts,
        *,
        interventions: Iterable[Intervention] = (),
        logits: Literal["all", "last"] = "all",
    ) -> Gradients:
        """Return the gradient of a metric at sites; no weight gradients are made.

        Args:
            metric: ``(logits [batch, pos, vocab], lengths [batch]) -> [batch]``; it is summed.
            sites: Where.
            prompts: Texts or token ids.
            interventions: Changes, in order.
            logits: What the metric gets: logits at all positions, or at the last of each row.
        """
        from microtome.tracing.gradients import gradients

        return gradients(self, metric, sites, prompts, interventions=interventions, logits=logits)

    def verify(self) -> Verification:
        """Check every site and identity numerically; ``print`` it or use ``to_frame()``.

        Raises:
            ModelSupportError: If the model is not a transformer.
        """
        from microtome.tracing.verification import verify

        return verify(self)

    @functools.cached_property
    def weights(self) -> Weights:
        """Views of the weights by head and neuron, for analysis."""
        from microtome.tracing.weights import Weights

        return Weights(self.module, self.anatomy)

    def twin(self, seed: int) -> contextlib.AbstractContextManager[Model]:
        """Permute every weight tensor in place by a seed; the weights come back exactly on leaving.

        The twin has the same statistics and no mechanism.
        """
        from microtome.tracing.twin import twin

        return twin(self, seed)

    def record(
        self,
        prompts: Prompts,
        *,
        keys: bool = False,
        capture: Capture = (),
        logits: Literal["all", "last"] = "all",
    ) -> BaseRun:
        """Run the model once and keep what a restart at any block needs.

        Args:
            prompts: Texts or token ids.
            keys: Also keep keys and values, for replays of the last positions.
            capture: Sites whose values are kept, too.
            logits: At all positions, or at the last of each row where the model can.
        """
        from microtome.tracing.replay import record

        return record(self, prompts, keys=keys, capture=capture, logits=logits)

    def replay(
        self,
        base: BaseRun,
        start: int,
        stream: torch.Tensor,
        *,
        rows: torch.Tensor,
        interventions: Iterable[Intervention] = (),
    ) -> torch.Tensor:
        """Run the model's own blocks from block ``start`` on; see :mod:`microtome.tracing.replay`.

        Returns:
            The residual stream after the last block ``[n, pos, d_model]``.
        """
        from microtome.tracing.replay import replay

        return replay(self, base, start, stream, rows=rows, interventions=interventions)

    def tail(self, stream: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the logits ``[n, k, vocab]`` at positions ``[n, k]`` of a last residual stream.

        Raises:
            ModelSupportError: If the logits cannot be computed from it alone in this model.
        """
        from microtome.tracing.replay import tail

        return tail(self, stream, positions)

    def __repr__(self) -> str:
        if self.anatomy is None:
            return f"Model({self.name!r}, {type(self.module).__name__}, module sites only)"
        a = self.anatomy
        names = ", ".join(dict.fromkeys(one.name for one in self.codecs))
        size = f"{a.n_layers} blocks, {a.n_heads} heads, d_model {a.d_model}"
        return f"Model({self.name!r}, {size}{names and f', with {names}'})"


def _vocab(module: nn.Module, anatomy: Anatomy | None) -> int | None:
    """Return the number of token ids that the embedding knows."""
    if anatomy is None or anatomy.embed_token is None:
        return None
    table = module.get_submodule(anatomy.embed_token)
    return int(table.num_embeddings) if isinstance(table, nn.Embedding) else None
