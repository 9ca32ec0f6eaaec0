"""Which latents a batch keeps: exact selection in blocks of rows, with one reused buffer.

The ``k`` largest of a row lie in the ``k`` groups of latents with the largest maxima, and those
groups are found in the same way among their maxima: some cheap passes and small sorts replace a
sort of all. BatchTopK takes as candidates what exceeds a little less than the last batch's
threshold, and the exact largest of those; only when they are too few is everything ranked. Entries
that are not positive are worth 0 and may be any.

The product with the whole encoder is most of a step's work. Where products of 8-bit or 16-bit
numbers are faster (see :mod:`microtome.sae.estimation`) they give candidates, some more than are
kept; the candidates' own products are then exact, and so is the choice among them. How well that
works depends on the data, so it is compared with the exact choice again and again, and given up if
it loses anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from microtome.sae.architecture import COUNTED, Architecture
from microtome.sae.encoding import Weights, pre_activations
from microtome.sae.estimation import Precision, estimator
from microtome.sae.kernels import Entries, dot

BLOCK_ROWS = 512
"""Rows whose pre-activations are formed at a time."""

MARGIN = 0.93
"""Share of the last batch's threshold from which entries are candidates of the next one."""

FIRST_ROWS = 64
"""Rows from which the first batch's threshold is guessed."""

SPARE = 0.25
"""Candidates beyond what is kept, as a share of it, where they come from estimates."""

CHECK_EVERY, CHECK_ROWS, LEAST_ENERGY = 64, 64, 0.9995
"""Batches between two comparisons of estimates with the exact choice, rows that are compared, and
the share of the kept squares below which estimates are given up."""

ESTIMATED_ROWS, ESTIMATED_WEIGHTS = 512, 2**18
"""Rows of a batch and entries of an encoder below which estimates take longer than they save."""

DENSEST = 1 / 16
"""Share of active latents from which dense products are faster than sparse ones."""

RETRY_AFTER = 16
"""Batches computed densely before a sparse one is tried again."""

FAN = 8
"""Latents of a group."""


@dataclass(frozen=True, eq=False)
class Selection:
    """What a batch keeps.

    Attributes:
        entries: The kept entries, bag = row; within a row by latent where the make needs it.
        known: Their pre-activations; a gated coder's without a bias.
    """

    entries: Entries
    known: Tensor


