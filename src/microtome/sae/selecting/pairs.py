"""Which latents of a Kronecker encoder a batch keeps, from its units: all pairs are never formed.

The latent of a left and a right unit is worth the square root of their product. So the largest of
a head is the pair of its largest units, and the largest with a given left unit is that with the
largest right one: what is to be kept is narrowed down from heads to left units to pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.sae.encoding import Weights
from microtome.sae.selecting.proposals import largest

NEAR, LOWER, TRIES = 0.93, 0.7, 4
"""Share of the last batch's threshold from which pairs are candidates; the factor by which it is
lowered where they are too few, and how often before all positive pairs are."""

FIRST_ROWS = 64
"""Rows from which the first batch's threshold is guessed."""


@dataclass(frozen=True, eq=False)
class Units:
    """The units of some rows.

    Attributes:
        left: Pre-activations ``[row, head, left unit]``.
        right: Likewise ``[row, head, right unit]``.
    """

    left: Tensor
    right: Tensor

    @staticmethod
    def of(shape: tuple[int, int, int], weights: Weights, inputs: Tensor) -> Units:
        """Return the units of centered inputs ``[row, d_in]``."""
        heads, *widths = shape
        left, right = (
            torch.addmm(weights[f"b_{side}"], inputs, weights[f"W_{side}"].T).view(-1, heads, width)
            for side, width in zip(("left", "right"), widths, strict=True)
        )
        return Units(left, right)

    def of_latents(self, rows: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the left and right units of some latents of some rows, all of one shape."""
        rights, each = self.right.shape[2], self.left.shape[2] * self.right.shape[2]
        left = self.left.flatten(1)[rows, latents // rights]
        right = self.right.flatten(1)[rows, latents // each * rights + latents % rights]
        return left, right


def largest_pairs(units: Units, k: int) -> Tensor:
    """Return the latents ``[row, k]`` of the largest pairs of each row, exactly, in any order."""
    left, right = units.left.relu(), units.right.relu()
    (rows, heads, lefts), rights = left.shape, right.shape[2]
    most = right.amax(2)
    head = (left.amax(2) * most).topk(min(k, heads), sorted=False).indices
    wide = head[:, :, None].expand(-1, -1, lefts)
    best = (left.gather(1, wide) * most.gather(1, head)[:, :, None]).flatten(1)
    top = best.topk(min(k, best.shape[1]), sorted=False).indices
    head, unit = head.gather(1, top // lefts), top % lefts
    number = head * lefts + unit
    strength = left.view(rows, -1).gather(1, number)
    pairs = right.gather(1, head[:, :, None].expand(-1, -1, rights)) * strength[:, :, None]
    place = pairs.flatten(1).topk(k, sorted=False).indices
    return number.gather(1, place // rights) * rights + place % rights


def pairs_above(units: Units, bound: float) -> tuple[Tensor, Tensor]:
    """Return the flat numbers, growing, and values of the pairs above a bound that is not negative.

    The numbers count the latents row by row.
    """
    left, right = units.left.relu().flatten(0, 1), units.right.relu().flatten(0, 1)
    lefts, rights, least = left.shape[1], right.shape[1], bound * bound
    most = right.amax(1)
    head = (left.amax(1) * most > least).nonzero().squeeze(1)
    place = (left[head] * most[head, None] > least).view(-1).nonzero().squeeze(1)
    head, unit = head[place // lefts], place % lefts
    products = right[head] * left[head, unit][:, None]
    place = (products > least).view(-1).nonzero().squeeze(1)
    which = place // rights
    numbers = (head[which] * lefts + unit[which]) * rights + place % rights
    return numbers, products.view(-1)[place].sqrt()


def largest_of_batch(units: Units, k: int, threshold: float | None) -> tuple[Tensor, float, int]:
    """Return a batch's ``k`` largest pairs per row, exactly; fewer only where no more are positive.

    Args:
        units: The units of the batch.
        k: Pairs for each row, on average.
        threshold: Smallest value that the last batch kept, if it is known.

    Returns:
        Their flat numbers, growing; the smallest value, 0 if they are fewer; how often candidates
        were too few.
    """
    wanted, bound, short = k * len(units.left), threshold or 0.0, 0
    if not bound:  # as if some rows were all
        some = Units(units.left[:FIRST_ROWS], units.right[:FIRST_ROWS])
        values, count = pairs_above(some, 0.0)[1], k * len(some.left)
        bound = float(values.topk(count, sorted=False).values.min()) if len(values) > count else 0.0
    bound *= NEAR
    place, values = pairs_above(units, bound)
    while len(place) < wanted and bound:
        short += 1
        bound = LOWER * bound if short < TRIES else 0.0
        place, values = pairs_above(units, bound)
    if len(place) > wanted:
        mark = largest(values, wanted)
        place, values = place[mark], values[mark]
    return place, float(values.min()) if len(values) == wanted else 0.0, short
