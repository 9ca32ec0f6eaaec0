"""Edges between latents: scores against patching one edge by hand, and circuits of them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from tests.circuits.test_latents import metric_of, some
from tests.codecs import DenseSAE, SkipTranscoder
from tests.small import code_model

from microtome.behaviors import Examples, quote_closing
from microtome.circuits import Circuit, LatentAblator, evaluate, find, judge, minimality
from microtome.circuits.judging.evaluation import curve
from microtome.circuits.judging.matching import matched
from microtome.circuits.judging.protocol import level_of
from microtome.circuits.latent_edges.nodes import LatentNodes
from microtome.circuits.latent_edges.running import LatentEdgeAblator
from microtome.circuits.latent_edges.scoring import exact_latent_edges, latent_edge_support
from microtome.circuits.references import Ablation, site_means
from microtome.circuits.results import Verdict
from microtome.core.seeds import rng
from microtome.errors import ConfigError, UnknownNameError
from microtome.sae import SAE, Architecture
from microtome.tracing.model import Model
from microtome.tracing.sites import at

TC_IN = "blocks.1.mlp.in"
FIRST, MLP, LAST = "blocks.0.resid_post/sae", "blocks.1.mlp.in/tc", "blocks.1.resid_post/sae"
APART = (f"{FIRST}[latent=2]", f"{FIRST}[latent=5]", f"{MLP}[latent=1]", f"{LAST}[latent=3]")


@cache
def coded() -> Model:
    """An SAE behind each of two blocks and a transcoder over the second MLP."""
    model = code_model().attach("sae", DenseSAE(32, 10, seed=1), at="blocks.0.resid_post")
    tc = SkipTranscoder(32, 8, 32)
    model = model.attach("tc", tc, at="blocks.1.mlp.in", to="blocks.1.mlp.out")
    return model.attach("sae", DenseSAE(32, 10, seed=2), at="blocks.1.resid_post")


@cache
def across() -> Model:
    """A cross-layer transcoder over both MLPs, and an SAE behind the last block."""
    sites = {"sources": (32, 32), "targets": (32, 32), "activation": "relu"}
    clt = SAE(Architecture(64, 16, reach="later", center=False, **sites), seed=1)  # type: ignore[arg-type]
    model = code_model().attach("clt", clt, at="mlp.in", to="mlp.out")
    return model.attach("sae", DenseSAE(32, 10, seed=2), at="blocks.1.resid_post")


ACROSS = ("blocks.0.mlp.in/clt[latent=2]", "blocks.1.mlp.in/clt[latent=3]", f"{LAST}[latent=3]")


@cache
def read_behind() -> Model:
    """A transcoder that reads where an SAE has written, and an SAE behind it."""
    model = code_model().attach("tc", SkipTranscoder(32, 8, 32), at=TC_IN, to="blocks.1.mlp.out")
    model = model.attach("sae", DenseSAE(32, 10, seed=1), at=TC_IN)
    return model.attach("sae", DenseSAE(32, 10, seed=2), at="blocks.1.resid_post")


BEHIND = (f"{TC_IN}/sae[latent=2]", f"{MLP}[latent=1]", f"{LAST}[latent=3]")
MODELS = {
    "saes and a transcoder": (coded, APART),
    "cross-layer": (across, ACROSS),
    "a transcoder of what an sae writes": (read_behind, BEHIND),
}


def numbers(nodes: LatentNodes, node: str) -> tuple[str, list[int] | None]:
    """Return the site of a node and its latents, None for an error."""
    place = next(p for p in nodes.places if node in p.nodes)
    if place.latents is None:
        return place.site, None
    return place.site, place.latents[place.nodes.index(node)].tolist()


def patched_by_hand(model: Model, examples: Examples, ablation: Ablation, edge: str) -> np.ndarray:
    """Return the metric with one edge ablated: its target is read off a run with all else held."""
    nodes = LatentNodes.named(model, [edge, *(f"{a}->logits" for a in apart_of(model))])
    source, _, target = edge.partition("->")
    means = site_means(model, examples, nodes.sites) if ablation == "mean" else {}
    found = []
    for one in examples:
        clean = model.trace([one.clean], capture=nodes.sites)
        other = model.trace([one.corrupt], capture=nodes.sites)

        def changed(node: str, clean=clean, other=other):  # type: ignore[no-untyped-def]
            site, latents = numbers(nodes, node)
            new = clean[site].clone()
            given = {
                "resample": other[site], "zero": torch.zeros_like(new),
                "mean": means[site].expand_as(new) if means else new,
            }[ablation]  # fmt: skip
            if latents is None:
                return given
            new[..., latents] = given[..., latents]
            return new

        place = next((p for p in nodes.places if target in p.nodes), None)
        before = nodes.places if place is None else nodes.before(place)
        own = numbers(nodes, source)[0]
        held = [
            at(p.site).patch(changed(source) if p.site == own else clean[p.site]) for p in before
        ]
        run = model.trace(
            [one.clean], interventions=held, capture=[] if place is None else [place.site]
        )
        if place is not None:
            site, latents = numbers(nodes, target)
            moved = clean[site].clone()
            if latents is None:
                moved = run[site]
            else:
                moved[..., latents] = run[site][..., latents]
            run = model.trace([one.clean], interventions=[at(site).patch(moved)])
        found.append(metric_of(run.last(), examples[one.index : one.index + 1])[0])
    return np.array(found)


def apart_of(model: Model) -> tuple[str, ...]:
    return next(apart for made, apart in MODELS.values() if made() is model)


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
@pytest.mark.parametrize("name", MODELS)
def test_one_edge_ablated_equals_patching_it_by_hand(name: str, ablation: Ablation) -> None:
    made, apart = MODELS[name]
    model = made()
    examples = some(model, 3)
    scores = exact_latent_edges(model, examples, nodes=apart, ablation=ablation)
    assert level_of(scores) == "latent-edge"
    plain = metric_of(model.trace(examples.clean).last(), examples)
    random = rng(0, "edges")
    for number in random.choice(len(scores.names), 12, replace=False):
        by_hand = patched_by_hand(model, examples, ablation, scores.names[number])
        np.testing.assert_allclose(scores.values[:, number], plain - by_hand, atol=2e-4)


def test_edges_are_those_along_which_something_can_act() -> None:
    nodes = LatentNodes.of(coded(), APART)
    assert nodes.names == (
        f"{FIRST}[latent=2]", f"{FIRST}[latent=5]", f"{FIRST}.rest", f"{FIRST}.error",
        f"{MLP}[latent=1]", f"{MLP}.rest", "blocks.1.mlp.out/tc.error",
        f"{LAST}[latent=3]", f"{LAST}.rest", f"{LAST}.error",
    )  # fmt: skip
    edges = set(nodes.edges)
    assert f"{FIRST}.error->{MLP}[latent=1]" in edges
    assert f"{MLP}[latent=1]->{LAST}.rest" in edges
    # latents of a transcoder do not act on its own error, nor an SAE's latents on each other
    assert f"{MLP}[latent=1]->blocks.1.mlp.out/tc.error" not in edges
    assert f"{FIRST}[latent=2]->{FIRST}.error" not in edges
    assert len(edges) == len(nodes.edges) == 4 * 2 + 4 * 1 + 7 * 3 + 10
    assert {e.split("->")[1] for e in edges} == {*nodes.names[4:], "logits"}


def test_what_a_codec_writes_acts_on_those_that_read_it_there() -> None:
    edges = LatentNodes.of(read_behind(), BEHIND).edges
    for source in (f"{TC_IN}/sae[latent=2]", f"{TC_IN}/sae.rest", f"{TC_IN}/sae.error"):
        assert f"{source}->{MLP}[latent=1]" in edges and f"{source}->{MLP}.rest" in edges
    assert not [edge for edge in edges if edge.startswith(MLP) and f"->{TC_IN}/sae" in edge]


def test_circuits_of_all_edges_that_leave_nodes_are_circuits_of_these_nodes() -> None:
    for made, apart in MODELS.values():
        model = made()
        examples = some(model)
        nodes = LatentNodes.of(model, apart)
        ablator = LatentEdgeAblator(model, examples, universe=nodes.edges)
        assert ablator.universe == nodes.edges
        random = rng(1, "nodes")
        for _ in range(3):
            kept = {n for n in nodes.names if random.random() < 0.6}
            fine = set()
            for node in kept:
                site, latents = numbers(nodes, node)
                fine |= {node} if latents is None else {f"{site}[latent={n}]" for n in latents}
            by_node = LatentAblator(model, examples).run([frozenset(fine)])["logit_difference"]
            circuit = frozenset(e for e in nodes.edges if e.split("->")[0] in kept)
            by_edge = ablator.run([circuit])["logit_difference"]
            np.testing.assert_allclose(by_edge, by_node, rtol=2e-4, atol=1e-4)
        everything = ablator.run([frozenset(nodes.edges)])["logit_difference"][0]
        plain = metric_of(model.trace(examples.clean).last(), examples)
        np.testing.assert_allclose(everything, plain, rtol=1e-5, atol=1e-5)


def test_scores_are_the_slope_of_patching_an_edge() -> None:
    """First order against a small step along the source's change, in double precision."""
    model = code_model()
    model.module.double()
    model = model.attach("sae", DenseSAE(32, 10, seed=1).double(), at="blocks.0.resid_post")
    model = model.attach("sae", DenseSAE(32, 10, seed=2).double(), at="blocks.1.resid_post")
    examples = some(model, 2)
    apart = (f"{FIRST}[latent=2]", f"{LAST}[latent=3]", f"{LAST}[latent=7]")
    scores = latent_edge_support(model, examples, nodes=apart, ablation="zero")
    step = 1e-5
    nodes = LatentNodes.of(model, apart)
    for edge in [e for e in nodes.edges if LAST in e.split("->")[1]]:
        source, _, target = edge.partition("->")
        own, latents = numbers(nodes, source)
        site, theirs = numbers(nodes, target)
        lost = []
        for one in examples:
            clean = model.trace([one.clean], capture=nodes.sites)
            new = clean[own].clone()
            index = slice(None) if latents is None else latents
            new[..., index] *= 1 - step
            other = f"{FIRST}.error" if own == FIRST else FIRST
            held = [at(own).patch(new), at(other).patch(clean[other])]
            run = model.trace([one.clean], interventions=held, capture=site)
            moved = clean[site].clone()
            index = slice(None) if theirs is None else theirs
            moved[..., index] = run[site][..., index]
            ends = [
                model.trace([one.clean], interventions=c).last()
                for c in ([], [at(site).patch(moved)])
            ]
            a, b = (e[0, one.answers[0][0]] - e[0, one.wrongs[0][0]] for e in ends)
            lost.append(float(a - b) / step)
        column = scores.names.index(edge)
        np.testing.assert_allclose(scores.values[:, column], lost, rtol=1e-3, atol=1e-6)


