"""What one worker is asked to do; the orchestrator writes it as a command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Task:
    """One cell of a table, at one shape.

    Attributes:
        workload: One of ``abcdef``.
        variant: Which of the worker's ways.
        repeats: Timed repeats.
        every: Sweeps run each so-many-th position or head of every layer; the time is scaled.
        layers: Blocks.
        heads: Heads of a block.
        width: Of the residual stream.
        vocabulary: Tokens.
        positions: Tokens of a prompt in the sweeps and in attribution patching.
        prompts: Prompt pairs of the sweeps.
        device: Where the model lies.
        dtype: Of the weights.
        threads: Threads of torch.
        save: File for the result, ``.npy``; empty for none.
    """

    workload: str = "c"
    variant: str = "default"
    repeats: int = 1
    every: int = 1
    layers: int = 12
    heads: int = 12
    width: int = 768
    vocabulary: int = 50257
    positions: int = 32
    prompts: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 2
    save: str = ""

    @property
    def columns(self) -> int:
        """Cells of one layer in the swept grid; 0 for workloads that are no sweep."""
        return {"c": self.positions, "d": self.heads}.get(self.workload, 0)

    @property
    def cells(self) -> int:
        """Patched runs of the whole sweep."""
        return self.layers * self.columns * self.prompts

    @property
    def sampled(self) -> int:
        """Patched runs that are really made."""
        return self.layers * len(range(0, self.columns, self.every)) * self.prompts

    def arguments(self) -> list[str]:
        """Return the task as a command line that :func:`parse` reads."""
        return [f"--{f.name}={getattr(self, f.name)}" for f in fields(self)]


def parse(arguments: Sequence[str] | None = None) -> Task:
    """Read a task from the command line."""
    parser = argparse.ArgumentParser()
    defaults: Any = Task()
    for field in fields(Task):
        default = getattr(defaults, field.name)
        parser.add_argument(f"--{field.name}", type=type(default), default=default)
    return Task(**vars(parser.parse_args(arguments)))
