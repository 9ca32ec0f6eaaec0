"""Scores of edges: what must hold of every finder, of sums over parts, and of selection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.circuits.slow_edges import Slow, ablated_writes, tiny_gpt2, tiny_llama
from tests.small import code_model
from tests.sweeps.test_sweeps import pairs

from microtome.attribution import attribution_patching
from microtome.behaviors import Examples, quote_closing
from microtome.behaviors.evaluate import evaluate
from microtome.circuits import Circuit, EdgeScores, find
from microtome.circuits.edges.information_flow import importance
from microtome.circuits.edges.mask_gradients import mask_values
from microtome.circuits.edges.scores import graph_of
from microtome.circuits.edges.tally import Tally
from microtome.circuits.finding import FINDERS
from microtome.circuits.graph import ComponentGraph
from microtome.core.stats import cluster_bootstrap, cluster_standard_error
from microtome.errors import ConfigError, UnknownNameError
from microtome.models.families import build
from microtome.tracing.opening import load

GRADIENTS = ("eap", "eap-ig", "clean-corrupted", "eap-ig-activations", "mask-ig")
EDGES = tuple(
    name for name, finder in FINDERS.items() if finder.level == "edge" and finder.per_example
)


@pytest.fixture(scope="module")
def scores() -> EdgeScores:
    found = find(load(tiny_llama()), pairs((6, 6, 7)), method="eap")
    assert isinstance(found, EdgeScores)
    return found


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_exact_scores_are_the_model_written_out(make, ablation: str) -> None:  # type: ignore[no-untyped-def]
    module = make()
    slow, examples = Slow(module), pairs((6, 6))
    found = find(load(module), examples, method="exact-edges", ablation=ablation)
    prompts = {"clean": examples.clean, "corrupt": examples.corrupt}
    rng = np.random.default_rng(2)
    for number in rng.choice(len(found.universe), 12, replace=False):
        lost = []
        for row, e in enumerate(examples):
            ablated = ablated_writes(slow, prompts, row, ablation)
            cut = frozenset({found.universe[number]})
            plain, changed = slow.logits(e.clean), slow.logits(e.clean, ablated, cut)
            right, wrong = e.answers[0][0], e.wrongs[0][0]
            lost.append(float((plain - changed)[right] - (plain - changed)[wrong]))
        assert found.mean[number] == pytest.approx(np.mean(lost), abs=2e-4)
        assert found.second_moment[number] == pytest.approx(np.mean(np.square(lost)), abs=1e-3)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_edge_attribution_is_the_slope_of_the_model_written_out(make) -> None:  # type: ignore[no-untyped-def]
    """A small step of one edge's write towards its ablated value moves the metric by the score."""
    module = make()
    slow, examples = Slow(module), pairs((6,))
    found = find(load(module), examples, method="eap")
    e = examples[0]
    ablated = ablated_writes(
        slow, {"clean": examples.clean, "corrupt": examples.corrupt}, 0, "resample"
    )
    clean: dict[str, torch.Tensor] = {}
    plain = slow.logits(e.clean, writes=clean)
    step = 1e-5
    near = {name: clean[name] + step * (ablated[name] - clean[name]) for name in clean}
    for number in range(0, len(found.universe), 7):
        moved = slow.logits(e.clean, near, frozenset({found.universe[number]}))
        slope = (plain - moved) / step
        wanted = float(slope[e.answers[0][0]] - slope[e.wrongs[0][0]])
        assert found.mean[number] == pytest.approx(wanted, rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "granite", "gemma", "qwen3"])
def test_outgoing_edges_add_up_to_the_attribution_of_the_node(family: str) -> None:
    model, examples = load(build(family)), pairs((7, 7))
    edges = find(model, examples, method="eap").node_scores()
    nodes = attribution_patching(model, examples)
    found = [-edges[name] for name in nodes.names]
    np.testing.assert_allclose(found, nodes.mean, atol=2e-6 * np.abs(nodes.mean).max() + 1e-6)


