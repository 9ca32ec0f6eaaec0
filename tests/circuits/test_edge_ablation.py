"""Circuits of edges against a model written out, against nodes, paths and the two runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.circuits.slow_edges import Slow, ablated_writes, tiny_gpt2, tiny_llama
from tests.sweeps.test_sweeps import pairs

from microtome.behaviors import Examples
from microtome.behaviors.evaluate import evaluate
from microtome.behaviors.metrics import KLToUnchanged
from microtome.circuits import Ablator, EdgeAblator, EdgeScores
from microtome.circuits.finding import Method, find
from microtome.circuits.graph import EMBED, split_edge
from microtome.errors import ConfigError, ModelSupportError, UnknownNameError
from microtome.models.families import build
from microtome.sweeps import path_patching
from microtome.tracing.opening import load
from microtome.tracing.sites import at

TINY = {"gpt2": tiny_gpt2, "llama": tiny_llama}


def drawn(universe: tuple[str, ...], shares: tuple[float, ...]) -> list[frozenset[str]]:
    """Random circuits that keep about these shares of the edges."""
    source = np.random.default_rng(5)
    return [frozenset(e for e in universe if source.random() < share) for share in shares]


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_circuits_equal_the_model_written_out(family: str, ablation: str) -> None:
    module = TINY[family]()
    model, slow, examples = load(module), Slow(module), pairs((6, 6))
    ablator = EdgeAblator(model, examples, ablation=ablation)  # type: ignore[arg-type]
    everything = frozenset(ablator.universe)
    late = [everything - {e} for e in ablator.universe if "->a1" in e][:3]
    circuits = [*drawn(ablator.universe, (0.9, 0.5, 0.1, 0.0)), *late]
    found = ablator.run(circuits)["logit_difference"]
    prompts = {"clean": examples.clean, "corrupt": examples.corrupt}
    for row, example in enumerate(examples):
        ablated = ablated_writes(slow, prompts, row, ablation)
        for number, circuit in enumerate(circuits):
            end = slow.logits(example.clean, ablated, everything - circuit)
            wanted = float(end[example.answers[0][0]] - end[example.wrongs[0][0]])
            assert found[number, row] == pytest.approx(wanted, abs=2e-4), (number, row)
    assert np.ptp(found[:, 0]) > 0.1


def test_what_nothing_reaches_reads_nothing_and_not_what_rounding_leaves() -> None:
    module = tiny_llama(layers=3)
    model, slow, examples = load(module), Slow(module), pairs((7, 7))
    ablator = EdgeAblator(model, examples, ablation="zero")
    everything = frozenset(ablator.universe)
    circuits = drawn(ablator.universe, (0.0, *[0.1] * 12, *[0.15] * 12, 0.3))
    found = ablator.run(circuits)["logit_difference"]
    prompts = {"clean": examples.clean, "corrupt": examples.corrupt}
    for row, example in enumerate(examples):
        ablated = ablated_writes(slow, prompts, row, "zero")
        for number, circuit in enumerate(circuits):
            end = slow.logits(example.clean, ablated, everything - circuit)
            wanted = float(end[example.answers[0][0]] - end[example.wrongs[0][0]])
            assert found[number, row] == pytest.approx(wanted, abs=1e-4), (number, row)
    assert (found[0] == 0.0).all()
    assert np.ptp(found) > 1


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "granite", "gemma", "modernbert"])
@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_dropping_all_edges_of_nodes_is_ablating_the_nodes(family: str, ablation: str) -> None:
    model, examples = load(build(family)), pairs((7, 7, 8))
    edges = EdgeAblator(model, examples, ablation=ablation)  # type: ignore[arg-type]
    nodes = Ablator(model, examples, ablation=ablation)  # type: ignore[arg-type]
    kept = drawn(nodes.universe, (0.8, 0.6, 0.2))
    same = [frozenset(e for e in edges.universe if split_edge(e)[0] in k | {EMBED}) for k in kept]
    wanted = nodes.run(kept)["logit_difference"]
    np.testing.assert_allclose(edges.run(same)["logit_difference"], wanted, atol=3e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "stablelm", "gpt_bigcode", "mixtral"])
def test_everything_is_the_clean_run_and_nothing_the_corrupt_run(family: str) -> None:
    model, examples = load(build(family)), pairs((7, 5, 8))
    ablator = EdgeAblator(model, examples)
    found = ablator.run([frozenset(ablator.universe), frozenset()])["logit_difference"]
    np.testing.assert_allclose(found[0], evaluate(model, examples).values, atol=2e-5)
    wanted = evaluate(model, examples, side="corrupt").values
    np.testing.assert_allclose(found[1], wanted, atol=2e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_edge_is_one_path(family: str) -> None:
    model, examples = load(build(family)), pairs((7, 7))
    ablator = EdgeAblator(model, examples)
    everything = frozenset(ablator.universe)
    group = next(v for v in ablator.graph.targets if v.startswith("a2") and v.endswith("<k>"))
    receivers = {
        "a2.h1<q>": at("attn.in.q", layer=2, head=1), "m1": at("mlp.in", layer=1),
        group: at("attn.in.k", layer=2, head=0), "logits": at("logits"),
    }  # fmt: skip
    for target, site in receivers.items():
        paths = path_patching(model, examples, [site])
        cut = [everything - {f"{sender}->{target}"} for sender in paths.senders]
        found = ablator.run(cut)["logit_difference"]
        np.testing.assert_allclose(found.T, paths.values, atol=3e-5, err_msg=target)


def test_batches_of_circuits_lengths_and_restarts_change_nothing() -> None:
    model, examples = load(build("llama")), pairs((6, 9, 6, 7))
    ablator = EdgeAblator(model, examples)
    circuits = drawn(ablator.universe, (0.97, 0.5, 0.3))
    together = ablator.run(circuits)["logit_difference"]
    for row, circuit in zip(together, circuits, strict=True):
        alone = [
            EdgeAblator(model, Examples((e,))).run([circuit])["logit_difference"][0, 0]
            for e in examples
        ]
        np.testing.assert_allclose(row, alone, atol=3e-5)
    numbers = [ablator._cut(c) for c in circuits]
    again = ablator.run_without(numbers)["logit_difference"]
    np.testing.assert_array_equal(again, together)
    ablator._restarts = False
    ablator._groups = [ablator._group(places) for places in ablator._batches()]
    whole = ablator.run(circuits)["logit_difference"]
    np.testing.assert_allclose(whole, together, atol=3e-5)


def test_a_small_budget_makes_more_passes_with_the_same_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from microtome.circuits.edges import ablation as edge_ablation

    model, examples = load(build("gpt2")), pairs((6, 6))
    ablator = EdgeAblator(model, examples)
    circuits = drawn(ablator.universe, (0.9, 0.6, 0.3, 0.1))
    wanted = ablator.run(circuits)["logit_difference"]
    monkeypatch.setattr(edge_ablation, "BUDGET", 1)
    assert len(list(ablator._chunks(ablator._groups[0], [ablator._cut(c) for c in circuits],
                                    range(4)))) == 4  # fmt: skip
    np.testing.assert_allclose(ablator.run(circuits)["logit_difference"], wanted, atol=3e-5)


def test_weights_are_left_alone_and_divergence_is_zero_only_for_the_whole() -> None:
    model, examples = load(build("gpt2")), pairs((6, 6))
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    ablator = EdgeAblator(model, examples)
    divergence = KLToUnchanged()
    assert ablator.compare(frozenset(ablator.universe), divergence).max() == 0.0
    assert ablator.compare(frozenset(), divergence).min() > 1e-4
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())


def test_what_is_refused() -> None:
    model, examples = load(build("gpt2")), pairs((6,))
    with pytest.raises(ConfigError, match="expected one of resample"):
        EdgeAblator(model, examples, ablation="noise")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="No edge 'm0->a0.h0<q>'"):
        EdgeAblator(model, examples).run([frozenset({"m0->a0.h0<q>"})])
    with pytest.raises(ModelSupportError, match="needs that; use circuits of nodes"):
        EdgeAblator(load(build("olmo2")), examples)
    with pytest.raises(ModelSupportError, match="cannot be cut; use circuits of nodes"):
        EdgeAblator(load(build("gptj")), examples)
    with pytest.raises(ModelSupportError, match="no attention"):
        EdgeAblator(load(build("lfm2")), examples)
    with pytest.raises(ModelSupportError, match="does not add up"):
        EdgeAblator(load(build("granitemoeshared")), examples)


@pytest.mark.parametrize(
    "method",
    ["eap", "eap-ig", "clean-corrupted", "eap-ig-activations", "mask-ig", "information-flow"],
)
def test_every_finder_scores_a_model_in_bfloat16(method: Method) -> None:
    examples = pairs((6, 7))
    rough = find(load(build("llama").to(torch.bfloat16)), examples, method=method)
    exact = find(load(build("llama")), examples, method=method)
    assert isinstance(rough, EdgeScores)
    assert isinstance(exact, EdgeScores)
    assert np.corrcoef(rough.mean, exact.mean)[0, 1] > 0.95
