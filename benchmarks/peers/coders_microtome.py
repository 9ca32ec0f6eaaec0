"""Sparse coders by microtome, through its public interface.

``default`` keeps the other workers' schedule, ``own`` is microtome's own one; ``float32`` does
without products in fewer bits, whatever the processor; ``kronecker`` has an encoder of a quarter of
the units, eight by eight of which make 64 latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.peers.coder_task import Clock, CoderTask, activations, batches, parse, report
from microtome.sae import SAE, ActivationStore, Config, train


class SameBatches:
    """Activations in memory, in the batches that every worker gets.

    Args:
        values: ``[row, d_in]``.
    """

    def __init__(self, values: Tensor) -> None:
        self._values, self._store = values, ActivationStore.of(values)
        self.sites, self.rows = self._store.sites, self._store.rows
        self.width, self.mean, self.scale = self._store.width, self._store.mean, self._store.scale
        self.fingerprint, self._trained = "synthetic", False

    def batches(
        self, batch_size: int, *, seed: int, start: int = 0, sites: Sequence[str] | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the task's batches to train on; those to measure on are the store's."""
        if self._trained:
            yield from self._store.batches(batch_size, seed=seed, start=start)
        self._trained = True
        for batch in batches(self._values, batch_size):
            yield {self.sites[0]: batch}


class Ticks:
    """A progress that stops the time of each step."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def step(self, done: int, total: int, label: str) -> None:
        """Take note of a step."""
        self._clock.tick()


def config(task: CoderTask) -> Config:
    """Return the settings of a task."""
    own, paired = task.variant == "own", task.variant == "kronecker"
    return Config(
        activation=task.activation,  # type: ignore[arg-type]
        k=task.k,
        d_sae=task.d_sae,
        steps=task.steps,
        batch_size=task.batch,
        lr=task.lr,
        warm_up=None if own else task.warm_up,
        decay=0.2 if own else 0.0,
        precision="float32" if task.variant == "float32" else "auto",
        encoder="kronecker" if paired else "dense",
        kronecker=(task.d_sae // 64, 8, 8) if paired else None,
    )


def reconstruct(coder: SAE, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return reconstructions and latents as at inference."""
    latents = coder.encode(rows)
    return coder.decode(latents), latents


def main() -> None:
    """Train and report."""
    task = parse()
    values, truths = activations(task)
    clock = Clock(task)
    run = train(SameBatches(values), config(task), progress=Ticks(clock))  # type: ignore[arg-type]
    with torch.no_grad():
        report(
            task, clock, values, truths, run.weights["W_dec"],
            lambda rows: reconstruct(run, rows), dead_share=run.summary.dead_share,
        )  # fmt: skip


if __name__ == "__main__":
    main()
