"""A model made linear for one prompt: attention patterns and norm divisors held, MLPs replaced.

Ameisen et al. (2025, "Circuit Tracing"): with transcoders in the place of the MLPs, and what
attention looks at and what norms divide by held at their values, all that is left between latents
is linear. What is added to the stream (the embedding, and in each block what stands for the MLP) is
an argument; what the transcoders and the unembedding read is the result. The skip connection of a
transcoder is linear too and stays part of the model. A transcoder may write the MLPs of its own and
of later blocks (cross-layer): what stands for an MLP is the sum of what all that write it give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from microtome.circuits.search.held import HeldNorm
from microtome.errors import ConfigError, ModelSupportError
from microtome.tracing.attachments import Attachment, named
from microtome.tracing.catalog import require_anatomy
from microtome.tracing.gradients import frozen
from microtome.tracing.sites import Site, at
from microtome.tracing.turns import turn

if TYPE_CHECKING:
    from microtome.models.anatomy import Anatomy
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model
    from microtome.tracing.trace import Trace

START = "blocks.0.resid_pre"
"""Where the embedding enters the stream."""


@dataclass(frozen=True, eq=False)
class Read:
    """What is read in one pass of the frozen model.

    Attributes:
        inputs: What the transcoder of each block reads ``[row, pos, d_in]``, by block.
        final: What the unembedding reads ``[row, pos, d_model]``.
    """

    inputs: Mapping[int, torch.Tensor]
    final: torch.Tensor


@dataclass(frozen=True, eq=False)
class FrozenModel:
    """A model frozen on one prompt, as a linear function of what is added to its stream.

    Attributes:
        model: The model.
        anatomy: Where its parts are.
        transcoders: The transcoder that reads in each block that has one.
        tokens: Token ids of the prompt ``[1, pos]``.
        trace: The recorded pass of the model itself.
    """

    model: Model
    anatomy: Anatomy
    transcoders: Mapping[int, Attachment]
    tokens: torch.Tensor
    trace: Trace

    @staticmethod
    def of(model: Model, prompt: str | list[int] | tuple[int, ...], name: str) -> FrozenModel:
        """Run a prompt and freeze the model on it.

        Args:
            model: A transformer with transcoders attached.
            prompt: A text, or token ids.
            name: The name they are attached under, one in each block, or a cross-layer one; an
                MLP that none writes is all error.

        Raises:
            ConfigError: If nothing has the name, or what has it is no transcoder of an MLP.
            ModelSupportError: If a block has no attention, or the logits are not the unembedding of
                the last stream.
            SiteError: If attention patterns cannot be seen or written.
        """
        anatomy = require_anatomy(model.anatomy, "An attribution graph")
        for number, block in enumerate(anatomy.blocks):
            if block.attention is None:
                raise ModelSupportError(
                    f"Block {number} has no attention; an attribution graph holds attention "
                    "patterns, and what stands in its place is not linear."
                )
        if anatomy.tail.head is None or not anatomy.tail.exact:
            raise ModelSupportError(
                "The logits are not the unembedding of the last stream: "
                f"{anatomy.tail.reason or 'no unembedding was found'}."
            )
        transcoders = _transcoders(model, name)
        tokens = model.batch([prompt] if isinstance(prompt, str) else [list(prompt)]).tokens
        wanted = [START, _final(model), *(str(t.at) for t in transcoders.values())]
        for number, block in enumerate(anatomy.blocks):
            wanted.append(f"blocks.{number}.attn.pattern")
            wanted += [f"blocks.{number}.mlp.out"] if block.mlp is not None else []
        for path in _norms(anatomy):
            wanted += [f"module:{path}:in", f"module:{path}:out"]
        trace = model.trace(tokens, capture=list(dict.fromkeys(wanted)), logits="last")
        return FrozenModel(model, anatomy, transcoders, tokens, trace)

    @property
    def writers(self) -> list[int]:
        """The blocks that have an MLP."""
        return [n for n, block in enumerate(self.anatomy.blocks) if block.mlp is not None]

    @property
    def embedding(self) -> torch.Tensor:
        """What the stream starts with ``[pos, d_model]``."""
        return self.trace.value(START)[0]

    def targets_of(self, block: int) -> dict[int, slice]:
        """Return the blocks whose MLPs the transcoder of a block writes, and by which outputs."""
        one = self.transcoders[block]
        return {_block(site): one.part_of(site) for site in one.writes}

    def written_by(self, block: int) -> dict[int, slice]:
        """Return the blocks whose transcoders write the MLP of a block, and by which outputs."""
        return {
            number: self.targets_of(number)[block]
            for number in self.transcoders
            if block in self.targets_of(number)
        }

    def written(self, block: int) -> torch.Tensor:
        """Return what a block's MLP adds, skips of transcoders left out ``[pos, d_model]``."""
        value = self.trace.value(f"blocks.{block}.mlp.out")
        past = self._past(block, {n: self.recorded(n) for n in self.written_by(block)})
        return value[0] if past is None else (value - past)[0]

    def recorded(self, block: int) -> torch.Tensor:
        """Return what a block's transcoder reads in the model itself ``[1, pos, ...]``."""
        return self.trace.value(str(self.transcoders[block].at))

    @cached_property
    def final(self) -> torch.Tensor:
        """What the unembedding reads in the model itself ``[1, pos, d_model]``."""
        return self.trace.value(_final(self.model))

    def unembed(self, value: torch.Tensor) -> torch.Tensor:
        """Return logits, before a soft cap, for what the unembedding reads ``[..., d_model]``."""
        tail = self.anatomy.tail
        head = self.model.module.get_submodule(tail.head or "")
        with torch.no_grad():
            found: torch.Tensor = head.forward(value) * tail.scale
        return found

    def unembedding(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the directions of some tokens less the mean over all ``[token, d_model]``."""
        matrix = self.model.weights.W_U.detach()
        return (matrix[:, ids] - matrix.mean(1, keepdim=True)).T

    def run(self, embedding: torch.Tensor, added: Mapping[int, torch.Tensor]) -> Read:
        """Run the frozen model; differentiable in its arguments.

        Args:
            embedding: What the stream starts with ``[row, pos, d_model]``.
            added: What each block's MLP gives, skip left out ``[row, pos, d_model]``, by block.
        """
        tokens = self.tokens.expand(len(embedding), -1)
        changes: list[Intervention] = [at(START).apply(_given(embedding))]
        for number in range(self.anatomy.n_layers):
            pattern = self.trace.value(f"blocks.{number}.attn.pattern")
            changes.append(at(f"blocks.{number}.attn.pattern").apply(_given(pattern)))
        for path in _norms(self.anatomy):
            changes += self._held(path)
        kept = {number: _Kept() for number in self.transcoders}
        changes += [self.transcoders[number].at.apply(one) for number, one in kept.items()]
        changes += [self._replaced(block, added[block], kept) for block in self.writers]
        final = _final(self.model)
        capture = [*(str(t.at) for t in self.transcoders.values()), final]
        with turn(self.model.module), frozen(self.model.module), torch.enable_grad():
            trace = self.model.trace(
                tokens,
                capture=list(dict.fromkeys(capture)),
                interventions=changes,
                logits=None,
                grad=True,
            )
        inputs = {n: trace.value(str(t.at)).flatten(2) for n, t in self.transcoders.items()}
        return Read(inputs, trace.value(final))

    def _held(self, path: str) -> list[Intervention]:
        """Return the changes that make a norm the affine map with its recorded divisor."""
        linear, kept = HeldNorm(self.model.module.get_submodule(path)), _Kept()
        stream = self.trace.value(f"module:{path}:in")
        constant = self.trace.value(f"module:{path}:out") - linear.part(stream, stream)

        def held(value: torch.Tensor) -> torch.Tensor:
            return (linear.part(kept.value, stream) + constant).to(value.dtype)

        return [at(f"module:{path}:in").apply(kept), at(f"module:{path}:out").apply(held)]

    def _replaced(self, block: int, added: torch.Tensor, kept: Mapping[int, _Kept]) -> Intervention:
        """Return the change that puts what is added, and skips, in the place of an MLP."""

        def replaced(value: torch.Tensor) -> torch.Tensor:
            past = self._past(block, {n: kept[n].value for n in self.written_by(block)})
            return (added if past is None else added + past).expand_as(value).to(value.dtype)

        return at(f"blocks.{block}.mlp.out").apply(replaced)

    def _past(self, block: int, inputs: Mapping[int, torch.Tensor]) -> torch.Tensor | None:
        """Return what skip connections give a block for what transcoders read, by their block."""
        found = None
        for number, part in self.written_by(block).items():
            past = self.transcoders[number].bypass(inputs[number])
            if past is not None:
                found = past[..., part] if found is None else found + past[..., part]
        return found


class _Kept:
    """A change that changes nothing and keeps the value."""

    value: torch.Tensor

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        self.value = value
        return value


def _given(value: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a change that puts a value in the place of whatever is there."""

    def put(old: torch.Tensor) -> torch.Tensor:
        return value.expand_as(old).to(old.dtype)

    return put


def _norms(anatomy: Anatomy) -> list[str]:
    """Return the paths of the norms of the stream, each once."""
    found = [path for block in anatomy.blocks for path in block.norms.values()]
    found += [anatomy.final_norm] if anatomy.final_norm else []
    return list(dict.fromkeys(found))


def _final(model: Model) -> str:
    anatomy = require_anatomy(model.anatomy, "An attribution graph")
    last = f"blocks.{anatomy.n_layers - 1}.resid_post"
    return "final.norm" if anatomy.final_norm else last


def _transcoders(model: Model, name: str) -> dict[int, Attachment]:
    """Return the transcoders of a name by block.

    Raises:
        ConfigError: If nothing has the name, or something else than an MLP's transcoder has it.
    """
    found = {}
    for one in named(name, model.codecs):
        if len(one.reads) > 1:
            raise ConfigError(
                f"{name} reads {len(one.reads)} sites together; an attribution graph follows "
                "latents that read one MLP's input each: transcoders, or a cross-layer one."
            )
        inside = isinstance(one.at.layer, tuple) and all(
            site.name == "mlp.out" and _block(site) >= _block(one.at) for site in one.writes
        )
        if not inside or not one.two_sites or (not one.joint and one.at.layer != one.to.layer):
            raise ConfigError(
                f"{name} reads {one.at} and writes {', '.join(map(str, one.writes))}; an "
                "attribution graph needs transcoders of MLPs, such as at='blocks.0.mlp.in', "
                "to='blocks.0.mlp.out'."
            )
        if not one.affine:
            raise ConfigError(
                f"{name}: decoded latents of {one.latents} do not add up, so they have no direct "
                "linear effects."
            )
        found[_block(one.at)] = one
    return dict(sorted(found.items()))


def _block(site: Site) -> int:
    """Return the block of a site that means one place in it."""
    return site.layer[0] if isinstance(site.layer, tuple) else -1
