"""The cells of a sweep: one intervention each, applied to every example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from microtome.errors import SweepError
from microtome.tracing.sites import Site
from microtome.tracing.vocabulary import axes_of, is_latents

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.tracing.interventions import Intervention

Operation = Literal["patch", "zero", "mean"]

PORTS = ("attn.in.q", "attn.in.k", "attn.in.v")
"""What single heads read."""

HEADS = ("attn.z", "attn.q", "attn.k", "attn.v", "attn.pattern", *PORTS)
"""Sites that can be swept head by head."""

GROUPED = ("attn.k", "attn.v", "attn.in.k", "attn.in.v")
"""Sites with one entry for each key/value head."""

SWEPT = ("resid_pre", "resid_mid", "resid_post", "attn.out", "mlp.out", "mlp.act", *HEADS)
"""Sites that can be swept."""

SINGLE = ("neuron", "latent")
"""Axes whose entries are cells of their own."""

UNITS = ("head", *SINGLE)
"""Axes of a grid that count units of a site rather than positions."""

WHOLE = -1
"""Unit of a cell that takes the whole site."""


@dataclass(frozen=True)
class Cell:
    """One intervention of a sweep.

    Attributes:
        layer: The block.
        unit: Head, neuron or latent, ``WHOLE`` for none of them.
        place: Position, name of a role, or None for all positions.
    """

    layer: int
    unit: int
    place: int | str | None


def mask_of(cell: Cell, examples: Examples, width: int) -> torch.Tensor:
    """Return the positions of a cell in each example ``[example, pos]``.

    Args:
        cell: The cell.
        examples: The examples.
        width: Number of positions; those behind a prompt (its continuation) are never meant.

    Raises:
        SweepError: If an example does not have the role.
    """
    mask = torch.zeros(len(examples), width, dtype=torch.bool)
    for row, example in enumerate(examples):
        if cell.place is None:
            mask[row, : len(example.clean)] = True
        elif isinstance(cell.place, int):
            mask[row, cell.place : cell.place + 1] = cell.place < len(example.clean)
        elif cell.place in example.roles:
            start, stop = example.roles[cell.place]
            mask[row, start:stop] = True
        else:
            raise SweepError(
                f"Example {example.index} has no role {cell.place!r}; it has "
                f"{', '.join(example.roles)}."
            )
    return mask


def read_at(name: str) -> str:
    """Return the site whose value a swept site has; ports all read the input of attention."""
    return "attn.in" if name in PORTS else name


def canonical(value: torch.Tensor, name: str, heads: int) -> torch.Tensor:
    """Return a site's value as ``[example, pos, unit, size]``; streams have one unit.

    Args:
        value: The value at :func:`read_at`.
        name: The swept site.
        heads: Heads of a port, which all read the same.
    """
    if name in PORTS:
        return value.unsqueeze(2).expand(-1, -1, heads, -1)
    axes = axes_of(name)
    if "query" in axes:
        return value.transpose(1, 2)
    if axes[2] in SINGLE:
        return value.unsqueeze(-1)
    return value if value.ndim == 4 else value.unsqueeze(2)


def intervention(
    cell: Cell,
    name: str,
    operation: Operation,
    source: torch.Tensor | None,
    mask: torch.Tensor,
    *,
    rows: Sequence[int],
    batch: int,
) -> Intervention:
    """Return the intervention of one cell on some rows of a batch.

    Args:
        cell: The cell.
        name: The swept site.
        operation: What is done.
        source: Value to patch in (or mean) ``[row, pos, ...]``, one entry for each of ``rows``.
        mask: Positions of the cell ``[row, pos]``.
        rows: Rows of the batch.
        batch: Number of rows of the batch.
    """
    unit = None if cell.unit == WHOLE else (cell.unit,)
    site = Site(
        name,
        (cell.layer,),
        head=unit if name in HEADS else None,
        neuron=unit if name == "mlp.act" else None,
        latent=unit if is_latents(name) else None,
    )
    chosen = [m.nonzero()[:, 0].tolist() for m in mask]
    longest = max(len(c) for c in chosen)
    table = [[-1] * longest for _ in range(batch)]
    for row, places in zip(rows, chosen, strict=True):
        table[row] = [*places, *([-1] * (longest - len(places)))]
    if longest:
        site = site.at_positions(table)
    if operation == "zero" or source is None:
        return site.zero(rows=rows)
    return site.patch(source, rows=rows, source_rows=range(len(rows)))
