"""From levels to levels: sums, circuits that run alike, the judgment, pictures, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.circuits.planted import planted_model
from tests.circuits.slow_edges import tiny_gpt2, tiny_llama
from tests.sweeps.test_sweeps import pairs

from microtome.behaviors import Examples, quote_closing
from microtome.circuits import (
    Circuit,
    EdgeScores,
    coarsen,
    evaluate,
    faithfulness_curve,
    find,
    judge,
    refine,
)
from microtome.circuits.drawing.diagrams import Drawn, diagram
from microtome.circuits.edges.attribution import edge_attribution
from microtome.circuits.exchange import ScoredCircuit, write_circuit
from microtome.circuits.granularity import difference_of_sums
from microtome.circuits.graph import ComponentGraph
from microtome.circuits.hypotheses.second_opinion import random_path
from microtome.circuits.judging.evaluation import knocked_out
from microtome.circuits.judging.levels import level_of, runner, search_by_name, universe_of
from microtome.circuits.judging.matching import matched
from microtome.errors import ConfigError, DataError, FormatError, PairError, UnknownNameError
from microtome.models.families import build
from microtome.tracing.model import Model
from microtome.tracing.opening import load

PLANTED = ("a0.h1", "a1.h2", "m1")


@pytest.fixture(scope="module")
def model() -> Model:
    return planted_model(PLANTED)


@pytest.fixture(scope="module")
def examples(model: Model) -> Examples:
    return quote_closing(60).prepare(model).split("train")


@pytest.fixture(scope="module")
def scores() -> EdgeScores:
    found = find(load(tiny_llama()), pairs((6, 6, 7)), method="eap", level="role-edge")
    assert isinstance(found, EdgeScores)
    return found


# ---------------------------------------------------------------------------------- levels by name


def test_levels_ask_for_what_a_method_has(scores: EdgeScores) -> None:
    model, examples = load(tiny_llama()), pairs((6, 6, 7))
    split = find(model, examples, method="eap", split="role")
    np.testing.assert_array_equal(split.mean, scores.mean)
    plain = find(model, examples, method="eap", level="edge")
    assert isinstance(plain, EdgeScores) and plain.level == "edge"
    assert level_of(scores) == "role-edge" and level_of(scores.ranking()) == "role-edge"
    assert level_of(plain.ranking()) == "edge" and level_of(("a0.h1", "m0")) == "node"
    assert level_of(("embed->m0@0", "m0->logits")) == "position-edge"
    with pytest.raises(ConfigError, match="'mask-ig' scores no role-edges; .* eap, eap-ig, clean"):
        find(model, examples, method="mask-ig", level="role-edge")
    with pytest.raises(ConfigError, match="'eap' scores no nodes"):
        find(model, examples, method="eap", level="node")
    with pytest.raises(UnknownNameError, match="No level 'edges'"):
        find(model, examples, method="eap", level="edges")
    with pytest.raises(ConfigError, match="depends on the prompts"):
        universe_of(model, "role-edge")
    with pytest.raises(UnknownNameError, match="No level"):
        runner(model, examples, "layer")  # type: ignore[arg-type]


# ----------------------------------------------------------------------------- finer and coarser


@pytest.mark.parametrize("level", ["role-edge", "position-edge"])
def test_a_refined_circuit_runs_as_before_and_is_coarsened_to_itself(level: str) -> None:
    model, examples = load(tiny_gpt2()), pairs((6, 6))
    graph = ComponentGraph.of(model)
    random = np.random.default_rng(1)
    parts = tuple(e for e in graph.edges if random.random() < 0.6)
    circuit = Circuit(parts, graph.edges, "drawn", level="edge", model=model.fingerprint)
    fine = refine(circuit, model, examples, level=level)  # type: ignore[arg-type]
    assert fine.level == level and len(fine) > len(circuit)
    before, after = evaluate(model, examples, circuit), evaluate(model, examples, fine)
    np.testing.assert_allclose(after.circuit, before.circuit, atol=3e-5)
    np.testing.assert_allclose(after.without, before.without, atol=3e-5)
    back = coarsen(fine)
    assert (back.parts, back.universe, back.level) == (parts, graph.edges, "edge")


def test_nodes_become_neurons_and_nodes_again() -> None:
    model, examples = load(build("llama")), pairs((6, 6))
    names = universe_of(model, "node")
    circuit = Circuit(("a0.h1", "m1", "a2.h0"), names, "chosen")
    fine = refine(circuit, model, examples, level="neuron")
    assert fine.level == "neuron" and "m1.n0" in fine.kept and "m0.n0" in fine.rest
    before, after = evaluate(model, examples, circuit), evaluate(model, examples, fine)
    np.testing.assert_allclose(after.circuit, before.circuit, atol=3e-5)
    back = coarsen(fine)
    assert back.kept == circuit.kept and back.universe == names and back.level == "node"


@pytest.mark.parametrize("method", ["eap", "eap-ig", "clean-corrupted"])
def test_refined_scores_add_up_and_others_are_refused(method: str) -> None:
    model, examples = load(tiny_gpt2()), pairs((6, 7, 6))
    steps = {"steps": 3} if method == "eap-ig" else {}
    plain: EdgeScores = find(model, examples, method=method, **steps)
    fine = refine(plain, model, examples, level="role-edge")
    assert fine.method == plain.method and fine.level == "role-edge"
    assert difference_of_sums(fine, plain) < 1e-5
    with pytest.raises(DataError, match="add up to others"):
        refine(plain, model, pairs((8, 8)), level="role-edge")


def test_what_cannot_be_refined_or_coarsened(scores: EdgeScores) -> None:
    model, examples = load(tiny_llama()), pairs((6, 6))
    exact: EdgeScores = find(model, examples, method="exact-edges")
    with pytest.raises(ConfigError, match="do not add up to those of edges"):
        refine(exact, model, examples, level="role-edge")
    with pytest.raises(ConfigError, match="cannot be refined to level='neuron'"):
        refine(exact, model, examples, level="neuron")
    with pytest.raises(ConfigError, match="cannot be coarsened"):
        coarsen(exact.select(edges=3))
    other: EdgeScores = find(load(tiny_gpt2()), examples, method="eap")
    with pytest.raises(DataError, match="different models"):
        difference_of_sums(scores, other)


# ---------------------------------------------------------------------------------------- judging


def test_random_paths_are_connected_at_their_places() -> None:
    from microtome.circuits.places import Places

    model, random = load(tiny_llama()), np.random.default_rng(4)
    for split in ("role", "position"):
        graph = Places.of(pairs((6, 6)), split).graph(model)  # type: ignore[arg-type]
        for _ in range(25):
            path = random_path(graph, random)
            assert graph.named(graph.connected(graph.mask(path))) == graph.named(graph.mask(path))


def test_knock_outs_and_random_circuits_go_by_place(scores: EdgeScores) -> None:
    circuit = scores.select(edges=30)
    groups = knocked_out(circuit)
    assert set(groups) <= set(scores.graph.sources)
    assert sum(map(len, groups.values())) == len(scores.universe) - 30
    drawn = matched(circuit, np.random.default_rng(0))
    places = [sorted(e.partition("@")[2] for e in c) for c in (drawn, circuit.kept)]
    assert places[0] == places[1] and drawn != circuit.kept


def test_planted_edges_at_their_roles_are_sufficient(model: Model, examples: Examples) -> None:
    graph = ComponentGraph.of(model)
    planted = Circuit(
        tuple(e for e, (u, v) in zip(graph.edges, graph, strict=True)
              if u in ("embed", *PLANTED) and (v.split("<")[0] in PLANTED or v == "logits")),
        graph.edges, "planted", level="edge",
    )  # fmt: skip
    fine = refine(planted, model, examples, level="role-edge")
    assert evaluate(model, examples, fine).faithfulness.value == pytest.approx(1.0, abs=3e-3)
    apart = edge_attribution(model, examples, split="role")
    found = faithfulness_curve(model, examples, apart.ranking(), level="role-edge")
    assert found.total == len(apart.universe) and found.areas is not None
    assert found.faithfulness[-1].value == pytest.approx(1.0)
    near = [
        k for k, f in zip(found.kept, found.faithfulness, strict=True) if abs(f.value - 1) < 0.1
    ]
    assert near[0] < len(fine)  # not every planted edge is needed at every role


def test_edges_at_roles_are_judged_to_the_verdict(model: Model) -> None:
    behavior = quote_closing(30)
    train = behavior.prepare(model).split("train")
    found = judge(
        model, behavior, edge_attribution(model, train, split="role"), nulls=1, gate=False, orders=1
    )
    assert found.circuit.level == "role-edge" and found.verdict is not None
    assert any("@" in part for part in found.circuit.parts)
    assert "edges at the positions of a role" in found.verdict.sentence
    search = search_by_name("eap", "logit_difference", "resample", level="role-edge")
    assert level_of(search(model, train)) == "role-edge"


# ----------------------------------------------------------------------------- pictures and files


def test_a_picture_joins_the_roles_or_shows_them(scores: EdgeScores) -> None:
    circuit = scores.select(edges=60, connected=True)
    values = dict(zip(scores.universe, scores.mean, strict=True))
    joined = diagram(circuit, scores)
    assert not any("@" in node.name for node in joined.nodes)
    drawn = Drawn(circuit, scores).drawn_edges()
    assert sum(e.weight for e in drawn) == pytest.approx(sum(values[p] for p in circuit.parts))
    ends = [(e.source, e.target, e.port) for e in drawn]
    assert len(ends) == len(set(ends))
    apart = circuit.diagram(scores, by_place=True)
    assert {n.name.partition("@")[2] for n in apart.nodes if n.name != "logits"} <= {
        "cue", "end", "rest"
    }  # fmt: skip
    assert any(e.source.endswith("@end") for e in apart.edges if e.target == "logits")
    collapsed = apart.collapsed()
    assert len(collapsed.nodes) < len(apart.nodes)
    assert any(node.label.startswith("cue ×") for node in collapsed.nodes)
    assert "cue" in apart.to_svg()


def test_formats_without_places_refuse_them(scores: EdgeScores, tmp_path: Path) -> None:
    circuit = scores.select(edges=10)
    for ending in ("dot", "graphml"):
        with pytest.raises(FormatError, match="no place for role-edges"):
            write_circuit(tmp_path / f"c.{ending}", ScoredCircuit(circuit), to=ending)
    with pytest.raises(FormatError, match="not all edges"):
        write_circuit(tmp_path / "c.json", ScoredCircuit(circuit), to="mib", d_model=24)
    write_circuit(tmp_path / "c.dot", ScoredCircuit(coarsen(circuit)), to="dot")
    assert (tmp_path / "c.dot").exists()


def test_other_roles_than_the_circuits_are_refused(scores: EdgeScores) -> None:
    from tests.circuits.test_placed_edges import with_roles

    model, examples = load(tiny_llama()), pairs((6, 6))
    circuit = scores.select(edges=10)
    other = with_roles(examples, *[{"name": (1, 2), "end": (5, 6)}] * 2)
    with pytest.raises(UnknownNameError, match="No edge '.*@"):
        evaluate(model, other, circuit)
    with pytest.raises(PairError, match="name no roles"):
        evaluate(model, with_roles(examples, {}, {}), circuit)
