"""What a patch takes from another trace: its value, laid out like the value that is replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from microtome.errors import PairError, SelectorError, ShapeError
from microtome.tracing.positions import Positions

if TYPE_CHECKING:
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.trace import Trace


def aligned_source(
    intervention: Intervention,
    value: torch.Tensor,
    axes: tuple[str, ...],
    positions: Positions,
    name: str,
) -> torch.Tensor:
    """Return the source's value in the shape of ``value``, row by row and position by position.

    Positions that the source does not have (those generated beyond it) keep ``value``.

    Args:
        intervention: A patch, resample or mean.
        value: The value at the site in this call.
        axes: Names of its axes.
        positions: Where the rows' tokens lie in it.
        name: Full name of the site.

    Raises:
        PairError: If whole rows of different lengths would be compared.
        SelectorError: If a source row does not exist.
        ShapeError: If the source has another shape.
    """
    source = intervention.source
    if isinstance(source, torch.Tensor):
        return _align(intervention, source, None, value, axes, positions)
    if source is None:
        raise ShapeError(f"{intervention} has no source.")
    if intervention.operation == "mean":
        mean = source.mean_of(name, by_position=intervention.by_position)
        return _expanded(mean, value, positions.offset, intervention)
    return _align(intervention, source.value(name), source, value, axes, positions)


def _expanded(
    mean: torch.Tensor, value: torch.Tensor, offset: int, intervention: Intervention
) -> torch.Tensor:
    if mean.ndim == value.ndim and mean.shape[1] > value.shape[1] and mean.shape[1] != 1:
        mean = mean[:, offset : offset + value.shape[1]]
    try:
        return mean.to(value.device).expand_as(value)
    except RuntimeError:
        raise ShapeError(
            f"{intervention}: the mean has shape {tuple(mean.shape)}, the value "
            f"{tuple(value.shape)}."
        ) from None


def _align(
    intervention: Intervention,
    stored: torch.Tensor,
    trace: Trace | None,
    value: torch.Tensor,
    axes: tuple[str, ...],
    positions: Positions,
) -> torch.Tensor:
    rows = _source_rows(intervention, stored.shape[0], value.shape[0])
    stored = stored.to(value.device)
    if "pos" not in axes and "query" not in axes:
        return _same_shape(stored[rows], value, intervention)
    if trace is not None:
        _check_lengths(intervention, trace, rows, positions)
    simple = positions.offset == 0 and not any(positions.pads)
    if simple and stored.shape[1:] == value.shape[1:]:
        return stored if rows == list(range(stored.shape[0])) else stored[rows]
    if "query" in axes:
        if not any(positions.pads) and value.shape[3] == stored.shape[3]:
            # the last queries of a run that is replayed from a position on see all its keys
            stored = stored[:, :, positions.offset : positions.offset + value.shape[2]]
            return _corner(stored[rows], value, intervention)
        if simple:
            return _corner(stored[rows], value, intervention)
        raise ShapeError(
            f"{intervention}: scores and pattern of another trace cannot be patched into a call "
            "with left padding or a cache; use use_cache=False and rows of one length."
        )
    return _by_position(stored, rows, value, positions, intervention)


def _source_rows(intervention: Intervention, stored: int, batch: int) -> list[int]:
    """Return the source row for every row of the batch (rows that are not changed get any)."""
    changed = tuple(r % batch for r in intervention.rows or range(batch))
    origin = intervention.source_rows
    if origin is None:
        if stored == 1:
            return [0] * batch
        if stored < batch and intervention.rows is None or max(changed) >= stored:
            raise SelectorError(
                f"{intervention}: the source has {stored} rows and the batch {batch}; say which "
                "row goes where with rows= and source_rows=."
            )
        return [row % stored for row in range(batch)]
    if len(origin) != len(changed):
        raise SelectorError(f"{intervention}: {len(changed)} rows but {len(origin)} source_rows.")
    wrong = [r for r in origin if not -stored <= r < stored]
    if wrong:
        raise SelectorError(
            f"{intervention}: source row {wrong[0]} is out of range; there are {stored}."
        )
    rows = [0] * batch
    for row, source_row in zip(changed, origin, strict=True):
        rows[row % batch] = source_row % stored
    return rows


def _check_lengths(
    intervention: Intervention, trace: Trace, rows: list[int], positions: Positions
) -> None:
    """Refuse to patch whole rows of different lengths; with chosen positions it is allowed."""
    site = intervention.site
    if positions.totals != positions.lengths:
        return
    if site.pos is not None or site.table is not None:
        _check_positions(intervention, trace, rows, positions)
        return
    for row in intervention.rows or range(positions.batch):
        here, there = positions.lengths[row], int(trace.lengths[rows[row]])
        if here != there:
            raise PairError(
                f"{intervention}: row {row} has {here} tokens but its source has {there}. Patching "
                "all positions would compare different tokens; give pos= or prompts of equal "
                "length."
            )


def _check_positions(
    intervention: Intervention, trace: Trace, rows: list[int], positions: Positions
) -> None:
    """Refuse positions that the source's row does not have.

    Raises:
        SelectorError: If one does not exist there.
    """
    site = intervention.site
    wanted = positions.absolute(site.pos, site.table)
    for row in intervention.rows or range(positions.batch):
        there = int(trace.lengths[rows[row]])
        beyond = [p for p in wanted[row] if p >= there]
        if beyond:
            raise SelectorError(
                f"{intervention}: position {beyond[0]} of row {row} is not in its source, which "
                f"has {there} tokens (0 to {there - 1})."
            )


def _by_position(
    stored: torch.Tensor,
    rows: list[int],
    value: torch.Tensor,
    positions: Positions,
    intervention: Intervention,
) -> torch.Tensor:
    """Copy the source's columns to where the same absolute positions lie in this call."""
    if stored.shape[2:] != value.shape[2:]:
        raise ShapeError(
            f"{intervention}: the source has shape {tuple(stored.shape)}, the value "
            f"{tuple(value.shape)}."
        )
    end = positions.offset + value.shape[1]
    if not any(positions.pads) and end <= stored.shape[1]:
        return stored[rows, positions.offset : end].to(value.dtype)
    aligned = value.clone()
    for row, source_row in enumerate(rows):
        shift = positions.pads[row] - positions.offset
        first, last = max(0, shift), min(value.shape[1], stored.shape[1] + shift)
        if last > first:
            aligned[row, first:last] = stored[source_row, first - shift : last - shift].to(
                value.dtype
            )
    return aligned


def _corner(stored: torch.Tensor, value: torch.Tensor, intervention: Intervention) -> torch.Tensor:
    """Lay scores or patterns over the top left corner that both have."""
    if stored.shape[1] != value.shape[1]:
        raise ShapeError(
            f"{intervention}: the source has {stored.shape[1]} heads, not {value.shape[1]}."
        )
    queries, keys = (min(a, b) for a, b in zip(stored.shape[2:], value.shape[2:], strict=True))
    aligned = value.clone()
    aligned[:, :, :queries, :keys] = stored[:, :, :queries, :keys]
    return aligned


def _same_shape(
    stored: torch.Tensor, value: torch.Tensor, intervention: Intervention
) -> torch.Tensor:
    if stored.shape != value.shape:
        raise ShapeError(
            f"{intervention}: the source has shape {tuple(stored.shape)}, the value "
            f"{tuple(value.shape)}."
        )
    return stored