@dataclass
class Selector:
    """Selects batch after batch; what it remembers makes it faster.

    Attributes:
        precision: Of the products that propose candidates.
        threshold: Smallest value that the last batch kept, None before the first.
        batches: Batches selected.
        fallbacks: Batches in which the candidates were too few.
        dense_left: Batches still to be computed densely.
        energy: Share of the kept squares that estimates found when last compared.
    """

    precision: Precision = "float32"
    threshold: float | None = None
    batches: int = 0
    fallbacks: int = 0
    dense_left: int = 0
    energy: float = 1.0
    _buffer: Tensor | None = field(default=None, repr=False)
    _mask: Tensor | None = field(default=None, repr=False)

    def state(self) -> dict[str, Any]:
        """Return what it remembers, as plain values."""
        return {name: getattr(self, name) for name in _REMEMBERED}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        for name in _REMEMBERED:
            setattr(self, name, state[name])

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
        encoding = _Encoding.of(make, weights, inputs, self)
        if encoding.estimated and self.batches % CHECK_EVERY == 0:
            self._check(make, encoding)
            encoding = _Encoding.of(make, weights, inputs, self)
        self.batches += 1
        choose = self._batch_top if make.activation == "batchtopk" else self._row_top
        entries, values = choose(make, encoding)
        return Selection(entries, values)

    def _row_top(self, make: Architecture, encoding: _Encoding) -> tuple[Entries, Tensor]:
        """Return the ``k`` largest of each row."""
        absolute = make.activation == "abstopk"
        count = min(make.d_sae, _spared(make.k)) if encoding.estimated else make.k
        chosen, found = [], []
        for block in encoding.blocks():
            latents = top_latents(_sortable(block.abs() if absolute else block), count)
            chosen.append(latents)
            if not encoding.estimated:
                found.append(block.gather(1, latents))
        latents = torch.cat(chosen)
        rows = torch.arange(len(latents), device=latents.device)
        if encoding.estimated:
            candidates = Entries(
                rows.repeat_interleave(count), latents.flatten(), len(rows), make.d_sae
            )
            values = encoding.exact(candidates).view(len(rows), count)
            kept = (values.abs() if absolute else values).topk(make.k, sorted=False).indices
            latents, values = latents.gather(1, kept), values.gather(1, kept)
        else:
            values = torch.cat(found)
        if make.prefixes or make.reach != "all":
            latents, order = latents.sort(1)
            values = values.gather(1, order)
        rows = rows.repeat_interleave(make.k)
        return Entries(rows, latents.flatten(), len(latents), make.d_sae), values.flatten()

    def _batch_top(self, make: Architecture, encoding: _Encoding) -> tuple[Entries, Tensor]:
        """Return a batch's ``k`` largest per row, in the order of rows and latents."""
        wanted = make.k * len(encoding.inputs)
        place, values = self._candidates(make, encoding, wanted)
        if encoding.estimated:
            spared = min(_spared(wanted), len(place))
            if spared < len(place):
                place = place[values.topk(spared, sorted=False).indices]
            place = place.sort().values
            values = encoding.exact(_entries(place, make, len(encoding.inputs)))
        if len(place) > wanted:
            top = values.topk(wanted, sorted=False)
            place, values = place[top.indices], top.values
        place, order = place.sort()
        values = values[order]
        self.threshold = float(values.min()) if len(values) == wanted else 0.0
        return _entries(place, make, len(encoding.inputs)), values

    def _candidates(
        self, make: Architecture, encoding: _Encoding, wanted: int
    ) -> tuple[Tensor, Tensor]:
        """Return the flat numbers and values of at least the wanted number of entries.

        They are fewer only where no more are positive.
        """
        bound = None if self.threshold is None else max(MARGIN * self.threshold, 0.0)
        places, keys, start = [], [], 0
        for block in encoding.blocks():
            if bound is None:
                some = block[:FIRST_ROWS]
                first = some.flatten().topk(make.k * len(some), sorted=False).values
                bound = max(MARGIN * float(first.min()), 0.0)
            where = self._exceeding(block, bound)
            places.append(where + start)
            keys.append(block.view(-1)[where])
            start += block.numel()
        if sum(map(len, places)) < wanted and bound:
            self.fallbacks += 1
            return _rank_all(make, encoding, wanted)
        return torch.cat(places), torch.cat(keys)

    def _exceeding(self, block: Tensor, bound: float) -> Tensor:
        """Return the flat numbers of the entries above a bound, growing."""
        if self._mask is None or self._mask.shape != block.shape:
            self._mask = torch.empty_like(block, dtype=torch.bool)
        torch.gt(block, bound, out=self._mask)
        return self._mask.view(-1).nonzero().squeeze(1)

    def _check(self, make: Architecture, encoding: _Encoding) -> None:
        """Compare the choice from estimates with the exact one; give estimates up if it is poor."""
        rows = encoding.inputs[:CHECK_ROWS]
        exact = rows @ encoding.encoder.T + encoding.bias
        count = min(make.d_sae, _spared(make.k))
        estimate = next(iter(encoding.blocks()))[: len(rows)].float()
        if make.activation == "abstopk":
            estimate = estimate.abs()
        else:
            exact = exact.relu()
        proposed = exact.gather(1, estimate.topk(count, sorted=False).indices)
        got, best = (
            values.square().topk(make.k, sorted=False).values.double().sum()
            for values in (proposed, exact)
        )
        self.energy = float(got / best) if float(best) > 0 else 1.0
        if self.energy < LEAST_ENERGY:
            self.precision = "float32"

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
        for block in _Encoding.of(make, weights, inputs, self).blocks():
            active = block > 0 if least is None else (block > 0) & (block > least)
            where = active.view(-1).nonzero().squeeze(1)
            count += len(where)
            if count > limit:
                self.dense_left = RETRY_AFTER
                return None
            places.append(where + start)
            values.append(block.view(-1)[where])
            start += block.numel()
        entries, value = _entries(torch.cat(places), make, len(inputs)), torch.cat(values)
        if make.activation == "gated":  # the blocks carried the gate's bias, the values do not
            value = value - weights["b_gate"][entries.latents]
        return Selection(entries, value)


_REMEMBERED = ("precision", "threshold", "batches", "fallbacks", "dense_left", "energy")


