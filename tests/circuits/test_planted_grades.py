"""Compiled programs reach the grade that they were planted for, by the default finder."""

from __future__ import annotations

import pytest
from benchmarks.planted import CASES, Case, judged

from microtome.circuits.judging.levels import default_finder
from microtome.circuits.truth import PROGRAMS, Realism, compile_program, program

QUICK = ("previous-token",)
"""Programs that are judged in quick runs, too."""


def _marked(case: Case) -> object:
    name = f"{case.program} {case.copies}"
    quick = case.program in QUICK and case.copies == "none"
    return pytest.param(case, id=name, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize("case", [_marked(case) for case in CASES])
def test_a_planted_circuit_reaches_its_grade(case: Case) -> None:
    planted, found = judged(case)
    assert found.verdict is not None and found.verdict.grade == case.expected
    assert found.nulls is not None and len(found.nulls.twins) == len(found.nulls.permuted) == 20
    true = set(planted.truth.functional("resample"))
    if case.copies == "none":
        assert found.circuit.kept == true
    else:
        # one of the two arms, and what takes over is named
        assert found.circuit.kept < true and found.verdict.backups


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_default_finder_ablates_what_is_few_enough(name: str) -> None:
    model = compile_program(program(name), realism=Realism()).model
    assert default_finder(model, "edge") == "exact-edges"
    assert default_finder(model, "node") == "exact"
