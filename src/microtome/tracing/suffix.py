"""Replaying only the last positions of a causal model.

Nothing before the first changed position moves in a causal model, so a replay may compute the later
positions alone, against the keys and values that the recorded run had before them. They are handed
to the model's own blocks through the part of transformers' cache protocol that a block uses. Which
arguments of a block have a position axis is found by comparing two recorded runs of different
length; whether such a replay equals a whole one is measured before it is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from microtome.errors import ModelSupportError
from microtome.models import hf
from microtome.tracing.arguments import LONGEST, SHORTEST, argument_facts
from microtome.tracing.condition import Remembered

if TYPE_CHECKING:
    from microtome.tracing.model import Model

CACHE_NAMES = ("past_key_values", "past_key_value", "layer_past")
"""What blocks call their cache."""

MASK = "attention_mask"

Keys = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Keys and values ``[batch, head, pos, d_head]`` by the cache's layer number."""


class KeptKeys:
    """The cache that blocks see: records keys and values, or puts recorded ones in front.

    Args:
        kept: What was recorded; empty to record.
        first: First position that is computed.
        rows: Row of the recorded run for each row that is computed.
    """

    is_compileable = False

    def __init__(self, kept: Keys, first: int = 0, rows: torch.Tensor | None = None) -> None:
        self.kept = kept
        self.first = first
        self.rows = rows
        self.updates = 0

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_args: Any, **_named: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all keys and values that the queries see."""
        self.updates += 1
        if self.rows is None:
            self.kept[layer] = (keys, values)
            return keys, values
        before = (self._before(stored) for stored in self.kept[layer])
        joined = [torch.cat([b, new], 2) for b, new in zip(before, (keys, values), strict=True)]
        return joined[0], joined[1]

    def _before(self, stored: torch.Tensor) -> torch.Tensor:
        stored = stored[:, :, : self.first]
        rows = self.rows
        if rows is None or stored.shape[0] == 1:
            return stored.expand(1 if rows is None else len(rows), -1, -1, -1)
        return stored[rows.to(stored.device)]

    def get_seq_length(self, *_args: Any) -> int:
        """Return how many positions lie before those that are computed."""
        return self.first


@dataclass(frozen=True, eq=False)
class SuffixFacts:
    """Whether the last positions can be replayed alone, and how arguments are cut for it.

    Attributes:
        reason: Why not; empty where they can.
        axes: For each block, the axis along which each of its arguments is cut, by path.
    """

    reason: str
    axes: tuple[Mapping[str, int], ...] = ()

    @property
    def usable(self) -> bool:
        """Whether the last positions can be replayed alone."""
        return not self.reason


_known: Remembered[SuffixFacts] = Remembered()


def suffix_facts(model: Model) -> SuffixFacts:
    """Return whether the last positions can be replayed alone; measured once per module."""
    return _known.of(model.module, lambda: _found(model))


def _found(model: Model) -> SuffixFacts:
    anatomy = model.anatomy
    if anatomy is None:
        return SuffixFacts("the module is not a transformer")
    if not anatomy.causal:
        return SuffixFacts("later positions change earlier ones: the model is not causal")
    longest = min(anatomy.context or LONGEST, LONGEST)
    if longest < SHORTEST:
        return SuffixFacts(f"the context of {longest} tokens is too short to find out")
    odd = next((b.reasons["*"] for b in anatomy.blocks if "*" in b.reasons), "")
    if odd:
        return SuffixFacts(odd)
    try:
        return _measured(model, longest)
    except Exception as error:
        return SuffixFacts(
            f"its blocks do not work with kept keys ({type(error).__name__}: {str(error)[:120]})"
        )


def _measured(model: Model, longest: int) -> SuffixFacts:
    """Find the axes, replay a suffix of a changed run, and compare with the whole replay."""
    from microtome.tracing.replay import Entry, record, replay, wave

    anatomy = model.anatomy
    layers = anatomy.n_layers if anatomy is not None else 0
    generator = torch.Generator().manual_seed(0)
    vocab = anatomy.vocab if anatomy is not None else 1
    ids = torch.randint(0, vocab, (2, longest), generator=generator)
    base = record(model, ids, keys=True, logits="last")
    attentions = sum(b.attention is not None for b in anatomy.blocks) if anatomy else 0
    if len(base.keys or {}) != attentions or attentions < layers:
        return SuffixFacts(
            f"only {len(base.keys or {})} of {layers} blocks keep keys and values in the cache"
        )
    axes = argument_facts(model).positions
    rows, first = torch.tensor([1, 0, 1]), longest // 2
    worst = 0.0
    for start in sorted({0, layers // 2}):
        stream = base.streams[start][rows].clone()
        noise = torch.randn(stream[:, first:].shape, generator=generator)
        stream[:, first:] += (noise * stream.float().std().cpu()).to(stream)
        whole = replay(model, base, start, stream, rows=rows)[:, first:].float()
        entry = Entry(start, stream[:, first:], rows)
        part = wave(model, base, [entry], first=first, facts=SuffixFacts("", axes)).float()
        scale = float(whole.abs().max())
        worst = max(worst, float((whole - part).abs().max()) / max(scale, 1e-6))
    bound = min(0.05, 2**7 * torch.finfo(model.dtype).eps)
    if not worst <= bound:
        return SuffixFacts(f"a replayed suffix differs from the whole replay by {worst:.2g}")
    return SuffixFacts("", axes)


def cache_name(block: nn.Module, named: Mapping[str, Any]) -> str:
    """Return what a block calls its cache.

    Raises:
        ModelSupportError: If it takes none.
    """
    known = {*named, *inspect.signature(block.forward).parameters}
    for name in CACHE_NAMES:
        if name in known:
            return name
    raise ModelSupportError(f"{type(block).__name__} takes no cache.")


def with_mask(
    model: Model, block: nn.Module, named: Mapping[str, Any], width: int, first: int
) -> dict[str, Any]:
    """Return a block's keyword arguments with the mask of the last positions' queries.

    Where none was recorded it is causal: a native kernel called with fewer queries than keys and no
    mask would line them up at the wrong end.

    Raises:
        ModelSupportError: If the attention implementation takes no such mask.
    """
    recorded = named.get(MASK)
    if isinstance(recorded, torch.Tensor) and recorded.ndim == 4 and recorded.shape[2] == width:
        return {**named, MASK: recorded[:, :, first:]}
    known = {*named, *inspect.signature(block.forward).parameters}
    if recorded is not None or MASK not in known:
        return dict(named)
    configs = hf.attention_configs(model.module)
    kinds = {hf.implementation(config) for config in configs}
    if not kinds <= {"sdpa", "eager"}:
        raise ModelSupportError(f"the attention implementation {', '.join(kinds)} takes no mask")
    queries = torch.arange(first, width, device=model.device).unsqueeze(1)
    seen = torch.arange(width, device=model.device) <= queries
    mask = seen[None, None]
    if "eager" in kinds:
        lowest = torch.finfo(model.dtype).min
        mask = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(
            ~mask, lowest
        )
    return {**named, MASK: mask}
