"""Which latents a batch keeps: exact selection in blocks of rows, with one reused buffer.

TopK ranks groups of latents before latents (:mod:`.ranking`). BatchTopK takes as candidates what
exceeds a little less than the last batch's threshold, and the exact largest of those; only when
they are too few is everything ranked. Entries that are not positive are worth 0 and may be any.

The product with the whole encoder is most of a step's work. Where products of 8-bit or 16-bit
numbers are faster (:mod:`.estimation`) they give candidates, some more than are kept; the
candidates' own products are then exact, and so is the choice among them. How well that works
depends on the data, so it is compared with the exact choice again and again, and given up if it
loses anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from microtome.sae.architecture import COUNTED, Architecture
from microtome.sae.encoding import Weights
from microtome.sae.kernels import Entries
from microtome.sae.selecting.estimation import ByteProduct, Precision
from microtome.sae.selecting.pairs import Units, largest_of_batch, largest_pairs
from microtome.sae.selecting.products import BLOCK_ROWS, Buffers, Encoding, room
from microtome.sae.selecting.proposals import (
    batch_level,
    grouping,
    largest,
    largest_of_bags,
    reaching,
    row_levels,
    spared,
)
from microtome.sae.selecting.ranking import rank_all, sortable, top_latents

MARGIN = 0.93
"""Share of the last batch's threshold from which entries are candidates of the next one."""

FIRST_ROWS = 64
"""Rows from which the first batch's threshold is guessed."""

ROW_CODE, BATCH_CODE = 200, 96
"""Bytes that stand for the last threshold, of rows and of batches; the largest byte is 255."""

CROWD = 8
"""Candidates, as a multiple of what is wanted, from which bytes are too coarse a measure."""

UNEVEN = 6
"""Largest input of a batch, as a multiple of a middling row's largest, up to which bytes tell the
latents of single rows apart; a batch with an outlier beyond it is ranked exactly."""

CHECK_EVERY, CHECK_ROWS, LEAST_ENERGY = 64, 64, 0.9995
"""Batches between two comparisons of estimates with the exact choice, rows that are compared, and
the share of the kept squares below which estimates are given up."""

DENSEST = 1 / 16
"""Share of active latents from which dense products are faster than sparse ones."""

RETRY_AFTER = 16
"""Batches computed densely before a sparse one is tried again."""


@dataclass(frozen=True, eq=False)
class Selection:
    """What a batch keeps.

    Attributes:
        entries: The kept entries, bag = row; within a row by latent where the make needs it.
        known: Their pre-activations; a gated coder's without a bias.
        units: Those of their left and right units, with a Kronecker encoder and counted latents.
    """

    entries: Entries
    known: Tensor
    units: tuple[Tensor, Tensor] | None = None


