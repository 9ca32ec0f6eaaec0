"""The two unchanged runs of some rows: the one that is changed, and the one that is patched in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from microtome.sweeps.rows import Row, row_values
from microtome.tracing.replay import BaseRun

if TYPE_CHECKING:
    from microtome.sweeps.plans import Plan

TOGETHER = 512
"""Tokens up to which both runs share one pass: a larger pass would not be faster."""


@dataclass(frozen=True, eq=False)
class BothRuns:
    """What was recorded.

    Attributes:
        base: The run that is changed, for replays; its first rows are the rows asked for. None
            where nothing is restarted.
        here: Values of the run that is changed, by site.
        there: Values of the other run, empty where nothing is patched in from it.
        ends: Metric of both runs ``[2, row]``; NaN where not run.
    """

    base: BaseRun | None
    here: Mapping[str, torch.Tensor]
    there: Mapping[str, torch.Tensor]
    ends: np.ndarray


def both_runs(
    plan: Plan, rows: Sequence[Row], sites: Sequence[str], halves: Sequence[str]
) -> BothRuns:
    """Run rows unchanged, and the other run where values are taken from it.

    Args:
        plan: The plan.
        rows: Rows of one length.
        sites: Sites whose values are needed of both runs.
        halves: Sites whose values are needed of the run that is changed.
    """
    here, there = [row.base for row in rows], [row.source for row in rows]
    wanted = list(dict.fromkeys([*sites, *halves]))
    count = len(rows)
    if plan.operation != "patch":
        base, seen, logits = _recorded(plan, here, rows, wanted)
        return BothRuns(base, seen, {}, _ends(plan, rows, logits, None))
    if 2 * sum(map(len, here)) <= TOGETHER:
        base, seen, logits = _recorded(plan, [*here, *there], rows, wanted)
        ends = _ends(plan, rows, *((None, None) if logits is None else logits.split(count)))
        return BothRuns(
            base,
            {name: value[:count] for name, value in seen.items()},
            {name: value[count:] for name, value in seen.items() if name in sites},
            ends,
        )
    base, seen, logits = _recorded(plan, here, rows, wanted)
    trace = plan.model.trace(there, capture=sites, logits=_kept(rows))
    ends = _ends(plan, rows, logits, _at_reads(rows, trace.logits))
    return BothRuns(base, seen, {name: trace.value(name) for name in sites}, ends)


def _recorded(
    plan: Plan, tokens: Sequence[Sequence[int]], rows: Sequence[Row], captures: Sequence[str]
) -> tuple[BaseRun | None, dict[str, torch.Tensor], torch.Tensor | None]:
    """Return the run, captured values, and logits at the reads."""
    if "restart" not in plan.rules:
        trace = plan.model.trace(tokens, capture=captures, logits=_kept(rows))
        return None, {name: trace.value(name) for name in captures}, _at_reads(rows, trace.logits)
    base = plan.model.record(
        tokens, keys="suffix" in plan.rules, capture=captures, logits=_kept(rows)
    )
    return base, dict(base.captured), _at_reads(rows, base.logits)


def _kept(rows: Sequence[Row]) -> Literal["all", "last"]:
    return "last" if len(rows[0].reads) == 1 else "all"


def _at_reads(rows: Sequence[Row], logits: torch.Tensor | None) -> torch.Tensor | None:
    if logits is None or logits.shape[1] == 1:
        return logits
    return logits[:, list(rows[0].reads)]


def _ends(
    plan: Plan, rows: Sequence[Row], here: torch.Tensor | None, there: torch.Tensor | None
) -> np.ndarray:
    ends = np.full((2, len(rows)), np.nan)
    for side, logits in enumerate((here, there)):
        if logits is not None:
            ends[side] = row_values(plan.metric, logits, rows).detach().float().cpu().numpy()
    return ends
