"""Sparse coders by dictionary_learning: its trainers' update on activations in memory.

The package imports nnsight, whose version it pins cannot be imported with a current transformers.
The trainers do not use it, so a stub stands in where the import fails.
"""

from __future__ import annotations

import os
import sys
import types
from importlib.metadata import version

os.environ.setdefault("WANDB_MODE", "disabled")

try:
    import nnsight  # noqa: F401

    STUBBED = False
except Exception:  # whatever goes wrong inside it
    stub = types.ModuleType("nnsight")
    stub.LanguageModel = object
    sys.modules["nnsight"] = stub
    STUBBED = True

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.top_k import TopKTrainer

from benchmarks.peers.coder_task import Clock, activations, batches, parse, report


def main() -> None:
    """Train and report."""
    task = parse()
    values, truths = activations(task)
    size = values.square().sum(1).mean().sqrt()  # what its normalize_activations divides by
    kind = TopKTrainer if task.activation == "topk" else BatchTopKTrainer
    trainer = kind(
        steps=task.steps, activation_dim=task.d_in, dict_size=task.d_sae, k=task.k, layer=0,
        lm_name="synthetic", lr=task.lr, warmup_steps=task.warm_up,
        threshold_start_step=min(100, task.steps // 2), seed=0, device="cpu",
    )  # fmt: skip
    clock, stream = Clock(task), batches(values, task.batch)
    for step in range(task.steps):
        trainer.update(step, next(stream) / size)
        clock.tick()

    def reconstruct(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents = trainer.ae.encode(rows / size)
        return trainer.ae.decode(latents) * size, latents

    report(
        task, clock, values, truths, trainer.ae.decoder.weight.T, reconstruct,
        version=version("dictionary-learning"), nnsight_stubbed=STUBBED,
    )  # fmt: skip


if __name__ == "__main__":
    main()
