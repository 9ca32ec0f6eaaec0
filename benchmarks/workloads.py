"""The main table: workloads a to f, microtome beside raw PyTorch and the peers."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import NAIVE, SMART, WORKLOADS, Contender
from benchmarks.environments import Environment, environment
from benchmarks.options import Options
from benchmarks.peers.task import Task
from benchmarks.running import Measured, run

TIMED = ("wall s", "CPU s", "to naive", "to smart", "difference", "peak MB", "timed")
STARTED = ("import s", "build s", "wrap s", "loaded MB", "peak MB")


def table(options: Options) -> tuple[str, Any]:
    """Run everything that was asked for; return the table and its data."""
    return compare(options.shape(), options, "GPT-2-small shape" if options.full else "small shape")


def compare(shape: Task, options: Options, what: str) -> tuple[str, Any]:
    """Compare the contenders at one shape."""
    environments = {c.name: environment(c.name) for c in options.contenders}
    environments |= {NAIVE.name: environment(NAIVE.name)}
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        cells, wholes = run(
            options.contenders, environments, shape, workloads=options.workloads,
            rounds=options.rounds, quick=options.quick, folder=Path(folder),
        )  # fmt: skip
    header = describe(shape, what, f"load {before:.1f} before, {os.getloadavg()[0]:.1f} after")
    parts = [header]
    for workload in options.workloads:
        chosen = [cell for cell in cells if cell.workload == workload]
        parts.append(block(workload, chosen))
    parts.append(notes(environments, cells, wholes))
    data = {
        "shape": vars(shape),
        "header": header,
        "cells": [cell.as_json() for cell in cells],
        "whole": wholes,
    }
    return "\n".join(parts), data


def describe(shape: Task, what: str, load: str) -> str:
    """Return a table's heading: everything that the figures depend on."""
    return (
        f"Workloads, {what}: {shape.layers} layers, {shape.heads} heads, width {shape.width}, "
        f"{shape.vocabulary} tokens, random weights, {shape.dtype}, {shape.device}, "
        f"{shape.threads} threads; {platform.machine()}, {os.cpu_count()} cores, {load}\n"
    )


def block(workload: str, cells: Sequence[Measured]) -> str:
    """Return the lines of one workload."""
    columns = STARTED if workload == "f" else TIMED
    lines = [
        f"{workload}  {WORKLOADS[workload]}",
        "   " + f"{'':27s}" + "".join(f"{name:>11s}" for name in columns),
    ]
    wall = {cell.contender: cell.median("wall_s") for cell in cells}
    for cell in cells:
        values = _started(cell) if workload == "f" else _timed(cell, wall)
        figures = "".join(f"{value:>11s}" for value in values)
        lines.append(
            f"   {cell.contender.label:27s}" + ("     failed" if cell.failure else figures)
        )
    return "\n".join(lines) + "\n"


def _started(cell: Measured) -> list[str]:
    values = [cell.median(key) for key in ("import_s", "build_s", "wrap_s")]
    memory = [cell.median("loaded_mb"), cell.median("peak_mb")]
    return [_text(v, "{:.3f}") for v in values] + [_text(v, "{:.0f}") for v in memory]


def _timed(cell: Measured, wall: Mapping[Contender, float | None]) -> list[str]:
    seconds = cell.median("wall_s")
    sampled = any(report["sampled"] < report["cells"] for report in cell.reports)
    return [
        _text(seconds, "{:.3f}"),
        _text(cell.median("cpu_s"), "{:.3f}"),
        _text(ratio(seconds, wall.get(NAIVE)), "{:.3f}"),
        _text(ratio(seconds, wall.get(SMART)), "{:.2f}"),
        _text(cell.difference, "{:.1e}"),
        _text(cell.peak_mb, "{:.0f}"),
        f"{len(cell.times('wall_s'))}{' (part)' if sampled else ''}",
    ]


def ratio(seconds: float | None, reference: float | None) -> float | None:
    """Return a time as a multiple of a reference's."""
    return seconds / reference if seconds is not None and reference else None


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def notes(
    environments: Mapping[str, Environment],
    cells: Sequence[Measured],
    wholes: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return what the columns mean, versions, certificates, and what failed."""
    lines = [
        "to naive, to smart: wall seconds as a multiple of raw naive's and raw smart's (below 1 is "
        "faster).\ndifference: largest from the whole naive result. (part): a sample of the cells "
        "was timed and scaled.",
        *(
            f"whole naive sweep of {workload}, run once: {report['median_s']:.3f} s"
            for workload, report in wholes.items()
            if report["cells"]
        ),
    ]
    versions = {c.contender.name: r["version"] for c in cells for r in c.reports}
    lines.append("versions: " + "; ".join(f"{n} {v}" for n, v in versions.items()))
    for cell in cells:
        where = f"{cell.contender.label} on {cell.workload}"
        if cell.failure:
            lines.append(f"failed: {where}: {cell.failure}")
        lines += [f"{where}: {text}" for text in _certified(cell)]
    lines += [f"{name}: {found.note}" for name, found in environments.items() if found.note]
    return "\n".join(lines) + "\n"


def _certified(cell: Measured) -> list[str]:
    """Return what the certificate of microtome's sweep says that a reader must know."""
    lines = []
    if (seconds := cell.median("certificate_s")) is not None:
        lines.append(f"{seconds:.3f} s of it certification")
    if any("passed" in report for report in cell.reports):
        last = cell.reports[-1]
        lines.append(
            f"rules {', '.join(last.get('rules', ())) or 'none'}; certified to "
            f"{last['certified']:.1e} of {last['tolerance']:.1e} allowed"
            + (f"; fell back from {last['fell_back_from']}" if "fell_back_from" in last else "")
        )
    return lines
