"""Which latents a batch keeps: exact selection in blocks of rows, with one reused buffer.

The ``k`` largest of a row lie in the ``k`` groups of latents with the largest maxima, so one cheap
pass over the pre-activations and two small sorts replace a sort of all. BatchTopK takes as
candidates what exceeds a little less than the last batch's threshold, and the exact largest of
those; only when they are too few is everything ranked. Entries that are not positive are worth 0
and may be any.

Where bfloat16 products are faster (probed once), they select, and the values of what was kept are
computed in the weights' own precision.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from microtome.sae.architecture import COUNTED, Architecture
from microtome.sae.encoding import Weights, pre_activations
from microtome.sae.kernels import Entries

BLOCK_ROWS = 512
"""Rows whose pre-activations are formed at a time."""

MARGIN = 0.93
"""Share of the last batch's threshold from which entries are candidates of the next one."""

DENSEST = 1 / 16
"""Share of active latents from which dense products are faster than sparse ones."""

RETRY_AFTER = 16
"""Batches computed densely before a sparse one is tried again."""


@dataclass(frozen=True, eq=False)
class Selection:
    """What a batch keeps.

    Attributes:
        entries: The kept entries, bag = row; within a row by latent where that was asked for.
        known: Their pre-activations, None if they were only estimated.
    """

    entries: Entries
    known: Tensor | None


