"""What a sweep costs: forward passes, arithmetic, memory and expected seconds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from microtome.sweeps.plans import Cost, Plan

if TYPE_CHECKING:
    from microtome.models.anatomy import Anatomy
    from microtome.tracing.model import Model

COPIES = 12
"""Tensors of the stream's size that are alive at once in a block, roughly."""


def parameters_of(model: Model, anatomy: Anatomy) -> tuple[int, int]:
    """Return the weights of all blocks, and those of the unembedding."""
    blocks = sum(
        w.numel() for b in anatomy.blocks for w in model.module.get_submodule(b.path).parameters()
    )
    head = anatomy.d_model * anatomy.vocab if anatomy.tail.head else 0
    return blocks, head


def cost_of(plan: Plan) -> Cost:
    """Return the cost of a plan; one pass over one example is timed."""
    anatomy = plan.model.anatomy
    if anatomy is None:
        return Cost(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    count, runs = len(plan.examples), len(plan.cells) * len(plan.examples)
    blocks, head = parameters_of(plan.model, anatomy)
    layers = anatomy.n_layers
    share = [(layers - cell.start(plan.site)) / layers for cell in plan.cells]
    worth = sum(share) * count if "restart" in plan.rules else float(runs)
    tokens = sum(len(e.clean) for e in plan.examples) / count
    positions = 1 if "restart" in plan.rules else tokens
    flops = 2 * (blocks * tokens * (worth + 2 * count) + head * positions * runs)
    second = _timed(plan)
    width = max(len(e.clean) for e in plan.examples)
    rows = min(plan.rows, runs)
    memory = rows * width * max(anatomy.d_model, anatomy.d_mlp) * COPIES * 4 / 2**20
    full = 2 * (blocks + head) * tokens
    return Cost(runs, worth, float(runs), flops, memory, second * flops / max(full, 1.0))


def _timed(plan: Plan) -> float:
    """Return the seconds that one example takes in a batch."""
    some = plan.examples[:8]
    prompts = some.clean if plan.base == "clean" else some.corrupt
    plan.model.trace(prompts[:1], logits="last")
    began = time.perf_counter()
    with torch.no_grad():
        plan.model.trace(prompts, logits="last")
    return (time.perf_counter() - began) / len(prompts)
