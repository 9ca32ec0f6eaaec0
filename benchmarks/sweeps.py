"""Sweeps against one hooked forward pass for each cell, which is what the field's tools run."""

from __future__ import annotations

import os
import time

import torch

from benchmarks.shapes import THREADS, gpt2_small
from microtome.behaviors import Example, Examples
from microtome.sweeps import plan
from microtome.tracing.opening import load

EVERY = 16
"""The naive way is timed on every 16th cell and scaled: its cost is linear in the cells."""


def prompts() -> Examples:
    """Return one pair of 32 random tokens that differ in four."""
    draw = torch.Generator().manual_seed(1)
    clean = torch.randint(0, 50257, (32,), generator=draw)
    corrupt = clean.clone()
    for place in (3, 7, 15, 20):
        corrupt[place] = torch.randint(0, 50257, (1,), generator=draw)
    pair = (tuple(clean.tolist()), tuple(corrupt.tolist()))
    return Examples((Example(0, *pair, ((1000,),), ((2000,),), "c", "t", "test", {}, {}, ""),))


def table() -> str:
    """Return the table: residual stream 12 x 32 and heads 12 x 12, microtome against naive."""
    model = load(gpt2_small())
    examples = prompts()
    lines = [
        f"Sweeps, GPT-2-small shape, random weights, one pair of 32 tokens, {THREADS} threads, "
        f"load {os.getloadavg()[0]:.1f}",
        f"{'':28s}{'cells':>7s}{'seconds':>9s}{'naive':>9s}{'speed-up':>10s}  difference",
    ]
    for name, site in (("residual stream 12 x 32", "resid_pre"), ("heads 12 x 12", "attn.z")):
        fast = plan(model, examples, site)
        began = time.perf_counter()
        found = fast.execute()
        seconds = time.perf_counter() - began
        slow = plan(model, examples, site, rules=())
        cells = slow.cells[::EVERY]
        began = time.perf_counter()
        for cell in cells:
            _one(slow, cell)
        naive = (time.perf_counter() - began) * len(slow.cells) / len(cells)
        lines.append(
            f"{name:28s}{len(slow.cells):7d}{seconds:9.2f}{naive:9.2f}{naive / seconds:10.1f}  "
            f"{found.certificate['difference']:.1e}"
        )
    return "\n".join(lines) + "\n"


def _one(planned: object, cell: object) -> None:
    from microtome.sweeps.cells import interventions

    source = getattr(planned, "_source", None)
    if source is None:
        from microtome.sweeps.execution import group_of

        source = group_of(planned, [0]).source  # type: ignore[arg-type]
        object.__setattr__(planned, "_source", source)
    examples = planned.examples  # type: ignore[attr-defined]
    changes = interventions([cell], planned.site, planned.operation, source, examples)  # type: ignore[list-item,attr-defined]
    planned.model.trace(examples.corrupt, interventions=changes)  # type: ignore[attr-defined]