@pytest.mark.parametrize("method", EDGES)
def test_the_split_into_batches_changes_nothing(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from microtome.circuits.edges import port_gradients

    model, examples = load(build("gpt2")), pairs((6, 7, 6, 8, 6))
    whole = find(model, examples, method=method)
    monkeypatch.setattr(port_gradients, "TABLE", 1)
    single = find(model, examples, method=method)
    scale = np.abs(whole.mean).max()
    np.testing.assert_allclose(single.mean, whole.mean, atol=2e-5 * scale)
    np.testing.assert_allclose(single.second_moment, whole.second_moment, atol=1e-4 * scale**2)
    parts = [find(model, examples.take(p), method=method) for p in ([0, 1], [2, 3, 4])]
    mean = (2 * parts[0].mean + 3 * parts[1].mean) / 5
    np.testing.assert_allclose(mean, whole.mean, atol=2e-5 * scale)


@pytest.mark.parametrize("method", [*GRADIENTS, "exact-edges"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_pairs_that_do_not_differ_have_no_scores(method: str, family: str) -> None:
    examples = pairs((6, 6))
    same = Examples(tuple(type(e)(**{**vars(e), "corrupt": e.clean}) for e in examples), (), "same")
    found = find(load(build(family)), same, method=method)
    assert np.abs(found.mean).max() < 1e-5
    assert not found.saturated


def test_integrated_gradients_of_the_embedding_are_complete() -> None:
    """Summed over all edges out of the embedding they are the whole change from end to end."""
    model, examples = load(tiny_gpt2()), pairs((6, 6))
    wanted = evaluate(model, examples).values - evaluate(model, examples, side="corrupt").values
    errors = []
    for steps in (2, 8, 32):
        found = find(model, examples, method="eap-ig", steps=steps)
        errors.append(abs(found.node_scores()["embed"] - wanted.mean()))
    assert errors[2] < 0.02 * abs(wanted.mean()) and errors[2] < errors[1] < errors[0]


def test_saturated_gradients_are_counted_and_told() -> None:
    config_model = load(build("opt"))  # its MLPs are ReLUs
    with torch.no_grad():
        for block in config_model.module.model.decoder.layers:
            block.fc1.bias.fill_(-1e3)
    found = find(config_model, pairs((6, 6)), method="eap")
    into = [n for n, e in enumerate(found.universe) if e.endswith(("->m0", "->m1", "->m2"))]
    assert (found.mean[into] == 0).all()
    moving = [n for n, e in enumerate(found.universe) if e.split("->")[0][0] != "m"]
    assert found.saturated is not None and found.saturated >= len(set(into) & set(moving)) / len(
        found.universe
    )
    assert "saturated" in found.note
    assert find(load(tiny_gpt2()), pairs((6, 6)), method="information-flow").note == ""


def test_routes_by_hand() -> None:
    written = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]], [[-1.0, 0.0]]])[None]
    stream = torch.tensor([[[1.0, 2.0]]])
    found = importance(written, stream)[0, :, 0]
    # |y| = 3; without each part 2, 1, 4: proximities 1, 2, 0
    np.testing.assert_allclose(found, [1 / 3, 2 / 3, 0.0])
    scores = find(load(tiny_gpt2()), pairs((6, 7)), method="information-flow")
    np.testing.assert_allclose(np.nansum(scores.matrix(), axis=0), 1.0, atol=1e-5)


def test_sums_over_larger_parts_are_conserved(scores: EdgeScores) -> None:
    total = scores.mean.sum()
    for level in ("node", "block", "layer"):
        coarse = scores.coarsened(level)  # type: ignore[arg-type]
        assert coarse.values.sum() == pytest.approx(total, abs=1e-9)
        assert coarse.edges.sum() == len(scores.universe)
    nodes = scores.coarsened("node")
    children = [
        scores.mean[scores.universe.index(f"a0.h1->a1.{g}<{p}>")]
        for g, p in (("g0", "k"), ("g0", "v"))
    ]
    place = nodes.sources.index("a0.h1"), nodes.targets.index("a1.g0")
    assert nodes.values[place] == pytest.approx(sum(children))
    layers = scores.coarsened("layer")
    assert layers.sources == ("embed", "blocks.0", "blocks.1")
    assert layers.edges[layers.sources.index("blocks.1"), layers.targets.index("blocks.0")] == 0
    assert len(layers.to_frame()) == (layers.edges > 0).sum()
    with pytest.raises(UnknownNameError, match="No level 'head'"):
        scores.coarsened("head")  # type: ignore[arg-type]


def test_the_graph_comes_back_from_the_names() -> None:
    for family in ("gpt2", "llama", "gpt_neox"):
        graph = ComponentGraph.of(load(build(family)))
        again = graph_of(graph.edges, graph.group_size)
        assert again.edges == graph.edges and again.targets == graph.targets
        np.testing.assert_array_equal(again.possible, graph.possible)


def test_standard_errors_and_intervals(scores: EdgeScores) -> None:
    graph = scores.graph
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, graph.n_edges)) + 1
    clusters = [f"c{i // 4}" for i in range(40)]
    tally = Tally(graph, clusters)
    model = load(tiny_llama())
    for start in (0, 10, 30):
        stop = {0: 10, 10: 30, 30: 40}[start]
        tally.add(values[start:stop], clusters[start:stop])
    found = tally.scores(model, method="m", metric="x", ablation="resample", meaning="")
    np.testing.assert_allclose(found.mean, values.mean(0))
    wanted = [cluster_standard_error(values[:, i], clusters) for i in range(3)]
    np.testing.assert_allclose(found.standard_error[:3], wanted, rtol=1e-6)
    interval = found.interval(graph.edges[0])
    other = cluster_bootstrap(values[:, 0], np.array(clusters))
    assert interval.low == pytest.approx(other.low, abs=0.02)
    assert interval.low < values[:, 0].mean() < interval.high


