"""Scoring every edge with microtome, and the bare passes that its cost is a multiple of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from transformers import GPT2LMHeadModel

from benchmarks.peers.common import RIGHT, WRONG, logit_difference
from benchmarks.peers.edge_pairs import Way, main, pairs
from benchmarks.peers.task import Task

if TYPE_CHECKING:
    from microtome.behaviors import Examples

STEPS = 5
"""Points of the integrated gradients."""


def ways(task: Task, module: GPT2LMHeadModel) -> Mapping[str, Way]:
    """Return the ways by name; opening the model is not part of what is timed."""
    clean, corrupt = pairs(task)
    if task.variant.startswith("raw"):
        return {
            "raw eap": lambda: passes(module, clean, corrupt, 1),
            "raw eap-ig": lambda: passes(module, clean, corrupt, STEPS),
        }
    from microtome.circuits import find
    from microtome.tracing.opening import load

    model, examples = load(module), _examples(clean, corrupt)
    return {
        "eap": lambda: find(model, examples, method="eap").matrix(),
        "eap-ig": lambda: find(model, examples, method="eap-ig", steps=STEPS).matrix(),
    }


def passes(module: GPT2LMHeadModel, clean: torch.Tensor, corrupt: torch.Tensor, times: int) -> None:
    """Run both prompts forward, and the clean ones forward and backward, weights frozen."""
    with torch.no_grad():
        module(torch.cat([clean, corrupt]), use_cache=False)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for _ in range(times):
        embedded = module.transformer.wte(clean).detach().requires_grad_(True)
        logits = module(inputs_embeds=embedded, use_cache=False).logits
        logit_difference(logits).sum().backward()


def _examples(clean: torch.Tensor, corrupt: torch.Tensor) -> Examples:
    from microtome.behaviors import Example, Examples

    rows = zip(clean.tolist(), corrupt.tolist(), strict=True)
    return Examples(
        tuple(
            Example(
                i, tuple(a), tuple(b), ((RIGHT,),), ((WRONG,),), str(i), "", "train", {}, {}, ""
            )
            for i, (a, b) in enumerate(rows)
        )
    )


if __name__ == "__main__":
    main(ways)
