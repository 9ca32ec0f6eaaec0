"""Running a wave of a sweep: replayed from where it starts, as whole passes, or naively."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.behaviors.evaluate import batches
from microtome.sweeps.cells import SINGLE, intervention
from microtome.sweeps.entries import Part, inside, parts_of
from microtome.sweeps.groups import Group
from microtome.sweeps.rows import Row, row_values
from microtome.sweeps.schedule import Wave
from microtome.tracing.replay import Entry, wave
from microtome.tracing.vocabulary import axes_of

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.sweeps.plans import Plan
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model


def base_values(plan: Plan, rows: Sequence[Row], *, source: bool = False) -> np.ndarray:
    """Return the metric of the unchanged run (or of the other one) of each row."""
    values = np.zeros(len(rows))
    for places in rows_by_shape(rows, 32):
        chosen = [rows[p] for p in places]
        tokens = [row.source if source else row.base for row in chosen]
        values[places] = _whole_passes(plan, chosen, tokens, ())
    return values


def rows_by_shape(rows: Sequence[Row], most: int) -> list[list[int]]:
    """Return the places of rows that can share a pass: of one length, with as many reads."""
    found: dict[tuple[int, int], list[int]] = {}
    for place, row in enumerate(rows):
        found.setdefault((len(row.base), len(row.reads)), []).append(place)
    return [
        places[start : start + most]
        for places in found.values()
        for start in range(0, len(places), most)
    ]


def run_wave(plan: Plan, group: Group, chosen: Wave) -> np.ndarray:
    """Return the metric of each run of a wave."""
    if group.base is None:
        return batched(plan, group, chosen.cells, chosen.rows)
    parts = parts_of(plan, group, chosen)
    order = np.concatenate([part.runs for part in parts])
    rows = torch.as_tensor(chosen.rows[order])
    if "fast" in plan.rules and not any(group.modes[p.layer] == "inside" for p in parts):
        from microtome.sweeps.packed import packed_wave

        streams = packed_wave(plan.model, group, chosen, parts)
    else:
        streams = _replayed(plan, group, chosen, parts)
    found = np.zeros(len(order))
    found[order] = group.reader.read(streams, rows).float().cpu().numpy()
    return found


def _replayed(plan: Plan, group: Group, chosen: Wave, parts: Sequence[Part]) -> torch.Tensor:
    """Return last streams at the reads ``[run, read, d_model]`` by the model's own blocks."""
    entries, changes, before = [], [], 0
    for part in parts:
        rows = torch.as_tensor(chosen.rows[part.runs])
        entries.append(Entry(part.entry, part.stream, rows))
    counts = np.cumsum([len(part.runs) for part in parts])
    for part, stop in zip(parts, counts.tolist(), strict=True):
        if group.modes[part.layer] == "inside":
            cells = [plan.cells[c] for c in chosen.cells[part.runs]]
            rows = torch.as_tensor(chosen.rows[part.runs])
            batch = int(sum(len(p.runs) for p in parts if p.entry <= part.layer))
            changes += inside(plan, group, part.layer, cells, rows, range(before, stop), batch)
        before = stop
    if group.base is None:
        raise ValueError("no base run was recorded")
    last = wave(plan.model, group.base, entries, first=chosen.first, interventions=changes)
    reads = torch.tensor(group.rows[0].reads, device=last.device) - chosen.first
    return last[:, reads]


def batched(plan: Plan, group: Group, cells: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the metric of runs, from one whole pass that carries one run in each row."""
    lines = [group.rows[int(r)] for r in rows]
    layers = np.array([plan.cells[c].layer for c in cells])
    changes: list[Intervention] = []
    for layer in sorted(set(layers.tolist())):
        runs = np.flatnonzero(layers == layer)
        changed = [plan.cells[c] for c in cells[runs]]
        own = torch.as_tensor(rows[runs])
        changes += inside(plan, group, layer, changed, own, runs.tolist(), len(lines))
    return _whole_passes(plan, lines, [line.base for line in lines], changes)


def naive(plan: Plan, group: Group, cell: int, row: int) -> float:
    """Run one cell on one row in a forward pass of its own, by the public interventions."""
    one = group.rows[row]
    chosen = plan.cells[cell]
    value = _original(group, chosen.layer, row, plan.site)
    change = intervention(
        chosen, plan.site, plan.operation, value, group.mask(chosen)[row : row + 1],
        rows=[0], batch=1,
    )  # fmt: skip
    return float(_whole_passes(plan, [one], [one.base], [change])[0])


def _original(group: Group, layer: int, row: int, site: str) -> torch.Tensor | None:
    """Return the value that is put in, in the site's own shape ``[1, pos, ...]``."""
    if not group.new:
        return None
    value = group.new[layer][row : row + 1]
    axes = axes_of(site)
    if "query" in axes:
        return value.transpose(1, 2)
    if axes[2] in SINGLE:
        return value[..., 0]
    return value if len(axes) == 4 else value[:, :, 0]


def _whole_passes(
    plan: Plan,
    rows: Sequence[Row],
    tokens: Sequence[tuple[int, ...]],
    changes: Sequence[Intervention],
) -> np.ndarray:
    reads = torch.tensor(rows[0].reads)
    last = len(reads) == 1
    trace = plan.model.trace(tokens, interventions=changes, logits="last" if last else "all")
    if trace.logits is None:
        raise ValueError("the model returned no logits")
    logits = trace.logits if last else trace.logits[:, reads]
    values: np.ndarray = row_values(plan.metric, logits, rows).detach().float().cpu().numpy()
    return values


def means_of(
    model: Model, examples: Examples, prompts: Sequence[tuple[int, ...]], names: dict[int, str]
) -> dict[int, torch.Tensor]:
    """Return the mean ``[1, 1, ...]`` of sites over all positions of some prompts.

    Args:
        model: The model.
        examples: Their examples, for batches of equal length.
        prompts: Token ids.
        names: Full name of the site for each layer.
    """
    totals: dict[int, torch.Tensor] = {}
    count = 0
    for places in batches(examples, 64):
        trace = model.trace([prompts[p] for p in places], capture=list(names.values()), logits=None)
        count += int(trace.lengths.sum())
        for layer, name in names.items():
            summed = trace.value(name).sum((0, 1), keepdim=True)
            totals[layer] = summed if layer not in totals else totals[layer] + summed
    return {layer: total / count for layer, total in totals.items()}
