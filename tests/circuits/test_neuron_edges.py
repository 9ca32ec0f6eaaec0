"""Edges that leave neurons: sums against whole MLPs and neurons, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.sweeps.test_sweeps import pairs

from microtome.attribution import neuron_attribution
from microtome.circuits import EdgeScores, coarsen, diagram, evaluate, find, neuron_edges
from microtome.circuits.edges import neuron_edges as module
from microtome.circuits.granularity import difference_of_sums
from microtome.errors import ConfigError, ModelSupportError
from microtome.models.families import build
from microtome.tracing.opening import load


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_neurons_and_the_rest_add_up_to_the_mlp(family: str, ablation: str) -> None:
    model, examples = load(build(family)), pairs((6, 7, 9))
    plain: EdgeScores = find(model, examples, method="eap", ablation=ablation)
    apart = neuron_edges(model, examples, top=5, ablation=ablation)  # type: ignore[arg-type]
    assert apart.level == "neuron-edge"
    assert sum(".n" in s for s in apart.graph.sources) == 5
    assert difference_of_sums(apart, plain) < 1e-5
    for level in ("node", "block", "layer"):
        one, other = plain.coarsened(level), apart.coarsened(level)  # type: ignore[arg-type]
        scale = np.abs(one.values).max()
        np.testing.assert_allclose(other.values, one.values, atol=1e-5 * scale)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_edges_of_a_neuron_add_up_to_its_attribution(family: str) -> None:
    model, examples = load(build(family)), pairs((6, 7))
    assert model.anatomy is not None
    mlp = model.anatomy.blocks[1].mlp
    assert mlp is not None
    found = neuron_edges(model, examples, top=mlp.d_mlp, layers=[1])
    totals = found.node_scores()
    wanted = -neuron_attribution(model, examples)[1]
    scale = np.abs(wanted).max()
    values = [totals[f"m1.n{n}"] for n in range(mlp.d_mlp)]
    np.testing.assert_allclose(values, wanted, atol=1e-5 * scale + 1e-7)
    # nothing is left of the MLP, edge by edge
    left = found.matrix()[found.graph.sources.index("m1.rest")]
    assert np.nanmax(np.abs(left)) < 1e-5 * np.abs(found.mean).max()
    assert "m0" in totals and "m2" in totals


def test_the_strongest_are_kept_and_batches_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from microtome.circuits.edges import port_gradients

    model, examples = load(build("llama")), pairs((6, 7, 6, 8))
    some, more = (neuron_edges(model, examples, top=n) for n in (3, 40))
    neurons = [s for s in more.graph.sources if ".n" in s]
    strength = {s: np.nansum(np.abs(more.matrix()[more.graph.sources.index(s)])) for s in neurons}
    best = sorted(neurons, key=lambda s: -strength[s])[:3]
    assert {s for s in some.graph.sources if ".n" in s} == set(best)
    monkeypatch.setattr(port_gradients, "TABLE", 1)
    monkeypatch.setattr(module, "TABLE", 1)
    single = neuron_edges(model, examples, top=3)
    assert single.universe == some.universe
    np.testing.assert_allclose(single.mean, some.mean, atol=2e-5 * np.abs(some.mean).max())


def test_circuits_of_them_are_selected_saved_drawn_and_coarsened(tmp_path: Path) -> None:
    model, examples = load(build("gpt2")), pairs((6, 6))
    scores = neuron_edges(model, examples, top=6)
    again = EdgeScores.load(scores.save(tmp_path / "scores.json"))
    circuit = again.select(edges=40, connected=True)
    assert circuit.level == "neuron-edge" and any(".n" in part for part in circuit.parts)
    kept = again.graph.mask(circuit.parts)
    assert again.graph.connected(kept).any()
    assert any(node.kind == "neuron" for node in diagram(circuit, again).nodes)
    with pytest.raises(ConfigError, match="scored, not run; run the edges of whole MLPs"):
        evaluate(model, examples, circuit)
    whole = coarsen(circuit)
    assert whole.level == "edge"
    assert not any(".n" in part or ".rest" in part for part in whole.universe)
    assert np.isfinite(evaluate(model, examples, whole).circuit).all()


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = load(build("gpt2")), pairs((6, 6))
    with pytest.raises(ConfigError, match="top=0"):
        neuron_edges(model, examples, top=0)
    with pytest.raises(ConfigError, match="Block 7 has no MLP"):
        neuron_edges(model, examples, layers=[7])
    with pytest.raises(ConfigError, match="No MLP is to be told apart"):
        neuron_edges(model, examples, layers=[])
    with pytest.raises(ModelSupportError, match="do not add up to what its MLP writes"):
        neuron_edges(load(build("mixtral")), examples)
    with pytest.raises(ConfigError, match="scored by microtome.circuits.neuron_edges"):
        find(model, examples, method="eap", level="neuron-edge")
    monkeypatch.setattr(module, "RANKED", 1000)
    with pytest.raises(ConfigError, match="choose fewer blocks with layers"):
        neuron_edges(model, examples)