@dataclass
class Selector:
    """Selects batch after batch; what it remembers makes it faster and changes no result.

    Attributes:
        dtype: Precision of the products that select; that of the weights if None.
        threshold: Smallest value that the last batch kept, None before the first.
        fallbacks: Batches in which the candidates were too few.
        dense_left: Batches still to be computed densely.
    """

    dtype: torch.dtype | None = None
    threshold: float | None = None
    fallbacks: int = 0
    dense_left: int = 0
    _buffer: Tensor | None = field(default=None, repr=False)
    _mask: Tensor | None = field(default=None, repr=False)

    @torch.no_grad()
    def select(
        self, make: Architecture, weights: Weights, inputs: Tensor, *, reach: float = 0.0
    ) -> Selection | None:
        """Return what a batch keeps, None if that is too much for sparse products.

        Args:
            make: The coder's make.
            weights: Its weights.
            inputs: ``[row, d_in]``.
            reach: How far below a JumpReLU's threshold entries still matter (to its gradient).
        """
        if make.activation not in COUNTED:
            return self._above(make, weights, inputs, reach)
        blocks = self._blocks(make, weights, inputs)
        if make.activation == "batchtopk":
            flat, values = self._batch_top(make, weights, inputs, blocks)
            rows, latents = flat // make.d_sae, flat % make.d_sae
        else:
            found = [_row_top(block, make.k, make.activation == "abstopk") for block in blocks]
            values, latents = torch.cat([v for v, _ in found]), torch.cat([i for _, i in found])
            if ordered(make):
                latents, order = latents.sort(1)
                values = values.gather(1, order)
            values, latents = values.flatten(), latents.flatten()
            rows = torch.arange(len(inputs), device=inputs.device).repeat_interleave(make.k)
        entries = Entries(rows, latents, len(inputs), make.d_sae)
        return Selection(entries, values if values.dtype == inputs.dtype else None)

    def _blocks(self, make: Architecture, weights: Weights, inputs: Tensor) -> Iterator[Tensor]:
        """Yield pre-activations ``[row, d_sae]`` of some rows; the next block overwrites them."""
        encoder = weights["W_dec"] if make.encoder == "tied" else weights.get("W_enc")
        if encoder is None or make.reach != "all":
            for rows in inputs.split(BLOCK_ROWS):
                pre = pre_activations(make, weights, rows)
                yield pre + weights["b_gate"] if make.activation == "gated" else pre
            return
        dtype = self.dtype if self.dtype and make.activation in COUNTED else inputs.dtype
        bias = weights["b_gate" if make.activation == "gated" else "b_enc"].to(dtype)
        centered = inputs - weights["b_dec"] if make.center else inputs
        centered, encoder = centered.to(dtype), encoder.to(dtype).T
        for rows in centered.split(BLOCK_ROWS):
            yield torch.addmm(bias, rows, encoder, out=self._room(len(rows), encoder))

    def _room(self, rows: int, encoder: Tensor) -> Tensor:
        shape = (rows, encoder.shape[1])
        if (
            self._buffer is None
            or self._buffer.shape[1] != shape[1]
            or self._buffer.shape[0] < rows
            or self._buffer.dtype != encoder.dtype
            or self._buffer.device != encoder.device
        ):
            self._buffer = encoder.new_empty(shape)
        return self._buffer[:rows]

    def _batch_top(
        self, make: Architecture, weights: Weights, inputs: Tensor, blocks: Iterator[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the flat numbers, growing, and the values of a batch's ``k`` per row."""
        wanted = make.k * len(inputs)
        bound = None if self.threshold is None else max(MARGIN * self.threshold, 0.0)
        places, keys, start = [], [], 0
        for block in blocks:
            key = _sortable(block)
            if bound is None:
                first = _flat_top(key, make.k * len(block)).values
                bound = max(MARGIN * _number(first.min(), block.dtype), 0.0)
            where = self._exceeding(key, _key(bound, block.dtype))
            places.append(where + start)
            keys.append(key.reshape(-1)[where])
            start += block.numel()
        place, kept = torch.cat(places), torch.cat(keys)
        if len(place) < wanted and bound:
            self.fallbacks += 1
            place, kept = self._rank_all(make, weights, inputs, wanted)
        elif len(place) > wanted:
            top = kept.topk(wanted, sorted=False)
            place, kept = place[top.indices], top.values
        place, order = place.sort()
        values = kept[order]
        values = values.view(torch.bfloat16) if values.dtype == torch.int16 else values
        self.threshold = float(values.min()) if len(values) == wanted else 0.0
        return place, values

    def _exceeding(self, key: Tensor, bound: Tensor) -> Tensor:
        """Return the flat numbers of the entries above a bound, growing."""
        if self._mask is None or self._mask.shape != key.shape or self._mask.device != key.device:
            self._mask = torch.empty_like(key, dtype=torch.bool)
        torch.gt(key, bound, out=self._mask)
        return self._mask.view(-1).nonzero().squeeze(1)

    def _rank_all(
        self, make: Architecture, weights: Weights, inputs: Tensor, wanted: int
    ) -> tuple[Tensor, Tensor]:
        """Return the largest of all entries, merged block by block."""
        place = key = None
        for number, block in enumerate(self._blocks(make, weights, inputs)):
            top = _flat_top(_sortable(block), min(wanted, block.numel()))
            here = top.indices + number * BLOCK_ROWS * make.d_sae
            place = here if place is None else torch.cat([place, here])
            key = top.values if key is None else torch.cat([key, top.values])
            if len(key) > wanted:
                best = key.topk(wanted, sorted=False)
                place, key = place[best.indices], best.values
        if place is None or key is None:
            raise AssertionError("a batch has rows")
        return place, key

    def _above(
        self, make: Architecture, weights: Weights, inputs: Tensor, reach: float
    ) -> Selection | None:
        """Return the entries above their thresholds, None if they are too many."""
        if self.dense_left:
            self.dense_left -= 1
            return None
        least = weights["threshold"] - reach if make.activation == "jumprelu" else None
        limit = DENSEST * len(inputs) * make.d_sae
        places, values, start, count = [], [], 0, 0
        for block in self._blocks(make, weights, inputs):
            active = block > 0 if least is None else (block > 0) & (block > least)
            where = active.view(-1).nonzero().squeeze(1)
            count += len(where)
            if count > limit:
                self.dense_left = RETRY_AFTER
                return None
            places.append(where + start)
            values.append(block.reshape(-1)[where])
            start += block.numel()
        place, value = torch.cat(places), torch.cat(values)
        entries = Entries(place // make.d_sae, place % make.d_sae, len(inputs), make.d_sae)
        if make.activation == "gated":  # the blocks carried the gate's bias, the values do not
            value = value - weights["b_gate"][entries.latents]
        return Selection(entries, value)


def ordered(make: Architecture) -> bool:
    """Return whether the entries of a row must be in the order of their latents."""
    return bool(make.prefixes) or make.reach != "all"


def _row_top(pre: Tensor, k: int, absolute: bool) -> tuple[Tensor, Tensor]:
    """Return the values and latents ``[row, k]`` of the largest entries of each row, exactly."""
    key = _sortable(pre.abs() if absolute else pre)
    groups = _groups(key.shape[1], k)
    if not groups:
        latents = key.topk(k, sorted=False).indices
        return pre.gather(1, latents), latents
    members = key.view(len(key), -1, groups)  # latent = member * groups + group
    group = members.amax(1).topk(k, sorted=False).indices
    candidates = members.gather(2, group[:, None, :].expand(-1, members.shape[1], -1))
    place = candidates.reshape(len(key), -1).topk(k, sorted=False).indices
    latents = place // k * groups + group.gather(1, place % k)
    return pre.gather(1, latents), latents


def _flat_top(key: Tensor, count: int) -> torch.return_types.topk:
    return key.reshape(-1).topk(count, sorted=False)


@cache
def _groups(width: int, k: int) -> int:
    """Return into how many strided groups a row is best divided; 0 for none.

    The cost is a pass over ``groups`` maxima and one over ``k * width / groups`` candidates.
    """
    ideal = (max(k, 32) * width) ** 0.5
    fitting = [n for n in range(max(k, 2), width // 4 + 1) if width % n == 0]
    if width < 1024 or not fitting:
        return 0
    best = min(fitting, key=lambda n: abs(n - ideal))
    return best if ideal / 4 <= best <= ideal * 4 else 0


def _sortable(values: Tensor) -> Tensor:
    """Return keys in the values' order above 0: bfloat16 as whole numbers, which compare faster."""
    return values.view(torch.int16) if values.dtype == torch.bfloat16 else values


def _key(bound: float, dtype: torch.dtype) -> Tensor:
    return _sortable(torch.tensor(bound, dtype=dtype))


def _number(key: Tensor, dtype: torch.dtype) -> float:
    return float(key.view(dtype) if key.dtype == torch.int16 else key)


@cache
def faster_dtype(device: str) -> torch.dtype | None:
    """Return bfloat16 if this device multiplies it faster than float32, else None.

    It takes some milliseconds; a processor without such instructions is several times slower.
    """
    where = torch.device(device)
    took = {}
    for dtype in (torch.float32, torch.bfloat16):
        left = torch.ones(64, 512, dtype=dtype, device=where)
        right = torch.ones(512, 512, dtype=dtype, device=where)
        left @ right
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            float((left @ right)[0, 0])
            seconds.append(time.perf_counter() - began)
        took[dtype] = min(seconds)
    return torch.bfloat16 if took[torch.bfloat16] < 0.8 * took[torch.float32] else None
