"""Planted circuits: which grade each compiled program reaches, judged edge by edge."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from microtome.circuits import Judgment, judge, plant
from microtome.circuits.truth import PROGRAMS, Realism
from microtome.circuits.truth.planting import Planted
from microtome.circuits.truth.realism import Copies

FAITHFULNESS = 0.99
"""Asked for on validation: a compiled program computes exactly, so its circuit gives everything."""

ITEMS = 200

BACKUPS = ("previous-token",)
"""Programs that are also planted with a backup copy.

They are searched by gradients: where either copy is enough, ablating one edge alone does nothing.
"""


@dataclass(frozen=True)
class Case:
    """One planted circuit.

    Attributes:
        program: Its program.
        copies: How it is made redundant.
        finder: The finder; that of small graphs by default.
    """

    program: str
    copies: Copies = "none"
    finder: str | None = None

    @property
    def expected(self) -> str:
        """The grade that it has to reach."""
        return "sufficient and necessary" if self.copies == "none" else "sufficient, redundant"


CASES = (
    *(Case(name) for name in PROGRAMS),
    *(Case(name, "backup", "eap-ig") for name in BACKUPS),
)


def judged(case: Case, *, n: int = ITEMS) -> tuple[Planted, Judgment]:
    """Plant a program, and judge what the finder finds of it.

    Args:
        case: The planted circuit.
        n: Items of the behavior.
    """
    planted = plant(case.program, realism=Realism(copies=case.copies), n=n)
    found = judge(
        planted.model, planted.behavior, finder=case.finder, level="edge",
        faithfulness=FAITHFULNESS, orders=2,
    )  # fmt: skip
    return planted, found


def table() -> str:
    """Return one line for each planted circuit; MICROTOME_PLANTED names some programs."""
    torch.set_num_threads(1)
    some = os.environ.get("MICROTOME_PLANTED", "")
    cases = [c for c in CASES if not some or c.program in some.split(",")]
    began = time.perf_counter()
    lines, reached = [], 0
    for case in cases:
        planted, found = judged(case)
        true = set(planted.truth.functional("resample"))
        grade = found.verdict.grade if found.verdict is not None else "no verdict"
        reached += grade == case.expected
        name = case.program if case.copies == "none" else f"{case.program}, {case.copies}"
        lines.append(
            f"  {name:24s}{len(found.circuit.kept):4d} of {len(found.circuit.universe):4d} edges"
            f"{len(found.circuit.kept & true):4d} of {len(true):3d} true  {grade}"
        )
    head = f"Planted circuits, judged edge by edge with 20 twins and 20 permutations, {ITEMS} items"
    end = f"  grade as planted: {reached} of {len(cases)}; {time.perf_counter() - began:.0f} s"
    return "\n".join([head, *lines, end]) + "\n"
