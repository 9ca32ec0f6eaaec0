"""How the cost of a position sweep grows: with layers, with positions, with prompts."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.contenders import Contender
from benchmarks.environments import environment
from benchmarks.options import Options
from benchmarks.peers.task import Task
from benchmarks.running import call, difference
from benchmarks.workloads import describe, ratio

SERIES: dict[str, tuple[int, ...]] = {
    "layers": (3, 6, 12),
    "positions": (16, 32, 64, 128),
    "prompts": (1, 2, 4, 8),
}
SMALL: dict[str, tuple[int, ...]] = {"layers": (1, 2), "positions": (16, 32), "prompts": (1, 2)}
SAMPLES = 2
"""Positions of every layer that the naive way is timed on."""

FAST = Contender("microtome", "fast", "c")
NAIVE = Contender("raw", "naive", "c")


def table(options: Options) -> tuple[str, Any]:
    """Return the table and its data."""
    shape, load = options.shape(), os.getloadavg()[0]
    lines = [
        describe(shape, "growth of workload c", f"load {load:.1f}"),
        f"{'':14s}{'cells':>8s}{'wall s':>10s}{'CPU s':>10s}{'ms a cell':>11s}{'order':>8s}"
        f"{'naive s':>10s}{'order':>8s}{'to naive':>10s}{'difference':>12s}",
    ]
    data = []
    series = SERIES if options.full else SMALL
    with tempfile.TemporaryDirectory() as folder:
        for name, sizes in series.items():
            points = list(_points(shape, name, sizes, options.quick, Path(folder)))
            lines += [_line(name, at, points) for at in range(len(points))]
            data += [{"series": name, **point} for point in points]
    lines.append(
        "order: p where seconds grew as size to the power p since the line before. Cells times a "
        "pass give 2 for\nlayers and positions (attention and certification aside) and 1 for "
        "prompts. The naive way is timed on a sample."
    )
    return "\n".join(lines) + "\n", data


def _points(
    shape: Task, name: str, sizes: Sequence[int], quick: bool, folder: Path
) -> Iterator[dict[str, Any]]:
    """Yield the figures at each size, one process at a time."""
    for size in sizes:
        grown: dict[str, Any] = {name: size}
        here = replace(shape, workload="c", repeats=1 if quick else 3, **grown)
        fast, slow = folder / "fast.npy", folder / "slow.npy"
        found = call(
            environment(FAST.name), FAST.name, replace(here, variant=FAST.variant, save=str(fast))
        )
        naive = call(
            environment(NAIVE.name),
            NAIVE.name,
            replace(
                here, variant=NAIVE.variant, save=str(slow), every=max(1, here.positions // SAMPLES)
            ),
        )
        worked = "failure" not in found and "failure" not in naive
        apart = difference(slow, fast) if worked else None
        yield {"size": size, "fast": found, "naive": naive, "difference": apart}


def _line(name: str, at: int, points: Sequence[dict[str, Any]]) -> str:
    point = points[at]
    for part in ("fast", "naive"):
        if "failure" in point[part]:
            return f"{name} {point['size']}: {part} failed: {point[part]['failure']}"
    fast, naive = point["fast"], point["naive"]
    cpu = sorted(fast["cpu_s"])[len(fast["cpu_s"]) // 2]
    orders = [_order(points[at - 1 : at + 1], part) if at else "" for part in ("fast", "naive")]
    return (
        f"{name:10s}{point['size']:4d}{fast['cells']:8d}{fast['median_s']:10.3f}{cpu:10.3f}"
        f"{1000 * fast['median_s'] / fast['cells']:11.2f}{orders[0]:>8s}"
        f"{naive['median_s']:10.3f}{orders[1]:>8s}"
        f"{ratio(fast['median_s'], naive['median_s']):10.3f}{point['difference']:12.1e}"
    )


def _order(pair: Sequence[dict[str, Any]], part: str) -> str:
    """Return the exponent between two sizes."""
    before, after = pair
    if "failure" in before[part]:
        return ""
    grown = after[part]["median_s"] / before[part]["median_s"]
    return f"{math.log(grown) / math.log(after['size'] / before['size']):.2f}"
