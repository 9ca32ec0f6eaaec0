"""What enters a wave: changed streams at the boundaries of blocks, and changes inside blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.models import hf
from microtome.sweeps.cells import SINGLE, WHOLE, Cell, intervention
from microtome.sweeps.groups import Group, half
from microtome.sweeps.latents import codec_change, written_at
from microtome.sweeps.schedule import Wave
from microtome.tracing.replay import BaseRun
from microtome.tracing.sites import Site
from microtome.tracing.vocabulary import axes_of, codec_of

if TYPE_CHECKING:
    from microtome.sweeps.plans import Plan
    from microtome.tracing.interventions import Intervention


@dataclass(frozen=True, eq=False)
class Part:
    """Runs of a wave that are changed at one layer.

    Attributes:
        layer: The swept site's block.
        entry: First whole block they run.
        runs: Their places in the wave.
        stream: Stream into ``entry`` from the wave's first position ``[n, pos - first, d_model]``.
    """

    layer: int
    entry: int
    runs: np.ndarray
    stream: torch.Tensor


def parts_of(plan: Plan, group: Group, wave: Wave) -> list[Part]:
    """Return the parts of a wave by entry; their runs in this order are the wave's rows."""
    layers = np.array([plan.cells[c].layer for c in wave.cells])
    found = []
    for layer in sorted(set(layers.tolist())):
        runs = np.flatnonzero(layers == layer)
        entry = int(wave.entries[runs[0]])
        found.append(Part(layer, entry, runs, _stream(plan, group, wave, layer, runs)))
    return sorted(found, key=lambda part: (part.entry, part.layer))


def _stream(plan: Plan, group: Group, wave: Wave, layer: int, runs: np.ndarray) -> torch.Tensor:
    base, first, entry = _base(group), wave.first, int(wave.entries[runs[0]])
    rows = torch.as_tensor(wave.rows[runs])
    cells = [plan.cells[c] for c in wave.cells[runs]]
    mode = group.modes[layer]
    if mode == "inside":
        return base.streams[layer][rows, first:]
    where = selection(group, cells, rows)[:, first:]
    if mode == "half":
        mid = group.mids[layer][rows, first:]
        mid = _changed(plan, group, layer, cells, rows, where, first, mid)
        if entry < group.layers:
            return half(plan.model, layer, mid)
        reads = torch.tensor(group.rows[0].reads, device=mid.device) - first
        mid[:, reads] = half(plan.model, layer, mid[:, reads])
        return mid
    stream = base.streams[entry][rows, first:]
    return _changed(plan, group, layer, cells, rows, where, first, stream)


def _base(group: Group) -> BaseRun:
    if group.base is None:
        raise ValueError("no base run was recorded")
    return group.base


def selection(group: Group, cells: Sequence[Cell], rows: torch.Tensor) -> torch.Tensor:
    """Return the positions that each run changes ``[run, pos]``."""
    masks: dict[int | str | None, torch.Tensor] = {}
    for cell in cells:
        if cell.place not in masks:
            masks[cell.place] = group.mask(cell)
    return torch.stack([masks[c.place][r] for c, r in zip(cells, rows.tolist(), strict=True)])


def _changed(
    plan: Plan,
    group: Group,
    layer: int,
    cells: Sequence[Cell],
    rows: torch.Tensor,
    where: torch.Tensor,
    first: int,
    stream: torch.Tensor,
) -> torch.Tensor:
    """Return a stream with the cells' values put in, or what they change of a write added."""
    where = where.to(stream.device).unsqueeze(-1)
    old = group.old[layer]
    units = torch.tensor([cell.unit for cell in cells])
    if codec_of(plan.site):
        change = codec_change(plan, group, layer, units, rows, where[..., 0], first)
        change = _written(plan, layer, WHOLE, change.unsqueeze(2))
        moved = stream + torch.where(where, change, torch.zeros_like(change))
        return moved.to(stream.dtype)
    if plan.site.startswith("resid"):
        new = group.new[layer][rows, first:, 0] if group.new else torch.zeros_like(stream)
        return torch.where(where, new.to(stream.dtype), stream)
    delta = torch.zeros_like(stream)
    for unit in sorted(set(units.tolist())):
        own = torch.nonzero(units == unit)[:, 0]
        at = slice(None) if unit == WHOLE else slice(unit, unit + 1)
        before = old[rows[own], first:, at]
        after = group.new[layer][rows[own], first:, at] if group.new else torch.zeros_like(before)
        delta[own] = _written(plan, layer, unit, (after - before).to(stream.dtype))
    return stream + torch.where(where, delta, torch.zeros_like(delta))