def test_first_order_scores_rank_like_exact_ones() -> None:
    model = coded()
    examples = some(model, 6)
    exact = exact_latent_edges(model, examples, nodes=APART).mean
    for steps, least in ((1, 0.8), (6, 0.8)):
        scores = find(
            model, examples, method="attribution", level="latent-edge", nodes=APART, steps=steps
        )
        assert scores.names == LatentNodes.of(model, APART).edges
        assert np.corrcoef(scores.mean, exact)[0, 1] > least
    few = find(model, examples, method="attribution", level="latent-edge", nodes=2)
    assert sum("[" in n for n in LatentNodes.named(model, few.names).names) == 2
    assert find(model, examples[:2], method="exact", level="latent-edge", nodes=1).method == "exact"


def test_edge_circuits_are_evaluated_drawn_and_matched() -> None:
    model = coded()
    examples = some(model, 6)
    scores = latent_edge_support(model, examples, nodes=APART)
    ranking = scores.ranking()
    circuit = Circuit(ranking[:20], scores.names, scores.method, level="latent-edge")
    found = evaluate(model, examples, circuit)
    ablator = LatentEdgeAblator(model, examples, universe=scores.names)
    ran = ablator.run([circuit.kept, frozenset()])["logit_difference"]
    np.testing.assert_allclose(found.circuit, ran[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.empty, ran[1], rtol=1e-5, atol=1e-5)
    along = curve(model, examples, ranking, [0, 10, len(ranking)], level="latent-edge")
    assert along.faithfulness[0].value == pytest.approx(0, abs=1e-4)
    assert along.faithfulness[-1].value == pytest.approx(1, abs=1e-4)
    assert len(minimality(model, examples[:2], circuit)) == 20
    drawn = matched(circuit, rng(0, "draw"))
    ends = sorted(tuple(e.partition("[")[0] for e in name.split("->")) for name in circuit.parts)
    assert ends == sorted(tuple(e.partition("[")[0] for e in name.split("->")) for name in drawn)
    diagram = circuit.diagram(dict(zip(scores.names, scores.mean, strict=True)))
    labels = {node.label for node in diagram.nodes}
    assert "sae rest" in labels or "tc rest" in labels


def test_edge_circuits_are_judged() -> None:
    model = coded()
    behavior = quote_closing(24)
    scores = latent_edge_support(model, behavior.prepare(model).split("train"), nodes=APART[-2:])
    found = judge(
        model, behavior, scores, finder="attribution", nulls=1, orders=1, gate=False,
        faithfulness=0.5,
    )  # fmt: skip
    assert found.circuit.level == "latent-edge"
    assert isinstance(found.verdict, Verdict) and not found.verdict.established
    assert set(found.circuit.universe) == set(scores.names)
    assert len(found.kinds) == 3
    assert "edges between latents" in found.verdict.sentence


def test_wrong_usage() -> None:
    model = coded()
    examples = some(model, 2)
    with pytest.raises(ConfigError, match="Nothing is attached"):
        latent_edge_support(code_model(), examples, nodes=APART)
    with pytest.raises(UnknownNameError, match="no latent 99"):
        latent_edge_support(model, examples, nodes=[f"{FIRST}[latent=99]"])
    with pytest.raises(UnknownNameError, match="is no latent"):
        latent_edge_support(model, examples, nodes=[f"{FIRST}.error"])
    with pytest.raises(UnknownNameError, match="is no latent"):
        exact_latent_edges(model, examples, nodes=[f"{FIRST}[latent=2][pos=1]"])
    for nodes in (0, True, 2.5, f"{FIRST}[latent=2]"):
        with pytest.raises(ConfigError, match="nodes="):
            latent_edge_support(model, examples, nodes=nodes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"steps=1\.5"):
        latent_edge_support(model, examples, nodes=1, steps=1.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="steps=0"):
        latent_edge_support(model, examples, nodes=APART, steps=0)
    with pytest.raises(ConfigError, match="only latent-edge"):
        find(model, examples, method="exact", level="latent", nodes=3)
    with pytest.raises(UnknownNameError, match="No node"):
        ablator = LatentEdgeAblator(model, examples, universe=[f"{APART[0]}->logits"])
        ablator.run([frozenset(["a->b"])])
    twice = model.attach("b", DenseSAE(32, 4), at="blocks.1.resid_post")
    with pytest.raises(ConfigError, match="both write"):
        latent_edge_support(twice, examples, nodes=APART)
