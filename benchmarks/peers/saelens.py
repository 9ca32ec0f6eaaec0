"""Sparse coders by SAELens: its trainer on activations in memory; ``autocast`` in bfloat16."""

from __future__ import annotations

import os

os.environ.setdefault("WANDB_MODE", "disabled")

import torch
from sae_lens import __version__
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.training.sae_trainer import SAETrainer

from benchmarks.peers.coder_task import Clock, activations, batches, parse, report


def main() -> None:
    """Train and report."""
    task = parse()
    values, truths = activations(task)
    shape = {
        "d_in": task.d_in,
        "d_sae": task.d_sae,
        "k": task.k,
        "normalize_activations": "expected_average_only_in",
    }
    if task.activation == "topk":
        coder = TopKTrainingSAE(TopKTrainingSAEConfig(use_sparse_activations=False, **shape))
    else:
        coder = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**shape))
    settings = SAETrainerConfig(
        total_training_samples=task.steps * task.batch,
        train_batch_size_samples=task.batch,
        lr=task.lr,
        lr_end=task.lr / 10,
        lr_warm_up_steps=task.warm_up,
        lr_decay_steps=0,
        autocast=task.variant == "autocast",
        n_batches_for_norm_estimate=10,
        dead_feature_window=max(50, task.steps // 4),
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(settings, coder, batches(values, task.batch))
    clock, step = Clock(task), trainer._train_step

    def timed(**arguments: object) -> object:
        found = step(**arguments)
        clock.tick()
        return found

    trainer._train_step = timed
    coder = trainer.fit()
    coder.eval()

    def reconstruct(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents = coder.encode(rows)
        return coder.decode(latents), latents

    report(task, clock, values, truths, coder.W_dec, reconstruct, version=__version__)


if __name__ == "__main__":
    main()
