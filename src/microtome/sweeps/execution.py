"""Running the cells of a sweep: naively, batched, or restarted at the changed block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.behaviors.evaluate import batches, evaluate
from microtome.sweeps.cells import WHOLE, Cell, interventions, spans
from microtome.tracing.replay import BaseRun

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.sweeps.plans import Plan
    from microtome.tracing.model import Model

STREAMS = {"resid_pre": 0, "resid_post": 1}
"""Sites that are the stream itself, and how many blocks behind the entry they lie."""


@dataclass(frozen=True, eq=False)
class Group:
    """Examples of one length with their recorded runs.

    Attributes:
        places: Their places among the plan's examples.
        examples: The examples.
        base: The recorded run that is changed, None where it is not restarted.
        source: Value to patch in for each layer ``[example, pos, ...]``.
    """

    places: list[int]
    examples: Examples
    base: BaseRun | None
    source: dict[int, torch.Tensor]


def group_of(plan: Plan, places: list[int]) -> Group:
    """Record what the cells of some examples need."""
    examples = plan.examples.take(places)
    clean, corrupt = examples.clean, examples.corrupt
    here, there = (clean, corrupt) if plan.base == "clean" else (corrupt, clean)
    base = plan.model.record(here) if "restart" in plan.rules else None
    source: dict[int, torch.Tensor] = {}
    if plan.operation == "mean":
        width = len(examples[0].clean)
        source = {
            layer: m.expand(len(examples), width, *m.shape[2:]) for layer, m in plan.means.items()
        }
    elif plan.operation == "patch":
        layers = sorted({cell.layer for cell in plan.cells})
        names = [f"blocks.{layer}.{plan.site}" for layer in layers]
        trace = plan.model.trace(there, capture=names, logits=None)
        for layer, name in zip(layers, names, strict=True):
            source[layer] = trace.value(name)
    return Group(places, examples, base, source)


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


def run_cells(plan: Plan, group: Group, cells: Sequence[Cell], rules: Sequence[str]) -> np.ndarray:
    """Return the metric ``[cell, example]`` of cells that share an entry layer."""
    if not rules:
        return np.stack([_naive(plan, group, cell) for cell in cells])
    count = len(group.examples)
    rows = torch.arange(count).repeat(len(cells))
    many = group.examples.take(rows.tolist())
    if "restart" in rules and group.base is not None:
        logits = _restarted(plan, group, cells, rows)
    else:
        changes = interventions(cells, plan.site, plan.operation, group.source, group.examples)
        prompts = many.clean if plan.base == "clean" else many.corrupt
        found = plan.model.trace(prompts, interventions=changes, logits="last").logits
        logits = torch.empty(0) if found is None else found
    lengths = torch.tensor([len(e.clean) for e in many])
    values: np.ndarray = plan.metric(logits, lengths, many).detach().cpu().numpy()
    return values.reshape(len(cells), count)


def _naive(plan: Plan, group: Group, cell: Cell) -> np.ndarray:
    """Run one forward pass for each example."""
    values = np.zeros(len(group.examples))
    for row in range(len(group.examples)):
        one = group.examples.take([row])
        source = {layer: value[row : row + 1] for layer, value in group.source.items()}
        changes = interventions([cell], plan.site, plan.operation, source, one)
        prompt = one.clean if plan.base == "clean" else one.corrupt
        trace = plan.model.trace(prompt, interventions=changes, logits="last")
        if trace.logits is not None:
            values[row] = float(plan.metric(trace.logits, trace.lengths, one)[0])
    return values


def _restarted(plan: Plan, group: Group, cells: Sequence[Cell], rows: torch.Tensor) -> torch.Tensor:
    """Replay from the entry layer and read the logits at the prompts' ends."""
    base = group.base
    if base is None:
        raise ValueError("no base run was recorded")
    start = cells[0].start(plan.site)
    stream = base.streams[start][rows]
    if plan.site in STREAMS:
        stream = _with_cells(plan, group, cells, stream)
        last = plan.model.replay(base, start, stream, rows=rows)
    else:
        changes = interventions(cells, plan.site, plan.operation, group.source, group.examples)
        last = plan.model.replay(base, start, stream, rows=rows, interventions=changes)
    ends = torch.tensor([[base.lengths[int(r)] - 1] for r in rows])
    return plan.model.tail(last, ends)


def _with_cells(
    plan: Plan, group: Group, cells: Sequence[Cell], stream: torch.Tensor
) -> torch.Tensor:
    """Write the cells of a stream site straight into the stream."""
    stream = stream.clone()
    count = len(group.examples)
    for number, cell in enumerate(cells):
        if cell.unit != WHOLE:
            raise ValueError("the residual stream has no units")
        own = spans(cell, group.examples)
        for row in range(count):
            where = range(stream.shape[1]) if own is None else own[row]
            for p in where:
                new = 0.0 if plan.operation == "zero" else group.source[cell.layer][row, p]
                stream[number * count + row, p] = new
    return stream


def base_values(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Return the metric of the base run and of the source run of every example."""
    other = "corrupt" if plan.base == "clean" else "clean"
    base = evaluate(plan.model, plan.examples, metric=plan.metric, side=plan.base)
    source = evaluate(plan.model, plan.examples, metric=plan.metric, side=other)  # type: ignore[arg-type]
    return base.values, source.values
