"""The cells of a sweep: one intervention each, applied to every example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from microtome.errors import SweepError
from microtome.tracing.sites import Site

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.tracing.interventions import Intervention

Operation = Literal["patch", "zero", "mean"]

SWEPT = ("resid_pre", "resid_mid", "resid_post", "attn.out", "mlp.out", "attn.z", "mlp.act")
"""Sites that can be swept."""

WHOLE = -1
"""Unit of a cell that takes the whole site."""


@dataclass(frozen=True)
class Cell:
    """One intervention of a sweep.

    Attributes:
        layer: The block.
        unit: Head or neuron, ``WHOLE`` for neither.
        place: Position, name of a role, or None for all positions.
    """

    layer: int
    unit: int
    place: int | str | None

    def start(self, name: str) -> int:
        """Return the first block whose computation the cell changes."""
        return self.layer + 1 if name == "resid_post" else self.layer


def spans(cell: Cell, examples: Examples) -> list[tuple[int, ...]] | None:
    """Return the positions of a cell in each example, None for all of them.

    Raises:
        SweepError: If an example does not have the role.
    """
    if cell.place is None:
        return None
    if isinstance(cell.place, int):
        return [(cell.place,) if cell.place < len(e.clean) else () for e in examples]
    found = []
    for example in examples:
        if cell.place not in example.roles:
            raise SweepError(
                f"Example {example.index} has no role {cell.place!r}; it has "
                f"{', '.join(example.roles)}."
            )
        start, stop = example.roles[cell.place]
        found.append(tuple(range(start, stop)))
    return found


def site_of(cell: Cell, name: str, table: Sequence[Sequence[int]] | None) -> Site:
    """Return the site of a cell, with positions for each row of a batch."""
    unit = None if cell.unit == WHOLE else (cell.unit,)
    site = Site(
        name,
        (cell.layer,),
        head=unit if name == "attn.z" else None,
        neuron=unit if name == "mlp.act" else None,
    )
    if table is None:
        return site
    longest = max((len(row) for row in table), default=0)
    return site.at_positions([[*row, *([-1] * (longest - len(row)))] for row in table])


def interventions(
    cells: Sequence[Cell],
    name: str,
    operation: Operation,
    source: dict[int, torch.Tensor],
    examples: Examples,
) -> list[Intervention]:
    """Return the interventions of a batch whose rows are all examples for each cell in turn.

    Args:
        cells: The cells, each with ``len(examples)`` rows.
        name: The swept site.
        operation: What is done.
        source: Value to patch in (or mean) for each layer: ``[example, pos, ...]``.
        examples: The examples.
    """
    count = len(examples)
    found = []
    for number, cell in enumerate(cells):
        rows = range(number * count, (number + 1) * count)
        own = spans(cell, examples)
        table = None if own is None else [own[r % count] for r in range(len(cells) * count)]
        site = site_of(cell, name, table)
        if operation == "zero":
            found.append(site.zero(rows=rows))
        else:
            found.append(site.patch(source[cell.layer], rows=rows, source_rows=range(count)))
    return found
