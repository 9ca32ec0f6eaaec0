"""ACDC and learned masks: against slow greedy runs, other passes, and planted circuits."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.circuits.slow_edges import tiny_gpt2, tiny_llama
from tests.circuits.test_edge_agreement import toy
from tests.sweeps.test_sweeps import pairs

from microtome.behaviors import Examples
from microtome.circuits import EdgeAblator, EdgeScores, find
from microtome.circuits.edges.reading import Reading
from microtome.circuits.edges.writing import write_sites
from microtome.circuits.references import References
from microtome.circuits.search.gates import HardConcrete, UniformSampling
from microtome.circuits.search.masked_pass import MaskedPass
from microtome.circuits.search.objectives import objective
from microtome.circuits.truth import plant, separation
from microtome.circuits.truth.planting import Planted
from microtome.core.seeds import torch_generator
from microtome.errors import ConfigError, MetricError
from microtome.models.families import build
from microtome.tracing.model import Model
from microtome.tracing.opening import load

LEARNED = ("edge-pruning", "ugs")


@pytest.fixture(scope="module")
def induction() -> Planted:
    return plant("induction", n=40)


def greedy(model: Model, examples: Examples, metric: str, levels: list[float]) -> dict[str, float]:
    """The level at which each edge dies, one circuit at a time; 0 for those that never do."""
    ablator = EdgeAblator(model, examples)
    chosen = objective(model, examples, metric, "The slow search")
    graph = ablator.graph

    def value(kept: set[str]) -> float:
        return float(ablator.run([frozenset(kept)], [chosen])[chosen.name].mean())

    kept, died = set(graph.edges), dict.fromkeys(graph.edges, 0.0)
    for level in levels:
        for target in reversed(graph.targets):
            for source in reversed(graph.sources):
                edge = f"{source}->{target}"
                if edge in kept and abs(value(kept - {edge}) - value(kept)) < level:
                    kept.remove(edge)
                    died[edge] = level
    return died


@pytest.mark.parametrize("metric", ["kl_to_unchanged", "logit_difference"])
@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_the_search_is_the_greedy_one(make, metric: str) -> None:  # type: ignore[no-untyped-def]
    model, examples = load(make()), pairs((6, 7))
    found = find(model, examples, method="exact-edges")
    levels = [float(np.quantile(np.abs(found.mean), q)) for q in (0.4, 0.8)]
    scores = find(model, examples, method="acdc", metric=metric, thresholds=levels)
    wanted = greedy(model, examples, metric, levels)
    assert set(wanted.values()) >= {levels[0], levels[1]}
    for edge, score in zip(scores.universe, scores.mean, strict=True):
        below = {levels[0]: 0.0, levels[1]: levels[0], 0.0: levels[1]}[wanted[edge]]
        above = wanted[edge] or np.inf
        assert below <= score <= above, edge


def test_what_speaks_against_the_behavior_counts_the_same() -> None:
    model, examples = load(tiny_gpt2()), pairs((6, 6))
    turned = Examples(
        tuple(replace(e, answers=e.wrongs, wrongs=e.answers) for e in examples), (), "turned"
    )
    options = {"method": "acdc", "metric": "logit_difference"}
    one, other = (find(model, e, **options) for e in (examples, turned))
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-3, atol=1e-5)
    assert one.mean.min() >= 0


def test_one_arm_of_an_or_gate_is_lost_and_the_other_order_loses_the_other() -> None:
    planted = plant("or", n=120)
    examples = planted.behavior.prepare(planted.model)
    bits = [planted.model.tokens(e.clean)[2:4] for e in examples]
    both = examples.take([i for i, two in enumerate(bits) if all("1" in bit for bit in two)])
    assert len(both) >= 10
    kept = {}
    for order in ("latest", "earliest"):
        scores = find(planted.model, both, method="acdc", order=order)
        assert f"{order} source first" in scores.method
        dead = 1e-3 * scores.mean.max()
        alive = {e for e, s in zip(scores.universe, scores.mean, strict=True) if s > dead}
        kept[order] = alive & set(planted.truth.functional("resample"))
    arms = [{e for e in kept[order] if "->m" in e} for order in kept]
    assert all(len(arm) == 1 for arm in arms) and arms[0] != arms[1]
    # both orders together have the whole gate
    assert kept["latest"] | kept["earliest"] == set(planted.truth.functional("resample"))


@pytest.mark.parametrize("name", ["and", "or", "xor", "induction"])
def test_the_search_finds_gates(name: str) -> None:
    planted = plant(name, n=40)
    examples = planted.behavior.prepare(planted.model)
    scores = find(planted.model, examples, method="acdc")
    found = separation(scores.universe, scores.mean, planted.truth.functional("resample"))
    assert found.auc >= 0.99 and found.average_precision >= 0.9


def test_all_examples_are_used_however_they_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    from microtome.circuits.edges import port_gradients

    model, examples = load(tiny_gpt2()), pairs((6, 7, 6, 8))
    levels = [0.05, 0.2, 0.8]
    whole = find(model, examples, method="acdc", thresholds=levels)
    half = find(model, examples.take([0, 1]), method="acdc", thresholds=levels)
    assert np.abs(whole.mean - half.mean).max() > 0.01 and whole.n == 4
    monkeypatch.setattr(port_gradients, "TABLE", 1)
    single = find(model, examples, method="acdc", thresholds=levels)
    np.testing.assert_allclose(single.mean, whole.mean, rtol=1e-2, atol=1e-4)
    assert np.isnan(whole.standard_error).all()


def test_the_search_of_a_small_model_takes_less_than_two_seconds() -> None:
    model, examples = toy()
    find(model, examples, method="eap")
    began = time.process_time()
    find(model, examples, method="acdc")
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "qwen3"])
@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_a_pass_with_masks_of_0_and_1_is_a_circuit(family: str, ablation: str) -> None:
    model, examples = load(build(family)), pairs((6, 6))
    reading = Reading.of(model)
    graph = reading.graph
    kept = np.random.default_rng(1).random(graph.n_edges) < 0.5
    ablator = EdgeAblator(model, examples, ablation=ablation)  # type: ignore[arg-type]
    wanted = ablator.run_without([np.flatnonzero(~kept)])["logit_difference"][0]
    missing = torch.zeros(2, *graph.possible.shape)
    missing[:, graph.pairs[:, 0], graph.pairs[:, 1]] = torch.from_numpy(~kept).float()
    instead = References(model, examples, write_sites(reading), ablation=ablation).of(examples)
    changes = MaskedPass(reading, missing, instead).interventions()
    trace = model.trace(examples.clean, interventions=changes, logits="last")
    chosen = objective(model, examples, "logit_difference", "A test")
    found = chosen(trace.logits, trace.lengths, examples)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4 * np.abs(wanted).max() + 1e-4)


def test_the_slope_of_the_masks_is_edge_attribution() -> None:
    model, examples = load(tiny_llama()), pairs((6, 6))
    reading = Reading.of(model)
    graph = reading.graph
    missing = torch.zeros(2, *graph.possible.shape, requires_grad=True)
    instead = References(model, examples, write_sites(reading), ablation="resample").of(examples)
    changes = MaskedPass(reading, missing, instead).interventions()
    trace = model.trace(examples.clean, interventions=changes, logits="last", grad=True)
    chosen = objective(model, examples, "logit_difference", "A test")
    (slope,) = torch.autograd.grad(
        chosen(trace.logits, trace.lengths, examples).mean(), missing
    )  # fmt: skip
    wanted = find(model, examples, method="eap").mean
    found = -slope.sum(0).numpy()[graph.pairs[:, 0], graph.pairs[:, 1]]
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def test_gates_are_drawn_as_they_say() -> None:
    generator = torch_generator(0, "gates")
    for kind in (HardConcrete, UniformSampling):
        gates = kind(3, 0.0, torch.device("cpu"))
        with torch.no_grad():
            gates.logits.copy_(torch.tensor([-2.0, 0.0, 2.0]))
        drawn = gates.drawn(20_000, generator)
        assert float(drawn.detach().min()) == 0.0 and float(drawn.detach().max()) == 1.0
        kept = (drawn > 0).float().mean(0)
        if kind is HardConcrete:
            np.testing.assert_allclose(kept, gates.kept().detach(), atol=0.015)
    # the sampled slope of g ** 2 is that of the integral, 1, times the slope of the probability
    gates = UniformSampling(1, 0.4, torch.device("cpu"))
    (slope,) = torch.autograd.grad((gates.drawn(200_000, generator) ** 2).mean(), gates.logits)
    kept = float(gates.kept().detach())
    assert float(slope) == pytest.approx(kept * (1 - kept), rel=0.03)


@pytest.mark.parametrize("method", LEARNED)
def test_masks_find_the_planted_circuit_at_the_size_asked_for(
    method: str, induction: Planted
) -> None:
    examples = induction.behavior.prepare(induction.model)
    truth = induction.truth.functional("resample")
    options = {"method": method, "edges": len(truth), "steps": 100}
    scores = find(induction.model, examples, **options)
    assert isinstance(scores, EdgeScores)
    assert set(scores.select(edges=len(truth)).parts) == set(truth)
    assert scores.mean.sum() == pytest.approx(len(truth), abs=4)
    assert ((scores.mean > 0) & (scores.mean < 1)).all()
    again = find(induction.model, examples, **options)
    np.testing.assert_array_equal(again.mean, scores.mean)
    few = [find(induction.model, examples, **{**options, "steps": 5}, seed=s) for s in (0, 1)]
    assert not np.array_equal(few[0].mean, few[1].mean)


@pytest.mark.parametrize("method", LEARNED)
def test_masks_are_trained_under_the_ablation_asked_for(method: str) -> None:
    planted = plant("previous-token", n=40)
    examples = planted.behavior.prepare(planted.model)
    for ablation in ("resample", "zero"):
        truth = planted.truth.functional(ablation)
        scores = find(
            planted.model, examples, method=method, edges=len(truth), ablation=ablation,
            metric="logit_difference", steps=100,
        )  # fmt: skip
        assert scores.ablation == ablation
        assert separation(scores.universe, scores.mean, truth).auc > 0.97


def test_an_interrupted_training_leaves_the_model_alone() -> None:
    module = tiny_gpt2()
    wanted = [p.requires_grad for p in module.parameters()]

    class Interrupt:
        def step(self, done: int, total: int, label: str) -> None:
            assert (total, label) == (200, "ugs")
            if done == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find(load(module), pairs((6, 6)), method="ugs", progress=Interrupt())
    assert [p.requires_grad for p in module.parameters()] == wanted
    assert all(p.grad is None for p in module.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_refusals() -> None:
    model, examples = load(tiny_gpt2()), pairs((6,))
    for options, words in (
        ({"method": "acdc", "order": "first"}, "latest, earliest, random"),
        ({"method": "acdc", "thresholds": 0}, "at least 1"),
        ({"method": "acdc", "thresholds": [0.2, 0.1]}, "rising"),
        ({"method": "ugs", "edges": 0}, "edges=0"),
        ({"method": "edge-pruning", "steps": 0}, "steps=0"),
    ):
        with pytest.raises(ConfigError, match=words):
            find(model, examples, **options)  # type: ignore[arg-type]
    with pytest.raises(MetricError):
        find(model, examples, method="acdc", metric="sequence_log_probability")
