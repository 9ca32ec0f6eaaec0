"""Interventions: changes of the value at a site while the model runs, as values.

An intervention says where (a site with its selectors and rows) and what (an operation with its
operand). It is applied to the selected part of the site's value and leaves the rest bit for bit.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.core.seeds import rng
from microtome.errors import SelectorError, ShapeError, SiteError
from microtome.tracing.indices import resolve_index
from microtome.tracing.positions import NONE, Positions
from microtome.tracing.sites import Site
from microtome.tracing.sources import aligned_source

if TYPE_CHECKING:
    from microtome.tracing.trace import Trace

_UNIT_AXES = {
    "head": "head",
    "kv_head": "head",
    "neuron": "neuron",
    "expert": "expert",
    "latent": "latent",
}


@dataclass(frozen=True, eq=False)
class Intervention:
    """A change of the value at a site while the model runs.

    Attributes:
        site: Where.
        operation: ``patch``, ``zero``, ``mean``, ``resample``, ``add``, ``scale``, ``project_out``,
            ``set`` or ``apply``.
        value: Operand: a number, a tensor that broadcasts to the selection, or a function.
        source: The trace to patch from; its value is read when the intervention runs.
        rows: Rows of the batch to change, None for all.
        source_rows: Row of the source for each changed row, None for the same row.
        by_position: Whether a mean is taken at each position separately.
    """

    site: Site
    operation: str
    value: torch.Tensor | float | Callable[[torch.Tensor], torch.Tensor] | None = None
    source: Trace | torch.Tensor | None = None
    rows: tuple[int, ...] | None = None
    source_rows: tuple[int, ...] | None = None
    by_position: bool = False

    def __str__(self) -> str:
        where = str(self.site) if self.rows is None else f"{self.site} rows {list(self.rows)}"
        return f"{self.operation} at {where}"

    def on(
        self, value: torch.Tensor, axes: tuple[str, ...], positions: Positions, name: str
    ) -> torch.Tensor:
        """Return the site's value after the intervention.

        Args:
            value: The whole value at the site, shaped like ``axes``.
            axes: Names of its axes (empty for ``module:`` sites: axis 0 is the batch, and axis 1
                the position where it is as long as the sequence).
            positions: Where the rows' tokens lie.
            name: Full name of the site, used to read the source and in errors.

        Raises:
            SelectorError: If a row, head or neuron is out of range.
            ShapeError: If the operand does not broadcast to the selection, or changes its shape.
        """
        selection = Selection.of(self, value, axes, positions, name)
        if selection.empty:
            return value
        old = selection.take(value)
        new = self._operate(old, value, selection, name)
        if new.shape != old.shape:
            raise ShapeError(
                f"{self}: the operation turned shape {tuple(old.shape)} into {tuple(new.shape)}; "
                "it must keep the shape of what is selected."
            )
        return selection.put(value, new.to(device=value.device, dtype=value.dtype))

    def _operate(
        self, old: torch.Tensor, value: torch.Tensor, selection: Selection, name: str
    ) -> torch.Tensor:
        if self.source is not None:
            aligned = aligned_source(self, value, selection.axes, selection.positions, name)
            taken = selection.take(aligned.to(device=value.device, dtype=value.dtype))
            if isinstance(self.source, torch.Tensor) and bool(torch.isnan(taken).any()):
                raise ShapeError(f"{self}: the source holds NaN where it is taken.")
            return taken
        if self.operation == "zero":
            return torch.zeros_like(old)
        if self.operation == "apply":
            if not callable(self.value):
                raise ShapeError(
                    f"{self}: apply needs a function, got {type(self.value).__name__}."
                )
            result: object = self.value(old)
            if not isinstance(result, torch.Tensor):
                raise ShapeError(
                    f"{self}: the function returned {type(result).__name__}, not a tensor."
                )
            return result
        operand = _operand(self.value, old, self)
        if self.operation == "add":
            return old + operand
        if self.operation == "scale":
            return old * operand
        if self.operation == "project_out":
            unit = _unit(operand, old, self)
            along: torch.Tensor = (old * unit).sum(-1, keepdim=True) * unit
            return old - along
        return operand.expand_as(old)


@dataclass(frozen=True, eq=False)
class Selection:
    """The part of a site's value that an intervention changes.

    Attributes:
        index: Index tensors for the leading axes, broadcast against one another; empty for all.
        valid: Where ``index`` is real (False for the -1 entries of position tables), or None.
        positions: Where the rows' tokens lie.
        axes: Names of the value's axes.
        empty: Whether nothing is selected in this call.
    """

    index: tuple[torch.Tensor, ...]
    valid: torch.Tensor | None
    positions: Positions
    axes: tuple[str, ...]
    empty: bool = False

    @staticmethod
    def of(
        intervention: Intervention,
        value: torch.Tensor,
        axes: tuple[str, ...],
        positions: Positions,
        name: str,
    ) -> Selection:
        """Resolve an intervention's rows and selectors on a value."""
        site = intervention.site
        axes = axes or _module_axes(value, positions)
        rows = chosen_rows(intervention, value.shape[0])
        columns = _columns(site, axes, positions)
        picks: list[torch.Tensor | None] = []
        for number, axis in enumerate(axes):
            if axis == "batch":
                picks.append(None if intervention.rows is None else torch.tensor(rows))
            elif axis in ("pos", "query"):
                picks.append(columns)
            else:
                key = _UNIT_AXES.get(axis)
                chosen = getattr(site, key) if key else None
                size = value.shape[number]
                picks.append(
                    None
                    if chosen is None
                    else torch.tensor(resolve_index(chosen, size, f"{key} of {name}"))
                )
        empty = any(p is not None and p.numel() == 0 for p in picks)
        index, valid = _open_mesh(picks, value, rows, axes)
        return Selection(index, valid, positions, axes, empty)

    def take(self, value: torch.Tensor) -> torch.Tensor:
        """Return the selected part of a value."""
        return value[self.index] if self.index else value

    def put(self, value: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Return a copy of a value with the selected part replaced."""
        if not self.index:
            return new
        if self.valid is not None:
            shape = self.valid.shape + (1,) * (new.ndim - self.valid.ndim)
            new = torch.where(self.valid.reshape(shape).to(new.device), new, value[self.index])
            order = _keep_valid_last(self, value)
            if order is not None:
                return order(new)
        return value.index_put(self.index, new)


def _keep_valid_last(
    selection: Selection, value: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return a writer that skips invalid entries, which point at column 0 like a real one may."""
    valid = selection.valid
    if valid is None or bool(valid.all()):
        return None
    full = torch.broadcast_tensors(*selection.index)
    chosen = torch.nonzero(valid.expand(full[0].shape), as_tuple=True)

    def write(new: torch.Tensor) -> torch.Tensor:
        return value.index_put(tuple(axis[chosen] for axis in full), new[chosen])

    return write


def _module_axes(value: torch.Tensor, positions: Positions) -> tuple[str, ...]:
    """Name the axes of a ``module:`` site: batch, and pos where the second axis is the sequence."""
    rest = tuple(f"dim{i}" for i in range(1, value.ndim))
    if value.ndim > 1 and value.shape[1] == positions.width and value.shape[0] == positions.batch:
        return ("batch", "pos", *rest[1:])
    return ("batch", *rest)


def chosen_rows(intervention: Intervention, batch: int) -> tuple[int, ...]:
    """Return the rows of the batch that an intervention changes, counted from 0.

    Raises:
        SelectorError: If a row is out of range.
    """
    if intervention.rows is None:
        return tuple(range(batch))
    wrong = [r for r in intervention.rows if not -batch <= r < batch]
    if wrong:
        raise SelectorError(
            f"{intervention}: row {wrong[0]} is out of range; the batch has {batch} rows."
        )
    return tuple(r % batch for r in intervention.rows)


def _columns(site: Site, axes: tuple[str, ...], positions: Positions) -> torch.Tensor | None:
    if site.pos is None and site.table is None:
        return None
    if not {"pos", "query"} & set(axes):
        raise SelectorError(f"{site} takes no position: its value has axes {', '.join(axes)}.")
    return positions.columns(site.pos, site.table)


def _open_mesh(
    picks: list[torch.Tensor | None],
    value: torch.Tensor,
    rows: tuple[int, ...],
    axes: tuple[str, ...],
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
    """Turn the picks of each axis into index tensors that broadcast over the selected axes."""
    chosen = [i for i, pick in enumerate(picks) if pick is not None]
    if not chosen:
        return (), None
    depth = chosen[-1] + 1
    valid: torch.Tensor | None = None
    index = []
    for axis in range(depth):
        pick = picks[axis]
        if pick is None:
            pick = torch.arange(value.shape[axis])
        if pick.ndim == 2:
            pick = pick[torch.tensor(rows)]
            shape = [1] * depth
            shape[0], shape[axis] = pick.shape
            if bool((pick == NONE).any()):
                valid = (pick != NONE).reshape(shape)
                pick = pick.clamp(min=0)
        else:
            shape = [1] * depth
            shape[axis] = pick.numel()
        index.append(pick.reshape(shape).to(value.device))
    return tuple(index), valid


def _operand(value: object, old: torch.Tensor, intervention: Intervention) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        operand = value.to(device=old.device, dtype=old.dtype)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        operand = torch.tensor(_float(value), device=old.device, dtype=old.dtype)
    else:
        raise ShapeError(
            f"{intervention}: expected a number or a tensor, got {type(value).__name__}."
        )
    if not bool(torch.isfinite(operand).all()):
        raise ShapeError(f"{intervention}: the value holds NaN or infinity.")
    try:
        operand.expand(torch.broadcast_shapes(operand.shape, old.shape))
        fits = torch.broadcast_shapes(operand.shape, old.shape) == old.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ShapeError(
            f"{intervention}: a value of shape {tuple(operand.shape)} does not broadcast to the "
            f"selected part of shape {tuple(old.shape)}."
        )
    return operand


def _float(value: int | float) -> float:
    """Return a number as a float, infinity where it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _unit(direction: torch.Tensor, old: torch.Tensor, intervention: Intervention) -> torch.Tensor:
    """Return directions of length 1 along the last axis.

    Raises:
        ShapeError: If the last axis is not that of the value, or a direction is zero.
    """
    if direction.ndim == 0 or direction.shape[-1] != old.shape[-1]:
        raise ShapeError(
            f"{intervention}: a direction has {old.shape[-1]} entries on its last axis; got shape "
            f"{tuple(direction.shape)}."
        )
    length = direction.norm(dim=-1, keepdim=True)
    if bool((length == 0).any()):
        raise ShapeError(f"{intervention}: the direction is zero, so nothing can be projected out.")
    unit: torch.Tensor = direction / length
    return unit


def _row_tuple(rows: Iterable[int] | None) -> tuple[int, ...] | None:
    if rows is None:
        return None
    try:
        found = tuple(operator.index(r) for r in rows)
    except TypeError:
        raise SelectorError(f"rows={rows!r} is not a list of row numbers.") from None
    if not found:
        raise SelectorError("rows is empty, so the intervention would change nothing.")
    return found


def elementwise(
    site: Site,
    operation: str,
    value: torch.Tensor | float | Callable[[torch.Tensor], torch.Tensor] | None,
    *,
    rows: Iterable[int] | None,
) -> Intervention:
    """Build an intervention whose operand does not depend on another trace."""
    return Intervention(site, operation, value, rows=_row_tuple(rows))


def patch(
    site: Site,
    source: Trace | torch.Tensor,
    *,
    rows: Iterable[int] | None,
    source_rows: Iterable[int] | None,
) -> Intervention:
    """Build a patch from another trace or from a tensor shaped like the whole site."""
    chosen, origin = _row_tuple(rows), _row_tuple(source_rows)
    if chosen is not None and origin is not None and len(chosen) != len(origin):
        raise SelectorError(f"patch at {site}: {len(chosen)} rows but {len(origin)} source_rows.")
    return Intervention(site, "patch", None, source, chosen, origin)


def resample(site: Site, source: Trace, *, seed: int, rows: Iterable[int] | None) -> Intervention:
    """Build a patch from rows of a trace drawn at random, never the row itself where avoidable."""
    if not hasattr(source, "lengths"):
        raise SiteError(f"resample at {site}: expected a trace, got {type(source).__name__}.")
    total = len(source.lengths)
    generator = rng(seed, "resample", str(site))
    order = generator.permutation(total)
    drawn = np.empty(total, dtype=int)
    drawn[order] = np.roll(order, 1)
    chosen = _row_tuple(rows)
    kept = drawn if chosen is None else drawn[[r % total for r in chosen]]
    return Intervention(site, "resample", None, source, chosen, tuple(int(r) for r in kept))


def mean(
    site: Site,
    over: Trace | torch.Tensor,
    *,
    by_position: bool,
    rows: Iterable[int] | None,
) -> Intervention:
    """Build a mean ablation from a trace, or from the mean itself."""
    if isinstance(over, torch.Tensor):
        return Intervention(site, "set", over, rows=_row_tuple(rows))
    if not hasattr(over, "mean_of"):
        raise SiteError(
            f"mean at {site}: over must be a trace or a tensor, got {type(over).__name__}."
        )
    return Intervention(site, "mean", None, over, _row_tuple(rows), by_position=by_position)