@dataclass(frozen=True, eq=False)
class _Encoding:
    """The products of a batch with the encoder, block by block.

    Attributes:
        make: The coder's make.
        weights: Its weights.
        inputs: ``[row, d_in]``, centered where there is one matrix for all.
        encoder: That matrix ``[d_sae, d_in]``; empty where there is none.
        bias: Its bias.
        selector: Whose buffer and precision are used.
        estimated: Whether the blocks are estimates.
    """

    make: Architecture
    weights: Weights
    inputs: Tensor
    encoder: Tensor
    bias: Tensor
    selector: Selector
    estimated: bool

    @staticmethod
    def of(make: Architecture, weights: Weights, inputs: Tensor, selector: Selector) -> _Encoding:
        encoder = weights["W_dec"] if make.encoder == "tied" else weights.get("W_enc")
        if encoder is None or make.reach != "all":
            none = inputs.new_empty(0)
            return _Encoding(make, weights, inputs, none, none, selector, False)
        estimated = (
            selector.precision != "float32"
            and make.activation in COUNTED
            and encoder.dtype == torch.float32
            and len(inputs) >= ESTIMATED_ROWS
            and encoder.numel() >= ESTIMATED_WEIGHTS
        )
        centered = inputs - weights["b_dec"] if make.center else inputs
        bias = weights["b_gate" if make.activation == "gated" else "b_enc"]
        return _Encoding(make, weights, centered, encoder, bias, selector, estimated)

    def blocks(self) -> Iterator[Tensor]:
        """Yield pre-activations ``[row, d_sae]``; the next block may overwrite them."""
        parts = self.inputs.split(BLOCK_ROWS)
        if not len(self.encoder):
            for rows in parts:
                pre = pre_activations(self.make, self.weights, rows)
                yield pre + self.weights["b_gate"] if self.make.activation == "gated" else pre
            return
        if self.estimated:
            estimate = estimator(self.selector.precision, self.encoder, self.bias)
            if estimate is not None:
                yield from map(estimate, parts)
                return
        for rows in parts:
            room = self.selector._buffer
            if room is None or room.shape[1:] != (self.make.d_sae,) or len(room) < len(rows):
                room = self.encoder.new_empty(len(rows), self.make.d_sae)
            if room.dtype != rows.dtype or room.device != rows.device:
                room = self.encoder.new_empty(len(rows), self.make.d_sae)
            self.selector._buffer = room
            yield torch.addmm(self.bias, rows, self.encoder.T, out=room[: len(rows)])

    def exact(self, entries: Entries) -> Tensor:
        """Return the exact pre-activations of some entries."""
        return dot(self.inputs, self.encoder, entries) + self.bias[entries.latents]


def top_latents(key: Tensor, k: int) -> Tensor:
    """Return the latents ``[row, k]`` of the largest keys of each row, exactly, in any order."""
    width = key.shape[1]
    if width % FAN or width < FAN * k:
        return key.topk(k, sorted=False).indices
    groups = width // FAN
    members = key.view(len(key), FAN, groups)  # latent = member * groups + group
    group = top_latents(members.amax(1), k)
    candidates = members.gather(2, group[:, None, :].expand(-1, FAN, -1)).flatten(1)
    place = candidates.topk(k, sorted=False).indices
    return place // k * groups + group.gather(1, place % k)


def _rank_all(make: Architecture, encoding: _Encoding, wanted: int) -> tuple[Tensor, Tensor]:
    """Return the largest of all entries, merged block by block."""
    wanted = _spared(wanted) if encoding.estimated else wanted
    place = torch.empty(0, dtype=torch.int64, device=encoding.inputs.device)
    value = encoding.inputs.new_empty(0)
    for number, block in enumerate(encoding.blocks()):
        top = block.flatten().topk(min(wanted, block.numel()), sorted=False)
        place = torch.cat([place, top.indices + number * BLOCK_ROWS * make.d_sae])
        value = torch.cat([value, top.values.to(value.dtype)])
        best = value.topk(min(wanted, len(value)), sorted=False)
        place, value = place[best.indices], best.values
    return place, value


def _entries(place: Tensor, make: Architecture, rows: int) -> Entries:
    return Entries(place // make.d_sae, place % make.d_sae, rows, make.d_sae)


def _spared(count: int) -> int:
    """Return how many candidates are taken where some are to be kept."""
    return count + max(8, round(SPARE * count))


def _sortable(values: Tensor) -> Tensor:
    """Return keys in the values' order above 0: bfloat16 as whole numbers, which compare faster."""
    return values.view(torch.int16) if values.dtype == torch.bfloat16 else values