def _written(plan: Plan, layer: int, unit: int, change: torch.Tensor) -> torch.Tensor:
    """Return what a change ``[run, pos, unit, size]`` at the site adds to the stream."""
    anatomy, site = plan.model.anatomy, written_at(plan, layer)
    if site.startswith("resid") or site in ("attn.out", "mlp.out") or anatomy is None:
        return change[:, :, 0]
    block = anatomy.blocks[layer]
    attention, mlp = block.attention, block.mlp
    if site == "attn.z" and attention is not None:
        path, scale, units = attention.out_proj, attention.scale, attention.n_heads
    elif mlp is not None:
        path, scale, units = mlp.down, mlp.scale, mlp.d_mlp
    else:
        raise ValueError(f"block {layer} has no {site}")
    weight = hf.projection_weight(plan.model.module.get_submodule(path or "")).detach()
    weight = weight.unflatten(0, (units, -1))
    if unit != WHOLE:
        weight = weight[unit : unit + 1]
    written: torch.Tensor = change.flatten(2).to(weight.dtype) @ weight.flatten(0, 1)
    return written if scale == 1.0 else scale * written


def inside(
    plan: Plan,
    group: Group,
    layer: int,
    cells: Sequence[Cell],
    rows: torch.Tensor,
    numbers: Sequence[int],
    batch: int,
) -> list[Intervention]:
    """Return the interventions that put the cells' values in while a block runs.

    Args:
        plan: The plan.
        group: The group.
        layer: The block.
        cells: Cell of each run.
        rows: Row of the group of each run.
        numbers: Row of the batch of each run.
        batch: Rows of the batch when the block runs.
    """
    where = selection(group, cells, rows)
    if plan.site.startswith("attn.in."):
        return [
            intervention(
                cell,
                plan.site,
                plan.operation,
                _source(group, layer, rows[n]),
                where[n : n + 1],
                rows=[number],
                batch=batch,
            )  # fmt: skip
            for n, (cell, number) in enumerate(zip(cells, numbers, strict=True))
        ]
    run, pos = where.nonzero(as_tuple=True)
    units = torch.tensor([cell.unit for cell in cells])[run]
    row, number = rows[run], torch.tensor(numbers)[run]
    writer = _writer(group, layer, plan.site, (row, pos, units, number))
    return [Site(plan.site, (layer,)).apply(writer)]


def _source(group: Group, layer: int, row: torch.Tensor) -> torch.Tensor | None:
    return group.new[layer][row].unsqueeze(0) if group.new else None


def _writer(
    group: Group, layer: int, site: str, index: tuple[torch.Tensor, ...]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that writes chosen entries into a site's value."""
    row, pos, unit, number = index
    axes = axes_of(site)
    axis = axes.index("query") if "query" in axes else 1

    def write(value: torch.Tensor) -> torch.Tensor:
        # the value may cover the last positions only; keys always reach back to the first
        kept = pos >= group.width - value.shape[axis]
        r, p, u, n = row[kept], pos[kept], unit[kept], number[kept]
        local = p - (group.width - value.shape[axis])
        changed = value.clone()
        whole = u == WHOLE
        view = changed.transpose(1, 2) if "query" in axes else changed
        if len(axes) == 3 and axes[2] not in SINGLE:
            view[n, local] = _values(group, layer, r, p, None).to(value)
            return changed
        view[n[whole], local[whole]] = (
            _values(group, layer, r[whole], p[whole], None).reshape(-1, *view.shape[2:]).to(value)
        )
        one = ~whole
        view[n[one], local[one], u[one]] = (
            _values(group, layer, r[one], p[one], u[one]).reshape(-1, *view.shape[3:]).to(value)
        )
        return changed

    return write


def _values(
    group: Group, layer: int, row: torch.Tensor, pos: torch.Tensor, unit: torch.Tensor | None
) -> torch.Tensor:
    shape = group.old[layer]
    if unit is None:
        found = group.new[layer][row, pos] if group.new else torch.zeros_like(shape[row, pos])
        return found[:, 0] if found.shape[1] == 1 else found
    if group.new:
        return group.new[layer][row, pos, unit]
    return torch.zeros_like(shape[row, pos, unit])
