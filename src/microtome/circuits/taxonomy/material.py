"""What was read of one model, or of one twin, for the detectors; each thing is read once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from microtome.circuits.taxonomy.inputs import Inputs
from microtome.errors import ModelSupportError, SiteAbsentError
from microtome.tracing.catalog import block_reason, require_anatomy

if TYPE_CHECKING:
    from microtome.models.anatomy import Anatomy
    from microtome.tracing.model import Model

T = TypeVar("T")

TOKENS = 256
"""Tokens that weights are tried on."""

OUTPUTS = 2048
"""Output tokens among which ranks are taken, where the vocabulary is larger."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Attention patterns and what heads mixed, on some rows.

    Attributes:
        tokens: ``[row, pos]``.
        patterns: By layer ``[row, head, query, key]``.
        z: By layer ``[row, pos, head, d_head]``.
        predicted: The likeliest next token at each position ``[row, pos]``.
        left_out: Layers without patterns, and why.
    """

    tokens: torch.Tensor
    patterns: dict[int, torch.Tensor]
    z: dict[int, torch.Tensor]
    predicted: torch.Tensor
    left_out: tuple[str, ...]

    def visible(self, layer: int) -> torch.Tensor:
        """Return which keys a query can see ``[query, key]``: causal mask and window included."""
        return (self.patterns[layer] > 0).any(0).any(0)


class Material:
    """One model and what was read of it.

    Args:
        model: A transformer, or its twin while that is open.
        inputs: What it is shown.
    """

    def __init__(self, model: Model, inputs: Inputs) -> None:
        self.model = model
        self.inputs = inputs
        self._made: dict[Callable[[Material], Any], Any] = {}

    def once(self, make: Callable[[Material], T]) -> T:
        """Return what a function makes of this material; it is called once."""
        if make not in self._made:
            self._made[make] = make(self)
        made: T = self._made[make]
        return made

    @property
    def anatomy(self) -> Anatomy:
        """The model's anatomy."""
        return require_anatomy(self.model.anatomy, "Naming parts")

    @functools.cached_property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """Layer and number of every head."""
        return tuple(
            (layer, head)
            for layer, block in enumerate(self.anatomy.blocks)
            if block.attention is not None
            for head in range(block.attention.n_heads)
        )

    @functools.cached_property
    def repeats(self) -> Reading:
        """The reading of periodic random tokens."""
        return self._read(self.inputs.repeats)

    @functools.cached_property
    def text_repeats(self) -> Reading:
        """The reading of periodic windows of the corpus.

        Raises:
            ModelSupportError: If there is no corpus.
        """
        if self.inputs.text_repeats is None:
            raise ModelSupportError(self.inputs.missing.get("corpus", "no corpus was given"))
        return self._read(self.inputs.text_repeats)

    @functools.cached_property
    def noised(self) -> Reading:
        """The reading of noised periods."""
        return self._read(self.inputs.noised)

    @functools.cached_property
    def needles(self) -> Reading:
        """The reading of needles."""
        return self._read(self.inputs.needles)

    @functools.cached_property
    def corpus(self) -> Reading:
        """The reading of some windows of the corpus."""
        return self._read(self.corpus_tokens[:24])

    @property
    def corpus_tokens(self) -> torch.Tensor:
        """Windows of the corpus ``[row, pos]``.

        Raises:
            ModelSupportError: If there is none.
        """
        if self.inputs.corpus is None:
            raise ModelSupportError(self.inputs.missing.get("corpus", "no corpus was given"))
        return self.inputs.corpus

    def _read(self, tokens: torch.Tensor) -> Reading:
        blocks = self.anatomy.blocks
        reasons = {n: block_reason(b, "attn.pattern") for n, b in enumerate(blocks)}
        seen = [n for n, why in reasons.items() if not why]
        left_out = tuple(f"block {n}: {why}" for n, why in reasons.items() if why)
        if not seen:
            raise ModelSupportError(f"No block shows its attention pattern; {left_out[0]}.")
        mixed = [n for n in seen if not block_reason(blocks[n], "attn.z")]
        sites = [f"blocks.{n}.attn.pattern" for n in seen]
        sites += [f"blocks.{n}.attn.z" for n in mixed]
        trace = self.model.trace(tokens, capture=sites, to="cpu", dtype=torch.float32)
        predicted = trace.logits.argmax(-1).cpu() if trace.logits is not None else tokens
        return Reading(
            tokens,
            {n: trace[f"blocks.{n}.attn.pattern"].detach() for n in seen},
            {n: trace[f"blocks.{n}.attn.z"].detach() for n in mixed},
            predicted,
            left_out,
        )

    @functools.cached_property
    def unembedding(self) -> torch.Tensor:
        """Unembedding, final norm folded in, columns less their mean ``[d_model, vocab]``.

        Raises:
            SiteAbsentError: If the model has none.
        """
        weight = self.model.weights.view(fold_norm=True).W_U.detach().float().cpu()
        return weight - weight.mean(1, keepdim=True)

    @functools.cached_property
    def tokens(self) -> torch.Tensor:
        """Ordinary tokens that weights are tried on ``[token]``."""
        from microtome.core.seeds import rng

        known = self.inputs.candidates
        if len(known) <= TOKENS:
            return known
        chosen = rng(self.inputs.seed, "taxonomy", "tokens").choice(len(known), TOKENS, False)
        return known[torch.from_numpy(chosen)]

    @functools.cached_property
    def outputs(self) -> torch.Tensor:
        """Output tokens among which ranks are taken, ``tokens`` first ``[token]``."""
        from microtome.core.seeds import rng

        tried = set(self.tokens.tolist())
        rest = [i for i in self.inputs.candidates.tolist() if i not in tried]
        free = max(0, OUTPUTS - len(tried))
        if len(rest) > free:
            rest = rng(self.inputs.seed, "taxonomy", "outputs").choice(rest, free, False).tolist()
        return torch.cat([self.tokens, torch.tensor(rest, dtype=torch.long)])

    def embedded(self, tokens: Sequence[int] | torch.Tensor, layer: int) -> torch.Tensor:
        """Return what a head's values read of tokens alone ``[token, d_model]``.

        The embedding, behind the first block with the first MLP's output for it added where that
        is defined, through the norm of the head's block.
        """
        ids = torch.as_tensor(tokens)
        stream = self._stream(ids) if layer > 0 else self._embedding(ids)
        norm = self.anatomy.blocks[layer].norms.get("attn.norm")
        with torch.no_grad():
            if norm is not None:
                stream = self.model.module.get_submodule(norm)(stream)
        return stream.float().cpu()

    def _embedding(self, ids: torch.Tensor) -> torch.Tensor:
        path = self.anatomy.embed_token
        if path is None:
            raise SiteAbsentError("The token embedding was not found.")
        with torch.no_grad():
            found: torch.Tensor = self.model.module.get_submodule(path)(ids.to(self.model.device))
        return found

    def _stream(self, ids: torch.Tensor) -> torch.Tensor:
        stream = self._embedding(ids)
        block = self.anatomy.blocks[0]
        norm = block.norms.get("mlp.norm") or block.norms.get("attn.norm")
        plain = block.mlp is not None and block.mlp.path is not None and block.mlp.router is None
        if not plain or norm is None or block.placement not in ("sequential", "parallel"):
            return stream
        module = self.model.module
        if block.mlp is None or block.mlp.path is None:
            return stream
        with torch.no_grad():
            added = module.get_submodule(block.mlp.path)(module.get_submodule(norm)(stream))
        summed: torch.Tensor = stream + added * block.mlp.scale
        return summed

    def value_map(self, layer: int, head: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a head's value matrix and its output matrix times the unembedding.

        Returns:
            ``[d_model, d_head]`` and ``[d_head, vocab]``.

        Raises:
            SiteAbsentError: If its columns were not found.
            ModelSupportError: If what heads write is normed before it is added.
        """
        attention = self.anatomy.blocks[layer].attention
        if attention is None or not attention.heads_add_up:
            raise ModelSupportError(
                f"block {layer}: the heads' writes are normed or gated before they are added"
            )
        weights = self.model.weights
        value = weights.W_V(layer, head).detach().float().cpu()
        out = weights.W_O(layer, head).detach().float().cpu()
        return value, out @ self.unembedding

    def weight_heads(self) -> tuple[list[tuple[int, int]], tuple[str, ...]]:
        """Return the heads whose values and outputs can be read, and why others cannot."""
        found, left_out = [], {}
        for layer, head in self.heads:
            attention = self.anatomy.blocks[layer].attention
            if attention is None:
                continue
            if not attention.heads_add_up:
                left_out[layer] = "the heads' writes are normed or gated before they are added"
            elif attention.out_proj is None or "v" not in attention.projections:
                left_out[layer] = "the columns of its value or output projection were not found"
            else:
                found.append((layer, head))
        reasons = tuple(f"block {n}: {why}" for n, why in left_out.items())
        if not found:
            raise ModelSupportError(reasons[0] if reasons else "The model has no attention.")
        return found, reasons


def head_name(layer: int, head: int) -> str:
    """Return a head's name, ``a0.h1``."""
    return f"a{layer}.h{head}"
