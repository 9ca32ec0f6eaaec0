"""Circuits: what must hold exactly, and the verdict's rules one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.small import code_model

from microtome.behaviors import Examples, quote_closing
from microtome.circuits import Ablator, Circuit, Evidence, curve, decide, evaluate, find, minimality
from microtome.circuits.connections import connections
from microtome.circuits.finding import sizes_up_to, top
from microtome.circuits.judging.evaluation import closeness, takeovers
from microtome.circuits.judging.matching import matched
from microtome.circuits.judging.permuting import inverted, permute
from microtome.circuits.judging.variation import stability
from microtome.circuits.results import Evaluation, Nulls, Stability
from microtome.core.seeds import rng
from microtome.core.stats import Interval
from microtome.errors import ConfigError, UnknownNameError
from microtome.tracing.model import Model


@pytest.fixture(scope="module")
def model() -> Model:
    return code_model()


@pytest.fixture(scope="module")
def examples(model: Model) -> Examples:
    return quote_closing(40).prepare(model).split("train")


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_the_whole_model_is_itself_and_the_empty_circuit_is_zero(
    model: Model, examples: Examples, ablation: str
) -> None:
    universe = Ablator(model, examples).universe
    whole = Circuit(universe, universe, "all")
    found = evaluate(model, examples, whole, ablation=ablation)  # type: ignore[arg-type]
    assert found.faithfulness.value == 1.0 and found.moved.value == pytest.approx(1.0)
    np.testing.assert_array_equal(found.circuit, found.full)
    np.testing.assert_array_equal(found.without, found.empty)
    none = evaluate(model, examples, Circuit((), universe, "none"), ablation=ablation)  # type: ignore[arg-type]
    assert none.faithfulness.value == 0.0


def test_circuits_in_one_pass_equal_one_at_a_time(model: Model, examples: Examples) -> None:
    ablator = Ablator(model, examples)
    circuits = [frozenset(ablator.universe[:k]) for k in (1, 4, 7)]
    together = ablator.run(circuits)["logit_difference"]
    for row, circuit in zip(together, circuits, strict=True):
        np.testing.assert_allclose(row, ablator.run([circuit])["logit_difference"][0], atol=2e-5)


def test_exact_scores_are_single_ablations(model: Model, examples: Examples) -> None:
    found = find(model, examples, method="exact")
    site = "blocks.1.mlp.out"
    other = model.trace(examples.corrupt[:1], capture=site)
    from microtome.tracing.sites import at

    patched = model.trace(examples.clean[:1], interventions=[at(site).patch(other)])
    one = examples[0]
    right, wrong = one.answers[0][0], one.wrongs[0][0]
    plain = model.trace(examples.clean[:1]).last()[0]
    changed = patched.last()[0]
    lost = (plain[right] - plain[wrong]) - (changed[right] - changed[wrong])
    assert found.values[0, found.names.index("m1")] == pytest.approx(float(lost), abs=1e-4)


def test_ranking_curve_and_minimality(model: Model, examples: Examples) -> None:
    scores = find(model, examples)
    sizes = sizes_up_to(len(scores.names))
    assert sizes[0] == 0 and sizes[-1] == len(scores.names)
    found = curve(model, examples, scores.ranking(), sizes)
    assert found.faithfulness[0].value == 0.0 and found.faithfulness[-1].value == 1.0
    circuit = Circuit(tuple(top(scores.ranking(), 3)), scores.names, "top 3")
    lost = minimality(model, examples, circuit)
    ablator = Ablator(model, examples)
    means = ablator.run(
        [frozenset(scores.names), frozenset(), circuit.kept, circuit.kept - {circuit.parts[0]}]
    )["logit_difference"].mean(1)
    assert lost[circuit.parts[0]] == pytest.approx(
        (means[2] - means[3]) / (means[0] - means[1]), rel=1e-6
    )
    assert set(takeovers(model, examples, circuit)) == circuit.rest
    edges = connections(model, examples[:8], circuit)
    assert all(a != b for a, b in edges)


def test_nulls_keep_what_they_should(model: Model, examples: Examples) -> None:
    swapped = permute(examples, 1)
    changed = [a.answers != b.answers for a, b in zip(examples, swapped, strict=True)]
    for cluster in np.unique(examples.clusters):
        inside = [c for c, e in zip(changed, examples, strict=True) if e.cluster == cluster]
        assert abs(sum(inside) - len(inside) / 2) <= 0.5
    assert all(a.answers == b.wrongs for a, b in zip(examples, inverted(examples), strict=True))
    universe = Ablator(model, examples).universe
    circuit = Circuit(("a0.h1", "a0.h2", "m1"), universe, "x")
    drawn = matched(circuit, rng(0, "t"))
    assert (
        sum(n.startswith("a0") for n in drawn) == 2 and sum(n.startswith("m") for n in drawn) == 1
    )
    scores = find(model, examples)
    assert stability(scores, examples.clusters, circuit, resamples=20).resamples == 20


def test_errors(model: Model, examples: Examples) -> None:
    with pytest.raises(ConfigError, match="resample"):
        Ablator(model, examples, ablation="random")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="a0.h1"):
        Ablator(model, examples).run([frozenset({"a0.h11"})])
    with pytest.raises(UnknownNameError, match="attribution"):
        find(model, examples, method="attributions")  # type: ignore[arg-type]


def test_saving(model: Model, examples: Examples, tmp_path: Path) -> None:
    universe = Ablator(model, examples).universe
    found = evaluate(model, examples, Circuit(universe[:3], universe, "x"))
    loaded = Evaluation.load(found.save(tmp_path / "e.json"))
    assert loaded.faithfulness == found.faithfulness
    np.testing.assert_array_equal(loaded.circuit, found.circuit)


def test_closeness_is_the_worst_of_the_interval() -> None:
    assert closeness(Interval(1.0, 0.9, 1.05)) == pytest.approx(0.9)
    assert closeness(Interval(1.0, 0.95, 1.3)) == pytest.approx(0.7)
    assert closeness(Interval(1.0, float("-inf"), 1.3)) == float("-inf")


def evidence(
    *,
    f: tuple[float, float, float] = (0.95, 0.9, 1.0),
    moved: float = 0.9,
    twins: float = 0.2,
    permuted: float = 0.1,
    inverted_low: float = 0.0,
    count: int = 20,
    takeover: float = 0.0,
    whole: bool = False,
) -> Evidence:
    values, nothing = np.ones(4), np.zeros(4)
    evaluation = Evaluation(
        "resample", Interval(*f), Interval(0.1, 0, 0.2), Interval(moved, moved - 0.1, moved + 0.1),
        Interval(0.9, 0.8, 1), Interval(0.5, 0.4, 0.6), values, nothing,
        values * 0.95, nothing, ("a",) * 4,
    )  # fmt: skip
    nulls = Nulls(
        np.full(count, twins), np.full(count, permuted), np.zeros(0), np.zeros((0, 0)), ()
    )
    return Evidence(
        circuit=Circuit(("m0", "m1") if whole else ("m0",), ("m0", "m1"), "x"),
        evaluation=evaluation,
        nulls=nulls,
        inverted_accuracy=Interval(inverted_low, inverted_low, inverted_low),
        gate=None,
        takeovers={"m1": (0.0, takeover)},
        stability=Stability({}, (), (), 1.0, 10),
        templates=4,
        train_templates=6,
    )


@pytest.mark.parametrize(
    ("changes", "grade"),
    [
        ({}, "sufficient and necessary"),
        ({"moved": 0.5, "takeover": 0.3}, "sufficient, redundant"),
        ({"moved": 0.5}, "sufficient only"),
        ({"f": (0.9, 0.79, 1.0)}, "not established"),
        ({"f": (1.1, 1.0, 1.21)}, "not established"),
        ({"whole": True}, "not established"),
        ({"twins": 0.95}, "not established"),
        ({"permuted": 0.91}, "not established"),
        ({"count": 19}, "not established"),
        ({"inverted_low": 0.6}, "not established"),
    ],
)
def test_every_rule_decides(changes: dict[str, object], grade: str) -> None:
    verdict = decide(evidence(**changes))  # type: ignore[arg-type]
    assert verdict.grade == grade
    assert verdict.sentence and "prove" not in verdict.sentence.lower()
    assert verdict.backups == (("m1",) if changes.get("takeover") else ())


def test_without_nulls_nothing_is_established() -> None:
    assert decide(replace(evidence(), nulls=None)).grade == "not established"


def test_a_planted_head_is_found(model: Model, examples: Examples) -> None:
    """Only one head's output may reach the logits; the finder has to name it first."""
    with torch.no_grad():
        saved = {n: p.clone() for n, p in model.module.named_parameters()}
        for n, p in model.module.named_parameters():
            if "mlp.c_proj" in n:
                p.zero_()
            if "attn.c_proj.weight" in n:
                rows = p.view(4, 8, -1)
                keep = rows[2].clone()
                p.zero_()
                if "h.1." in n:
                    p.view(4, 8, -1)[2] = keep
    try:
        scores = find(model, examples)
        assert scores.ranking()[0] == "a1.h2"
        universe = scores.names
        found = evaluate(model, examples, Circuit(("a1.h2",), universe, "planted"))
        assert found.faithfulness.value == pytest.approx(1.0, abs=1e-4)
        assert found.moved.value == pytest.approx(1.0, abs=1e-4)
    finally:
        with torch.no_grad():
            for n, p in model.module.named_parameters():
                p.copy_(saved[n])
