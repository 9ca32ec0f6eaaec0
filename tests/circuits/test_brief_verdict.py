"""The verdict alone: the same as judging's, and permutations with larger effects than asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.circuits.planted import planted_model

from microtome.behaviors import quote_closing
from microtome.behaviors.check import check
from microtome.circuits import judge
from microtome.circuits.judging.briefly import BriefVerdict, brief_verdict
from microtome.circuits.judging.nulls import search_nulls
from microtome.circuits.truth.planting import Planted, plant
from microtome.circuits.verdict import GRADES


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant("previous-token", n=60)


@pytest.fixture(scope="module")
def found(planted: Planted) -> BriefVerdict:
    return brief_verdict(
        planted.model, planted.behavior.prepare(planted.model), "attribution", seed=3
    )


def test_it_agrees_with_judging(planted: Planted, found: BriefVerdict) -> None:
    judged = judge(planted.model, planted.behavior, finder="attribution", gate=False, seed=3)
    assert judged.verdict is not None and judged.nulls is not None and found.nulls is not None
    assert found.verdict.grade == judged.verdict.grade == GRADES[0]
    assert found.circuit.parts == judged.circuit.parts == planted.circuit().parts
    ours, theirs = ({r["name"]: r for r in v.rules} for v in (found.verdict, judged.verdict))
    for name in set(ours) - {"stable"}:
        assert ours[name] == theirs[name]
    for name in ("twins", "permuted", "random"):
        np.testing.assert_array_equal(getattr(found.nulls, name), getattr(judged.nulls, name))


def test_a_given_circuit_is_decided_on(planted: Planted) -> None:
    examples = planted.behavior.prepare(planted.model)
    other = next(p for p in planted.circuit().universe if p not in planted.circuit().kept)
    wrong = replace(planted.circuit(), parts=(other,))
    decided = brief_verdict(planted.model, examples, "attribution", circuit=wrong)
    assert decided.circuit.parts == (other,) and decided.nulls is None
    assert decided.verdict.grade == GRADES[-1]


def test_nothing_is_searched_behind_a_closed_gate() -> None:
    model, behavior = planted_model(("m1",)), quote_closing(60)
    examples = behavior.prepare(model)
    gate = check(model, behavior, examples=examples)
    assert not gate.passed
    decided = brief_verdict(model, examples, "attribution", gate=gate)
    assert decided.nulls is None and decided.verdict.grade == GRADES[-1]
    assert {r["name"]: r["outcome"] for r in decided.verdict.rules}["gate"] == "fail"


def test_permutations_of_chance_have_effects_as_large(
    planted: Planted, found: BriefVerdict
) -> None:
    """Against true answers no permutation comes near; against permuted ones others exceed them."""
    assert found.nulls is not None and found.nulls.permuted.max() < 0.9

    def permuted(seed: int) -> np.ndarray:
        examples = planted.behavior.shuffle(seed).prepare(planted.model)
        splits = (examples.split(s) for s in ("train", "validation", "test"))
        return search_nulls(
            planted.model, *splits, planted.circuit(), (), count=5, ablation="resample",
            metric="logit_difference", method="attribution", seed=seed,
        ).permuted  # fmt: skip

    rows = [permuted(seed) for seed in range(4)]
    assert all((row >= 0).all() for row in rows)
    # exchangeable: the asked effect is the largest of six in a sixth of the cases
    assert sum(row.max() > 1.0 for row in rows) >= 2
