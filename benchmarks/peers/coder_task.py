"""What one worker is asked to train, the activations it trains on, and what it reports.

Activations with a known truth: unit directions that fire on their own, the ``n``-th in proportion
to ``n ** -0.5``, 24 of them in a row on average, at sizes ``|N(1, 1/4)|``, with a little noise.
Every worker gets the same rows in the same batches. The weights come from other random streams than
the data: with the same one, a dictionary would begin as the truth.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ACTIVE, NOISE, SEED = 24.0, 0.01, 0
WARM_UP = 20


@dataclass(frozen=True)
class CoderTask:
    """One line of the table.

    Attributes:
        data: File of the activations; made if it is not there.
        activation: ``topk`` or ``batchtopk``.
        variant: Which of the worker's ways.
        steps: Batches trained on.
        skipped: Steps at the start that are not timed.
        lr: Learning rate of Adam.
        threads: Threads of torch.
        d_in: Width of the activations.
        d_sae: Latents.
        k: Latents kept for a row.
        batch: Rows of a batch.
        truths: True directions.
        rows: Rows of activations.
    """

    data: str = ""
    activation: str = "topk"
    variant: str = "default"
    steps: int = 60
    skipped: int = 5
    lr: float = 5e-3
    threads: int = 1
    d_in: int = 512
    d_sae: int = 8192
    k: int = 32
    batch: int = 2048
    truths: int = 4096
    rows: int = 200_000

    @property
    def warm_up(self) -> int:
        """Steps in which the learning rate rises."""
        return max(1, min(WARM_UP, self.steps // 4))

    def arguments(self) -> list[str]:
        """Return the task as a command line that :func:`parse` reads."""
        return [f"--{f.name}={getattr(self, f.name)}" for f in fields(self)]


def parse(arguments: Sequence[str] | None = None) -> CoderTask:
    """Read a task from the command line and set torch's threads and seed."""
    parser = argparse.ArgumentParser()
    defaults: Any = CoderTask()
    for field in fields(CoderTask):
        default = getattr(defaults, field.name)
        parser.add_argument(f"--{field.name}", type=type(default), default=default)
    task = CoderTask(**vars(parser.parse_args(arguments)))
    torch.set_num_threads(task.threads)
    torch.manual_seed(777_001)
    return task


def activations(task: CoderTask) -> tuple[Tensor, Tensor]:
    """Return activations ``[row, d_in]`` and true directions ``[truth, d_in]``."""
    path = Path(task.data)
    if not path.is_file():
        values, truths = _draw(task)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        torch.save({"values": values, "truths": truths}, temporary)
        temporary.replace(path)
    found = torch.load(path, weights_only=True)
    return found["values"], found["truths"]


def _draw(task: CoderTask) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    truths = torch.randn(task.truths, task.d_in, generator=generator)
    truths /= truths.norm(dim=1, keepdim=True)
    chance = (torch.arange(task.truths).float() + 1) ** -0.5
    chance = (chance / chance.sum() * ACTIVE).clamp(max=0.5)
    values = torch.empty(task.rows, task.d_in)
    for part in values.split(4000):
        shape = (len(part), task.truths)
        on = torch.rand(shape, generator=generator) < chance
        size = (1 + 0.25 * torch.randn(shape, generator=generator)).abs()
        noise = torch.randn(part.shape, generator=generator)
        part.copy_((on * size) @ truths + NOISE * noise)
    return values, truths


def batches(values: Tensor, size: int) -> Iterator[Tensor]:
    """Yield batches without end, each pass over the rows in another order."""
    generator = torch.Generator().manual_seed(SEED + 1)
    while True:
        order = torch.randperm(len(values), generator=generator)
        for start in range(0, len(values) - size + 1, size):
            yield values[order[start : start + size]]


class Clock:
    """Wall and CPU time of each step; :meth:`tick` is called after every one."""

    def __init__(self, task: CoderTask) -> None:
        self.skipped, self.count = task.skipped, 0
        self.wall = self.cpu = (0.0, 0.0)

    def tick(self) -> None:
        """Take note that a step has ended."""
        self.count += 1
        now = (time.perf_counter(), time.process_time())
        if self.count <= self.skipped:
            self.wall, self.cpu = (now[0], now[0]), (now[1], now[1])
        else:
            self.wall, self.cpu = (self.wall[0], now[0]), (self.cpu[0], now[1])

    def per_step(self) -> dict[str, float]:
        """Return milliseconds of a step."""
        count = max(1, self.count - self.skipped)
        return {
            "wall_ms": 1e3 * (self.wall[1] - self.wall[0]) / count,
            "cpu_ms": 1e3 * (self.cpu[1] - self.cpu[0]) / count,
        }


def report(
    task: CoderTask,
    clock: Clock,
    values: Tensor,
    truths: Tensor,
    decoder: Tensor,
    reconstruct: Callable[[Tensor], tuple[Tensor, Tensor]],
    **notes: Any,
) -> None:
    """Print one line of JSON.

    Args:
        task: What was asked.
        clock: The times.
        values: The activations.
        truths: The true directions.
        decoder: One direction a row.
        reconstruct: Values ``[row, d_in]`` to reconstructions and latents ``[row, d_sae]``.
        notes: Whatever else is worth saying.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    best = _similarity(decoder.detach().float(), truths)
    fvu, l0 = _fvu(values, reconstruct)
    found = {
        **clock.per_step(),
        "peak_mb": peak,
        "fvu": fvu,
        "l0": l0,
        "mmcs": best.mean().item(),
        "recall": (best > 0.9).float().mean().item(),
        "steps": task.steps,
        "torch": torch.__version__,
        **notes,
    }
    print(json.dumps(found), flush=True)


def _similarity(decoder: Tensor, truths: Tensor) -> Tensor:
    """Return each true direction's largest cosine with a decoder row."""
    rows = decoder / decoder.norm(dim=1, keepdim=True).clamp_min(1e-8)
    return torch.stack([(truths @ part.T).amax(1) for part in rows.split(2048)]).amax(0)


@torch.no_grad()
def _fvu(
    values: Tensor, reconstruct: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    rows = values[:16384]
    mean = rows.mean(0)
    error = variance = active = 0.0
    for part in rows.split(1024):
        output, latents = reconstruct(part)
        error += (part - output).double().square().sum().item()
        variance += (part - mean).double().square().sum().item()
        active += (latents != 0).sum().item()
    return error / variance, active / len(rows)
