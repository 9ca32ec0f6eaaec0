"""What a sweep costs: forward passes, arithmetic, memory and expected seconds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.sweeps.execution import rows_by_shape
from microtome.sweeps.groups import group_of
from microtome.sweeps.schedule import OVERHEAD, Wave, waves

if TYPE_CHECKING:
    from microtome.models.anatomy import Anatomy
    from microtome.sweeps.plans import Plan
    from microtome.tracing.model import Model

COPIES = 6
"""Tensors as wide as the MLP that are alive at once in a block, roughly."""


@dataclass(frozen=True)
class Cost:
    """What a sweep costs.

    Attributes:
        runs: Patched runs, cells times examples.
        known: Runs that change nothing and are filled in.
        forwards: Whole forward passes of one example that this is worth.
        naive_forwards: What one forward pass for each run would be.
        flops: Floating-point operations, from the parameter counts.
        memory_mb: Activations of the largest batch.
        seconds: Expected time, from one timed pass.
    """

    runs: int
    known: int
    forwards: float
    naive_forwards: float
    flops: float
    memory_mb: float
    seconds: float


def parameters_of(model: Model, anatomy: Anatomy) -> tuple[int, int]:
    """Return the weights of all blocks, and those of the unembedding."""
    blocks = sum(
        w.numel() for b in anatomy.blocks for w in model.module.get_submodule(b.path).parameters()
    )
    head = anatomy.d_model * anatomy.vocab if anatomy.tail.head else 0
    return blocks, head


def bytes_of_token(model: Model, anatomy: Anatomy) -> int:
    """Return the activations of one token in a block, in bytes."""
    size = torch.finfo(model.dtype).bits // 8
    return max(anatomy.d_model, anatomy.d_mlp, 1) * COPIES * size


def cost_of(plan: Plan) -> Cost:
    """Return the cost of a plan: the waves of one group are counted, one pass is timed."""
    anatomy = plan.model.anatomy
    if anatomy is None:
        raise ValueError("the module is not a transformer")
    blocks, head = parameters_of(plan.model, anatomy)
    shapes = rows_by_shape(plan.lines, plan.per_group)
    sample = max(shapes, key=lambda places: len(places) * len(plan.lines[places[0]].base))
    group = group_of(plan, sample[:8])
    found = list(waves(plan, group))
    tokens, busy = _tokens(plan, found, group.width, anatomy.n_layers)
    share = len(plan.lines) / len(group.rows)
    per_layer = blocks / anatomy.n_layers
    runs = len(plan.cells) * len(plan.lines)
    read = 0 if "narrow" in plan.rules else int(group.moved.sum() * share)
    base = 2 * group.width * len(plan.lines)
    flops = 2 * (per_layer * (tokens * share + base * anatomy.n_layers) + head * (read + base))
    full = 2 * (blocks + head) * group.width
    largest = max((_size(plan, w, group.width) for w in found), default=group.width)
    second = _timed(plan) * (flops + 2 * per_layer * busy * share) / full
    return Cost(
        runs=runs,
        known=int((~group.moved).sum() * share),
        forwards=flops / full,
        naive_forwards=float(runs),
        flops=flops,
        memory_mb=largest * bytes_of_token(plan.model, anatomy) / 2**20,
        seconds=second,
    )


def _tokens(plan: Plan, found: Sequence[Wave], width: int, layers: int) -> tuple[float, float]:
    """Return tokens times blocks that are computed, and what blocks cost beside that."""
    tokens, busy = 0.0, 0.0
    for wave in found:
        starts = wave.entries if "restart" in plan.rules else np.zeros(len(wave.entries))
        firsts = wave.firsts if "fast" in plan.rules else np.full(len(starts), wave.first)
        tokens += float(((width - firsts) * (layers - starts)).sum())
        busy += OVERHEAD * float(layers - starts.min(initial=layers))
    return tokens, busy


def _size(plan: Plan, wave: Wave, width: int) -> int:
    if "fast" in plan.rules:
        return int((width - wave.firsts).sum())
    return len(wave.cells) * (width - wave.first)


def _timed(plan: Plan) -> float:
    """Return the seconds that one row takes in a batch of passes."""
    places = rows_by_shape(plan.lines, 8)[0]
    prompts = [plan.lines[p].base for p in places]
    prompts = (prompts * 8)[:8]
    plan.model.trace(prompts[:1], logits="all")
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        plan.model.trace(prompts, logits="all")
        seconds.append(time.perf_counter() - began)
    return min(seconds) / len(prompts)