def test_scores_of_many_clusters_keep_only_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    from microtome.circuits.edges import tally

    monkeypatch.setattr(tally, "KEPT", 10)
    found = find(load(tiny_gpt2()), pairs((6, 6, 6)), method="eap")
    assert found.clusters == () and (found.standard_error >= 0).all()
    with pytest.raises(UnknownNameError, match="use standard_error"):
        found.interval(found.universe[0])


def test_ranking_and_selection(scores: EdgeScores) -> None:
    ranking = scores.ranking()
    ten = scores.select(edges=10)
    assert ten.level == "edge" and set(ten.parts) == set(ranking[:10])
    assert ten.universe == scores.universe and ten.model == scores.model
    assert set(scores.select(edges=5, signed=True).parts) == set(scores.ranking(signed=True)[:5])
    least = float(np.sort(np.abs(scores.mean))[-10])
    assert set(scores.select(threshold=least).parts) == set(ten.parts)
    assert len(scores.select(edges=len(scores.universe))) == len(scores.universe)
    for wrong in ({}, {"edges": 3, "threshold": 0.1}):
        with pytest.raises(ConfigError, match="exactly one"):
            scores.select(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected 0 to"):
        scores.select(edges=10_000)


def test_a_grown_circuit_leads_to_the_logits(scores: EdgeScores) -> None:
    graph = scores.graph
    before: set[str] = set()
    for n in (1, 5, 20, 60):
        circuit = scores.select(edges=n, connected=True)
        assert len(circuit) == n and before <= circuit.kept
        before = set(circuit.kept)
        feeding = {"logits"}
        for _ in range(6):
            feeding |= {e.split("->")[0] for e in circuit.parts
                        if any(r in feeding for r in graph.readers(e.split("->")[1]))}  # fmt: skip
        assert all(e.split("->")[0] in feeding for e in circuit.parts)
    into = [i for i, e in enumerate(scores.universe) if e.endswith("->logits")]
    best = max(into, key=lambda i: abs(scores.mean[i]))
    assert scores.select(edges=1, connected=True).parts == (scores.universe[best],)
    threshold = float(np.quantile(np.abs(scores.mean), 0.8))
    pruned = scores.select(threshold=threshold, connected=True)
    mask = graph.mask(pruned.parts)
    np.testing.assert_array_equal(graph.connected(mask), mask)


def test_results_come_back_from_disk(scores: EdgeScores, tmp_path: Path) -> None:
    loaded = EdgeScores.load(scores.save(tmp_path / "scores.json"))
    np.testing.assert_array_equal(loaded.mean, scores.mean)
    assert loaded.universe == scores.universe and loaded.ranking() == scores.ranking()
    circuit = scores.select(edges=4)
    assert Circuit.load(circuit.save(tmp_path / "circuit.json")).parts == circuit.parts
    frame = scores.to_frame()
    assert list(frame.columns) == ["edge", "source", "target", "mean", "standard_error"]
    assert len(frame) == len(scores.universe)


def test_finding_by_name() -> None:
    model = code_model()
    behavior = quote_closing(30)
    found = find(model, behavior, method="eap")
    train = behavior.prepare(model).split("train")
    assert found.n == len(train) and found.passes is not None and found.passes["backward"] >= 1
    np.testing.assert_array_equal(found.mean, find(model, train, method="eap").mean)
    with pytest.raises(UnknownNameError, match="nearest: eap"):
        find(model, train, method="eap-gi")
    with pytest.raises(ConfigError, match="eap takes no steps"):
        find(model, train, method="eap", steps=3)
    with pytest.raises(ConfigError, match="steps=0"):
        find(model, train, method="eap-ig", steps=0)
    with pytest.raises(ConfigError, match="midpoints or ends"):
        find(model, train, method="mask-ig", nodes="left")
    assert mask_values(2, "ends") == (0.0, 0.5, 1.0) and mask_values(2, "midpoints") == (0.25, 0.75)


def test_nothing_of_the_model_is_changed_or_kept() -> None:
    module = tiny_gpt2()
    model = load(module)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    wanted = [p.requires_grad for p in module.parameters()]
    for method in (name for name, finder in FINDERS.items() if finder.level == "edge"):
        find(model, pairs((6, 6)), method=method)
    assert [p.requires_grad for p in module.parameters()] == wanted
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
