"""What is compared: packages, their ways of doing the workloads, how often each is timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.peers.task import Task

WORKLOADS = {
    "a": "plain forward pass, 8 x 128 tokens",
    "b": "the same, keeping four values of every block",
    "c": "patching of the stream, every block x position, one pair",
    "d": "patching of every head's output, the same pair",
    "e": "attribution patching, heads and MLPs, 8 pairs",
    "f": "import, building, wrapping",
}

SAMPLED_EVERY = {"c": 16, "d": 12}
"""Which cells are timed where each is a forward pass of its own: the cost is linear in them."""


@dataclass(frozen=True)
class Contender:
    """One package in one of its ways.

    Attributes:
        name: The package: a worker of ``benchmarks/peers``.
        variant: The way.
        workloads: Letters of what it is timed on.
        repeats: Timed repeats of a sweep in each round.
        sampled: Whether its sweeps run a sample, scaled to the whole.
    """

    name: str
    variant: str
    workloads: str
    repeats: int = 3
    sampled: bool = False

    @property
    def label(self) -> str:
        """Name and way."""
        return f"{self.name} {self.variant}"

    def task(self, shape: Task, workload: str, *, save: str = "", quick: bool = False) -> Task:
        """Return the task of one workload at a shape."""
        every = SAMPLED_EVERY.get(workload, 1) if self.sampled else 1
        repeats = self.repeats if workload in SAMPLED_EVERY else 3
        return replace(
            shape,
            workload=workload,
            variant=self.variant,
            repeats=1 if quick else repeats,
            every=every,
            save=save,
        )


NAIVE = Contender("raw", "naive", "abcdef", sampled=True)
SMART = Contender("raw", "smart", "cde")

CONTENDERS = (
    NAIVE,
    Contender("raw", "batched", "cd", repeats=1),
    Contender("raw", "restart", "cd", repeats=2),
    Contender("raw", "kv", "cd"),
    SMART,
    Contender("microtome", "fast", "abcdef"),
    Contender("microtome", "generic", "cd"),
    Contender("transformer_lens", "default", "abcdef", sampled=True),
    Contender("transformer_lens", "batched", "cd", repeats=1),
    Contender("transformer_lens", "restart", "c", repeats=1),
    Contender("nnsight", "default", "abcdef", sampled=True),
    Contender("nnsight", "batched", "cd", repeats=1),
    Contender("pyvene", "default", "abcdf", sampled=True),
    Contender("pyvene", "batched", "cd", repeats=1),
    Contender("captum", "default", "abcdef", repeats=1),
    Contender("captum", "batched", "cd", repeats=1),
)


def select(only: Sequence[str] = ()) -> tuple[Contender, ...]:
    """Return the contenders of these packages, or of ``package/variant``; all by default.

    Raises:
        SystemExit: If a name fits none.
    """
    known = {c.name for c in CONTENDERS} | {f"{c.name}/{c.variant}" for c in CONTENDERS}
    if unknown := [name for name in only if name not in known]:
        raise SystemExit(f"no contender {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return tuple(
        c for c in CONTENDERS if not only or c.name in only or f"{c.name}/{c.variant}" in only
    )
