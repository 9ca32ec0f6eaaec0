"""What the command line asks for."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, WORKLOADS, Contender, select
from benchmarks.peers.task import Task

SHAPES = {
    "MICROTOME_BENCH_LAYERS": "layers",
    "MICROTOME_BENCH_HEADS": "heads",
    "MICROTOME_BENCH_WIDTH": "width",
    "MICROTOME_BENCH_VOCABULARY": "vocabulary",
}
"""Environment variables that make the model smaller, to try the benchmarks."""

FALSE_CLAIMS = ("verdict", "shi", "scrub", "versus", "names")
"""Parts of the table of false claims."""


@dataclass(frozen=True)
class Options:
    """How the tables are made.

    Attributes:
        contenders: Who is compared.
        workloads: Letters of the workloads.
        rounds: Processes for each cell of the table.
        quick: One timed repeat for each process.
        threads: Threads of torch.
        json: Where everything is saved as JSON.
        what: Parts of the table of false claims.
        count: Cases of it, None for its own number.
        minutes: CPU minutes after which it begins no further case.
        resume: File with cases of it that are done.
        smaller: Fields of the task that were set by the environment.
    """

    contenders: tuple[Contender, ...] = CONTENDERS
    workloads: str = "".join(WORKLOADS)
    rounds: int = 2
    quick: bool = False
    threads: int = 2
    json: Path | None = None
    what: tuple[str, ...] = FALSE_CLAIMS
    count: int | None = None
    minutes: float = float("inf")
    resume: Path | None = None
    smaller: dict[str, Any] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether the model has GPT-2 small's shape."""
        return not self.smaller

    def shape(self) -> Task:
        """Return the model's shape."""
        return Task(threads=self.threads, **self.smaller)


def from_environment() -> dict[str, Any]:
    """Return the fields that environment variables set."""
    return {name: int(os.environ[key]) for key, name in SHAPES.items() if key in os.environ}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    parser.add_argument("--only", default="", help="packages, or package/variant, by commas")
    parser.add_argument("--workloads", default="".join(WORKLOADS), help="such as cd")
    parser.add_argument("--quick", action="store_true", help="each cell of the table timed once")
    parser.add_argument("--rounds", type=int, help="processes for each cell of the table (2)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="save everything")
    group = parser.add_argument_group("false_claims")
    group.add_argument("--what", default=",".join(FALSE_CLAIMS), help="parts, by commas")
    group.add_argument("--count", type=int, help="twins judged (1000); other parts take a share")
    group.add_argument("--minutes", type=float, default=float("inf"), help="CPU minutes at most")
    group.add_argument("--resume", type=Path, metavar="FILE", help="keep each case, and go on")


def options(asked: argparse.Namespace) -> Options:
    """Return the options that were given."""
    names: Sequence[str] = [name for name in asked.only.split(",") if name]
    return Options(
        contenders=select(names),
        workloads=asked.workloads,
        rounds=asked.rounds or (1 if asked.quick else 2),
        quick=asked.quick,
        threads=asked.threads,
        json=asked.json,
        what=_parts(asked.what),
        count=asked.count,
        minutes=asked.minutes,
        resume=asked.resume,
        smaller=from_environment(),
    )


def _parts(text: str) -> tuple[str, ...]:
    """Return the parts of the table of false claims that were asked for."""
    chosen = tuple(name for name in text.split(",") if name)
    if unknown := [name for name in chosen if name not in FALSE_CLAIMS]:
        raise SystemExit(f"no part {unknown[0]!r}; there are {', '.join(FALSE_CLAIMS)}")
    return chosen
