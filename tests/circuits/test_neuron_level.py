"""Circuits of heads and neurons: against circuits of nodes and a hand-made patch, and judged."""

from __future__ import annotations

import numpy as np
import pytest
from tests.small import code_model
from tests.sweeps.test_sweeps import pairs

from microtome.attribution import neuron_attribution
from microtome.behaviors import quote_closing
from microtome.behaviors.evaluate import evaluate as evaluate_behavior
from microtome.circuits import Ablator, Circuit, NeuronAblator, evaluate, find, judge, takeovers
from microtome.circuits.judging.evaluation import knocked_out
from microtome.circuits.judging.levels import level_of, universe_of
from microtome.circuits.judging.matching import matched
from microtome.errors import ConfigError, ModelSupportError, UnknownNameError
from microtome.models.families import build
from microtome.tracing.opening import load
from microtome.tracing.sites import at


def with_neurons(nodes: frozenset[str], universe: tuple[str, ...]) -> frozenset[str]:
    """The heads among some nodes and all neurons of the MLPs among them."""
    return frozenset(name for name in universe if name.partition(".n")[0] in nodes)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma"])
@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_all_neurons_of_an_mlp_are_the_mlp(family: str, ablation: str) -> None:
    model, examples = load(build(family)), pairs((7, 7, 8))
    nodes = Ablator(model, examples, ablation=ablation)  # type: ignore[arg-type]
    neurons = NeuronAblator(model, examples, ablation=ablation)  # type: ignore[arg-type]
    random = np.random.default_rng(3)
    kept = [frozenset(n for n in nodes.universe if random.random() < s) for s in (1, 0.7, 0.3, 0)]
    found = neurons.run([with_neurons(k, neurons.universe) for k in kept])["logit_difference"]
    np.testing.assert_allclose(found, nodes.run(kept)["logit_difference"], atol=3e-5)
    np.testing.assert_allclose(found[0], evaluate_behavior(model, examples).values, atol=2e-5)


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_some_neurons_are_patched_as_by_hand(ablation: str) -> None:
    model, examples = load(build("llama")), pairs((7,))
    e = examples[0]
    ablator = NeuronAblator(model, examples, ablation=ablation)  # type: ignore[arg-type]
    lost = ("m0.n3", "m1.n0", "m1.n7")
    corrupt = model.trace(e.corrupt, capture=["blocks.0.mlp.act", "blocks.1.mlp.act"])
    changes = []
    for name in lost:
        layer, neuron = int(name[1]), int(name.split("n")[1])
        place = at("mlp.act", layer=layer, neuron=neuron)
        changes.append(place.zero() if ablation == "zero" else place.patch(corrupt))
    logits = model.trace(e.clean, interventions=changes).logits
    assert logits is not None
    wanted = float(logits[0, -1, e.answers[0][0]] - logits[0, -1, e.wrongs[0][0]])
    everything = frozenset(ablator.universe)
    found = ablator.run([everything - set(lost)])["logit_difference"]
    assert found[0, 0] == pytest.approx(wanted, abs=2e-5)
    assert abs(wanted - evaluate_behavior(model, examples).values[0]) > 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_scores_of_neurons_add_up_to_their_mlp(family: str) -> None:
    model, examples = load(build(family)), pairs((6, 7, 9))
    nodes = find(model, examples, method="attribution")
    neurons = find(model, examples, method="attribution", level="neuron")
    owner = np.array([name.partition(".n")[0] for name in neurons.names])
    scale = np.abs(nodes.values).max()
    for number, name in enumerate(nodes.names):
        summed = neurons.values[:, owner == name].sum(1)
        np.testing.assert_allclose(summed, nodes.values[:, number], atol=5e-6 * scale, err_msg=name)


def test_scores_of_neurons_are_the_mean_of_both_directions() -> None:
    model, examples = load(build("gpt2")), pairs((7, 7))
    found = find(model, examples, method="attribution", level="neuron").mean
    out = neuron_attribution(model, examples, base="clean")
    into = neuron_attribution(model, examples, base="corrupt")
    wanted = np.concatenate([(into[n] - out[n]) / 2 for n in out])
    names = universe_of(model, "neuron")
    chosen = [i for i, name in enumerate(names) if name.startswith("m")]
    np.testing.assert_allclose(found[chosen], wanted, atol=1e-6)


def test_exact_scores_are_those_of_single_neurons() -> None:
    model, examples = load(build("gpt2")), pairs((6, 6))
    found = find(model, examples, method="exact", level="neuron")
    ablator = NeuronAblator(model, examples)
    everything = frozenset(ablator.universe)
    some = ablator.universe[::17]
    values = ablator.run([everything, *(everything - {n} for n in some)])["logit_difference"]
    wanted = (values[0] - values[1:]).mean(1)
    np.testing.assert_allclose(found.mean[::17], wanted, atol=2e-5)


def test_knock_outs_go_by_the_mlp_and_random_circuits_by_the_layer() -> None:
    universe = universe_of(load(build("gpt2")), "neuron")
    parts = ("a0.h1", "m0.n0", "m0.n2", "m1.n5")
    circuit = Circuit(parts, universe, "chosen", level="neuron")
    groups = knocked_out(circuit)
    assert "m0" in groups and "m0.n0" not in groups["m0"] and "m0.n1" in groups["m0"]
    assert groups["a0.h0"] == {"a0.h0"} and "a0.h1" not in groups
    drawn = matched(circuit, np.random.default_rng(0))
    assert sorted(n.partition(".n")[0] if "n" in n else n[:2] for n in drawn) == [
        "a0", "m0", "m0", "m1"
    ]  # fmt: skip


def test_neurons_are_judged_to_the_verdict() -> None:
    model, behavior = code_model(), quote_closing(30)
    examples = behavior.prepare(model)
    scores = find(model, examples.split("train"), method="attribution", level="neuron")
    assert level_of(scores) == "neuron"
    found = judge(model, behavior, scores, nulls=1, gate=False, orders=1)
    assert found.circuit.level == "neuron" and found.verdict is not None
    assert "neurons" in found.verdict.sentence
    assert found.verdict.grade == "not established"
    whole = Circuit(scores.names, scores.names, "all", level="neuron")
    test = examples.split("test")
    assert evaluate(model, test, whole).faithfulness.value == pytest.approx(1.0)
    assert takeovers(model, test, whole) == {}


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from microtome.circuits import neurons

    model, examples = load(build("gpt2")), pairs((6, 6))
    with pytest.raises(ModelSupportError, match="cannot be written .*use circuits of nodes"):
        NeuronAblator(load(build("mixtral")), examples)
    with pytest.raises(UnknownNameError, match="No node 'm0.n99999'"):
        NeuronAblator(model, examples).run([frozenset({"m0.n99999"})])
    with pytest.raises(ConfigError, match="'contextual-decomposition' scores no neurons"):
        find(model, examples, method="contextual-decomposition", level="neuron")
    monkeypatch.setattr(neurons, "HELD", 1000)
    with pytest.raises(ConfigError, match="corrupt activations of .* neurons"):
        NeuronAblator(model, examples)
    assert len(NeuronAblator(model, examples, ablation="zero").universe) > 200
    with pytest.raises(ConfigError, match="that are held; take fewer examples, or level='node'"):
        find(model, examples, method="attribution", level="neuron")
