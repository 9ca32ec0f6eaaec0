"""The training run that tests kill: run as a program it trains, checkpointing after every step."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from microtome.sae import SAE, ActivationStore, Config, train

CONFIG = Config(
    d_sae=96,
    k=4,
    steps=150,
    batch_size=64,
    dead_after=192,
    resample_every=20,
    eval_rows=256,
    seed=7,
)


def data(seed: int = 0) -> torch.Tensor:
    """Rows of a few of many directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(48, 16, generator=generator)
    on = torch.rand(2000, 48, generator=generator) < 0.06
    return on * torch.rand(2000, 48, generator=generator) @ directions + 0.3


def run(folder: Path | None, config: Config = CONFIG) -> SAE:
    """Train, or go on."""
    return train(ActivationStore.of(data()), config, folder=folder, checkpoint_seconds=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]))