@dataclass
class Selector:
    """Selects batch after batch; what it remembers makes it faster.

    Attributes:
        precision: Of the products that propose candidates.
        threshold: Smallest value that the last batch kept, None before the first; where rows are
            proposed in bytes, the largest of their smallest values.
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
    _buffers: Buffers = field(default_factory=dict, repr=False)

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
        if make.kronecker is not None:
            return self._pairs(make, make.kronecker, weights, inputs)
        encoding = Encoding.of(make, weights, inputs, self.precision, self._buffers)
        if encoding.estimated and self.batches % CHECK_EVERY == 0:
            self._check(make, encoding)
            if self.precision == "float32":
                encoding = replace(encoding, estimate=None)
        if encoding.estimated and self.precision == "int8":
            sizes = encoding.inputs.abs().amax(1)
            if not bool(sizes.amax() <= UNEVEN * sizes.median()):
                encoding = replace(encoding, estimate=None)
        self.batches += 1
        choose = self._batch_top if make.activation == "batchtopk" else self._row_top
        entries, values = choose(make, encoding)
        return Selection(entries, values)

    def _row_top(self, make: Architecture, encoding: Encoding) -> tuple[Entries, Tensor]:
        """Return the ``k`` largest of each row."""
        absolute = make.activation == "abstopk"
        if not encoding.estimated:
            chosen, found = [], []
            for block in encoding.blocks():
                chosen.append(top_latents(sortable(block.abs() if absolute else block), make.k))
                found.append(block.gather(1, chosen[-1]))
            entries, values = _rows_of(torch.cat(chosen), make), torch.cat(found).view(-1)
        else:
            entries = self._proposed_rows(make, encoding)
            values = encoding.exact(entries)
            kept = largest_of_bags(entries, values.abs() if absolute else values, make.k)
            entries, values = _some(entries, kept), values[kept]
            if encoding.in_bytes is not None:
                self.threshold = float(values.view(-1, make.k).amin(1).amax())
        if make.prefixes or make.reach != "all":
            order = (entries.bags * make.d_sae + entries.latents).argsort()
            entries, values = _some(entries, order), values[order]
        return entries, values

    def _proposed_rows(self, make: Architecture, encoding: Encoding) -> Entries:
        """Return candidates of each row, at least ``k``, in the order of the rows."""
        cut = grouping(make.d_sae, make.k)
        product = encoding.in_bytes if make.activation == "topk" else None
        if product is not None and cut is not None:
            step = self._level(make, encoding) / ROW_CODE
            if 0 < step < float("inf"):
                return self._rows_in_bytes(make, encoding, product, step, *cut)
        count = min(make.d_sae, spared(make.k))
        absolute = make.activation == "abstopk"
        found = [
            top_latents(sortable(block.abs() if absolute else block), count)
            for block in encoding.blocks()
        ]
        return _rows_of(torch.cat(found), make)

    def _rows_in_bytes(
        self,
        make: Architecture,
        encoding: Encoding,
        product: ByteProduct,
        step: float,
        groups: int,
        rank: int,
    ) -> Entries:
        """Return candidates from bytes; rows too small or too large for them are taken exactly."""
        places, unfit, start = [], [], 0
        for codes in product.codes(encoding.inputs, step):
            level = row_levels(codes, groups, rank)
            fit = level.view(-1) > 0
            flags = room(self._buffers, "flags", (len(codes), make.d_sae), codes)
            # codes of 255 stand for anything from there on, and 0 is reached by all
            where = reaching(codes, torch.where(level > 0, level, 255), flags)
            if len(where) > CROWD * rank * len(codes):
                fit = torch.zeros_like(fit)
            if not bool(fit.all()):
                where = where[fit[where // make.d_sae]]
                unfit.append((~fit).nonzero().squeeze(1) + start)
            places.append(where + start * make.d_sae)
            start += len(codes)
        if unfit:
            for rows in torch.cat(unfit).split(BLOCK_ROWS):
                latents = top_latents(encoding.exact_rows(encoding.inputs[rows]), make.k)
                places.append((latents + rows[:, None] * make.d_sae).view(-1))
            places = [torch.cat(places).sort().values]
        return _entries(torch.cat(places), make, start)

    def _level(self, make: Architecture, encoding: Encoding) -> float:
        """Return the last batch's threshold, or what some rows of this one say; 0 for none."""
        if self.threshold is not None and self.threshold > 0:
            return self.threshold
        some = encoding.exact_rows(encoding.inputs[:FIRST_ROWS])
        if make.activation == "batchtopk":
            return float(some.flatten().topk(make.k * len(some), sorted=False).values.min())
        return float(some.topk(make.k, sorted=False).values.amin(1).amax())

    def _batch_top(self, make: Architecture, encoding: Encoding) -> tuple[Entries, Tensor]:
        """Return a batch's ``k`` largest per row, in the order of rows and latents."""
        rows = len(encoding.inputs)
        wanted = make.k * rows
        proposed = self._batch_in_bytes(make, encoding, wanted)
        if proposed is None:
            place, values = self._candidates(make, encoding, wanted)
            if encoding.estimated and len(place) > spared(wanted):
                mark = largest(values, spared(wanted))
                place, values = place[mark], values[mark]
        else:
            place = proposed
        if encoding.estimated:
            values = encoding.exact(_entries(place, make, rows))
        if len(place) > wanted:
            mark = largest(values, wanted)
            place, values = place[mark], values[mark]
        self.threshold = float(values.min()) if len(values) == wanted else 0.0
        return _entries(place, make, rows), values

    def _batch_in_bytes(self, make: Architecture, encoding: Encoding, wanted: int) -> Tensor | None:
        """Return the flat numbers of candidates from bytes, growing; None if they do not do.

        Rows come in no order, so the first block says which level enough entries reach.
        """
        product = encoding.in_bytes
        step = 0.0 if product is None or self.threshold == 0 else self._level(make, encoding)
        if product is None or make.d_sae % 8 or not 0 < step < float("inf"):
            return None
        level, start, places = 0, 0, []
        for codes in product.codes(encoding.inputs, step / BATCH_CODE):
            level = level or batch_level(codes, spared(make.k * len(codes)))
            flags = room(self._buffers, "flags", (len(codes), make.d_sae), codes)
            places.append(reaching(codes, level, flags) + start)
            start += codes.numel()
        if wanted <= sum(map(len, places)) <= CROWD * wanted:
            return torch.cat(places)
        self.fallbacks += 1
        return None

    def _candidates(
        self, make: Architecture, encoding: Encoding, wanted: int
    ) -> tuple[Tensor, Tensor]:
        """Return the flat numbers, growing, and values of at least the wanted number of entries.

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
            return rank_all(encoding, wanted)
        return torch.cat(places), torch.cat(keys)

    def _exceeding(self, block: Tensor, bound: float) -> Tensor:
        """Return the flat numbers of the entries above a bound, growing."""
        like = torch.empty(0, dtype=torch.bool, device=block.device)
        mask = room(self._buffers, "mask", (len(block), block.shape[1]), like)
        return torch.gt(block, bound, out=mask).view(-1).nonzero().squeeze(1)

    def _pairs(
        self, make: Architecture, shape: tuple[int, int, int], weights: Weights, inputs: Tensor
    ) -> Selection:
        """Return what a batch keeps of the pairs of a Kronecker encoder's units."""
        units = Units.of(shape, weights, inputs - weights["b_dec"] if make.center else inputs)
        self.batches += 1
        if make.activation == "batchtopk":
            found, self.threshold, short = largest_of_batch(units, make.k, self.threshold)
            entries = _entries(found, make, len(inputs))
            self.fallbacks += short
        else:
            found = largest_pairs(units, make.k)
            entries = _rows_of(found.sort(1).values if make.prefixes else found, make)
        left, right = units.of_latents(entries.bags, entries.latents)
        return Selection(entries, (left.relu() * right.relu()).sqrt(), (left, right))

    def _check(self, make: Architecture, encoding: Encoding) -> None:
        """Compare the choice from estimates with the exact one; give estimates up if it is poor."""
        rows = encoding.inputs[:CHECK_ROWS]
        exact = rows @ encoding.encoder.T + encoding.bias
        count = min(make.d_sae, spared(make.k))
        estimate = next(iter(replace(encoding, inputs=rows).blocks())).float()
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
        for block in Encoding.of(make, weights, inputs, "float32", self._buffers).blocks():
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


def _entries(place: Tensor, make: Architecture, rows: int) -> Entries:
    return Entries(place // make.d_sae, place % make.d_sae, rows, make.d_sae)


def _rows_of(latents: Tensor, make: Architecture) -> Entries:
    """Return the entries of latents ``[row, count]``."""
    rows, count = latents.shape
    bags = torch.arange(rows, device=latents.device).repeat_interleave(count)
    return Entries(bags, latents.reshape(-1), rows, make.d_sae)


def _some(entries: Entries, chosen: Tensor) -> Entries:
    return replace(entries, bags=entries.bags[chosen], latents=entries.latents[chosen])
