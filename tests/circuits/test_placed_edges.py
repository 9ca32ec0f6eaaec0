"""Edges told apart by role and position: sums, the model written out, circuits, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.circuits.slow_edges import Slow, ablated_writes, tiny_gpt2, tiny_llama
from tests.sweeps.test_sweeps import pairs

from microtome.behaviors import Examples
from microtome.behaviors.evaluate import evaluate as evaluate_behavior
from microtome.circuits import Circuit, EdgeAblator, EdgeScores, find
from microtome.circuits.graph import ComponentGraph
from microtome.circuits.places import Places, Split
from microtome.errors import ConfigError, ModelSupportError, PairError, UnknownNameError
from microtome.models.families import build
from microtome.tracing.opening import load
from microtome.tracing.sites import at

TINY = {"gpt2": tiny_gpt2, "llama": tiny_llama}
SPLITS: tuple[Split, ...] = ("role", "position")
GRADIENTS = ("eap", "eap-ig", "clean-corrupted")


def drawn(universe: tuple[str, ...], shares: tuple[float, ...]) -> list[frozenset[str]]:
    """Random circuits that keep about these shares of the edges."""
    source = np.random.default_rng(5)
    return [frozenset(e for e in universe if source.random() < share) for share in shares]


def with_roles(examples: Examples, *roles: dict[str, tuple[int, int]]) -> Examples:
    """The examples with other roles."""
    items = (replace(e, roles=r) for e, r in zip(examples, roles, strict=True))
    return Examples(tuple(items))


# ------------------------------------------------------------------------------ places and graph


def test_a_position_belongs_to_the_shortest_role_that_covers_it() -> None:
    spans = {"whole": (1, 6), "cue": (1, 2), "end": (5, 6), "tie": (5, 6)}
    examples = with_roles(pairs((6,)), spans)
    places = Places.of(examples, "role")
    assert places.names == ("cue", "end", "tie", "whole", "rest")
    found = [places.names[n] for n in places.numbers(examples, 7)[0].tolist()]
    assert found == ["rest", "cue", "whole", "whole", "whole", "tie", "rest"]
    assert (places.mask(examples).sum(2) == 1).all()
    assert [places.names[n] for n in places.numbers(examples, 2, first=4)[0].tolist()] == [
        "whole", "tie"
    ]  # fmt: skip


def test_edges_are_named_by_place_and_the_logits_are_not_told_apart() -> None:
    model = load(tiny_gpt2())
    plain = ComponentGraph.of(model)
    graph = Places.of(pairs((6, 7)), "role").graph(model)
    assert graph.places == ("cue", "end", "rest")
    into_logits = sum(e.endswith("->logits") for e in plain.edges)
    assert graph.n_edges == 3 * (plain.n_edges - into_logits) + into_logits
    chosen = ("a0.h1->a1.h0<q>@cue", "a0.h1->m1@rest", "m1->logits")
    assert set(graph.named(graph.mask(chosen))) == set(chosen)
    assert graph.readers("a1.h0<q>@cue") == ("a1.h0",) and graph.readers("m1@rest") == ("m1",)
    with pytest.raises(UnknownNameError, match="a0.h1->m1@cue"):
        graph.mask(["a0.h1->m1@clue"])


def test_a_query_acts_where_it_reads_and_a_value_at_every_later_position() -> None:
    model = load(tiny_gpt2())
    graph = Places.of(pairs((6,)), "position").graph(model)
    for port, place, alive in (("q", 2, False), ("q", 5, True), ("v", 2, True)):
        # the head's write at position 2 is read by nothing; that at 5 by the logits
        path = (f"embed->a1.h0<{port}>@{place}", "a1.h0->logits")
        assert graph.connected(graph.mask(path)).any() == alive, (port, place)
    # a head writes at 3 what it read at 2 or at 3, never what stands behind
    for value, alive in ((2, True), (3, True), (4, False)):
        path = (f"embed->a0.h0<v>@{value}", "a0.h0->m1@3", "embed->a1.h0<v>@3", "a1.h0->logits")
        kept = graph.connected(graph.mask((*path[:2], *path[2:])))
        assert not kept[graph.sources.index("a0.h0")].any()  # m1 at 3 feeds nothing
        path = (f"embed->a0.h0<v>@{value}", "a0.h0->a1.h0<v>@3", "a1.h0->logits")
        assert graph.connected(graph.mask(path)).any() == alive, value
    roles = Places.of(pairs((6,)), "role").graph(model)
    assert (roles.connected(roles.possible) == roles.possible).all()


# ------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma"])
@pytest.mark.parametrize("method", GRADIENTS)
def test_scores_by_place_add_up_to_the_edge(family: str, method: str) -> None:
    model = load(build(family))
    for split, examples in (("role", pairs((6, 7, 9))), ("position", pairs((7, 7)))):
        plain = find(model, examples, method=method)
        apart = find(model, examples, method=method, split=split)
        assert isinstance(apart, EdgeScores) and apart.level == f"{split}-edge"
        summed = apart.coarsened("edge")
        assert summed.targets == plain.graph.targets
        wanted = np.nan_to_num(plain.matrix())
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(summed.values, wanted, atol=2e-6 * scale)
        for level in ("node", "block", "layer"):
            one, other = plain.coarsened(level), apart.coarsened(level)  # type: ignore[arg-type]
            np.testing.assert_allclose(other.values, one.values, atol=1e-5 * scale)
        assert apart.saturated is None and apart.note == ""
        most = apart.coarsened("edge", magnitudes=True).values
        assert (most >= np.abs(summed.values) - 1e-9).all() and most.sum() == pytest.approx(
            np.abs(apart.mean).sum()
        )


def test_the_split_into_batches_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from microtome.circuits.edges import port_gradients

    model, examples = load(build("llama")), pairs((6, 7, 6, 8))
    whole = find(model, examples, method="eap", split="role")
    monkeypatch.setattr(port_gradients, "TABLE", 1)
    single = find(model, examples, method="eap", split="role")
    np.testing.assert_allclose(single.mean, whole.mean, atol=2e-5 * np.abs(whole.mean).max())


@pytest.mark.parametrize("family", TINY)
def test_the_score_at_a_place_is_the_slope_of_the_model_written_out(family: str) -> None:
    module = TINY[family]()
    slow, examples = Slow(module), pairs((6,))
    found = find(load(module), examples, method="eap", split="position")
    e = examples[0]
    prompts = {"clean": examples.clean, "corrupt": examples.corrupt}
    ablated = ablated_writes(slow, prompts, 0, "resample")
    clean: dict[str, torch.Tensor] = {}
    plain = slow.logits(e.clean, writes=clean)
    step = 1e-5
    near = {name: clean[name] + step * (ablated[name] - clean[name]) for name in clean}
    for number in range(0, len(found.universe), 23):
        cut = frozenset({found.universe[number]})
        slope = (plain - slow.logits(e.clean, near, cut, places=found.graph.places)) / step
        wanted = float(slope[e.answers[0][0]] - slope[e.wrongs[0][0]])
        assert found.mean[number] == pytest.approx(wanted, rel=2e-3, abs=2e-4)


# ---------------------------------------------------------------------------------------- circuits


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
@pytest.mark.parametrize("split", SPLITS)
def test_circuits_equal_the_model_written_out(family: str, ablation: str, split: Split) -> None:
    module = TINY[family]()
    model, slow, examples = load(module), Slow(module), pairs((6, 6))
    ablator = EdgeAblator(model, examples, ablation=ablation, split=split)  # type: ignore[arg-type]
    everything = frozenset(ablator.universe)
    late = [everything - {e} for e in ablator.universe if "->a1" in e][:30:10]
    circuits = [*drawn(ablator.universe, (0.9, 0.5, 0.1, 0.0)), *late]
    found = ablator.run(circuits)["logit_difference"]
    prompts = {"clean": examples.clean, "corrupt": examples.corrupt}
    places = Places.of(examples, split)
    for row, example in enumerate(examples):
        ablated = ablated_writes(slow, prompts, row, ablation)
        names = [places.names[n] for n in places.numbers(examples, 6)[row].tolist()]
        for number, circuit in enumerate(circuits):
            end = slow.logits(example.clean, ablated, everything - circuit, places=names)
            wanted = float(end[example.answers[0][0]] - end[example.wrongs[0][0]])
            assert found[number, row] == pytest.approx(wanted, abs=3e-4), (number, row)
    assert np.ptp(found[:, 0]) > 0.1


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "granite", "mixtral"])
@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_an_edge_at_all_places_is_the_edge(family: str, ablation: str) -> None:
    model, examples = load(build(family)), pairs((7, 5, 8))
    plain = EdgeAblator(model, examples, ablation=ablation)  # type: ignore[arg-type]
    apart = EdgeAblator(model, examples, ablation=ablation, split="role")  # type: ignore[arg-type]
    kept = [frozenset(plain.universe), *drawn(plain.universe, (0.9, 0.6, 0.2)), frozenset()]
    same = [frozenset(e for e in apart.universe if e.split("@")[0] in k) for k in kept]
    wanted, found = plain.run(kept)["logit_difference"], apart.run(same)["logit_difference"]
    np.testing.assert_allclose(found, wanted, atol=5e-5)
    np.testing.assert_allclose(found[0], evaluate_behavior(model, examples).values, atol=3e-5)


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_one_edge_at_one_position_is_one_write_into_the_port_there(family: str) -> None:
    """In a parallel block, and with shared keys: the port's input is changed by hand."""
    model, examples = load(build(family)), pairs((7,))
    assert model.anatomy is not None
    ablator = EdgeAblator(model, examples, split="position")
    everything, e = frozenset(ablator.universe), examples[0]
    port = next(v for v in ablator.graph.targets if v.startswith("a1.") and "<k>@3" in v)
    for target, site, norm in (
        ("m1@3", at("mlp.in", layer=1), "mlp.norm"), (port, at("attn.in.k", layer=1), "attn.norm"),
    ):  # fmt: skip
        block = model.anatomy.blocks[1]
        path = block.norms[norm]
        sites = ["blocks.0.attn.result", f"module:{path}:in"]
        clean = model.trace(e.clean, capture=sites)
        corrupt = model.trace(e.corrupt, capture=sites)
        stream = clean.value(sites[1]).clone()
        stream[:, 3] += (corrupt.value(sites[0]) - clean.value(sites[0]))[:, 3, 1]
        with torch.no_grad():
            read = model.module.get_submodule(path)(stream)[0, 3]

        def change(value: torch.Tensor, read: torch.Tensor = read) -> torch.Tensor:
            new = value.clone()
            new[:, 3] = read
            return new

        where = site if target == "m1@3" else at("attn.in.k", layer=1, head=0)
        changed = model.trace(e.clean, interventions=[where.apply(change)]).logits
        assert changed is not None
        wanted = float(changed[0, -1, e.answers[0][0]] - changed[0, -1, e.wrongs[0][0]])
        cut = everything - {f"a0.h1->{target}"}
        found = ablator.run([cut])["logit_difference"]
        assert found[0, 0] == pytest.approx(wanted, abs=3e-5), target
        assert abs(wanted - evaluate_behavior(model, examples).values[0]) > 1e-6


def test_batches_lengths_restarts_and_small_budgets_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from microtome.circuits.edges import ablation as edge_ablation

    model, examples = load(build("llama")), pairs((6, 9, 6, 7))
    ablator = EdgeAblator(model, examples, split="role")
    circuits = drawn(ablator.universe, (0.97, 0.9, 0.6, 0.3))
    together = ablator.run(circuits)["logit_difference"]
    for number, example in enumerate(examples):
        alone = EdgeAblator(model, Examples((example,)), split="role").run(circuits)
        np.testing.assert_allclose(alone["logit_difference"][:, 0], together[:, number], atol=3e-5)
    monkeypatch.setattr(edge_ablation, "BUDGET", 1)
    np.testing.assert_allclose(ablator.run(circuits)["logit_difference"], together, atol=3e-5)


@pytest.mark.parametrize("family", TINY)
def test_exact_scores_are_those_of_circuits_without_the_edge(family: str) -> None:
    model, examples = load(TINY[family]()), pairs((6, 6))
    found = find(model, examples, method="exact-edges", split="role")
    assert isinstance(found, EdgeScores)
    ablator = EdgeAblator(model, examples, split="role")
    everything = frozenset(ablator.universe)
    some = found.universe[::31]
    values = ablator.run([everything, *(everything - {e} for e in some)])["logit_difference"]
    wanted = (values[0] - values[1:]).mean(1)
    np.testing.assert_allclose(found.mean[found.graph.numbers(some)], wanted, atol=1e-4)


def test_scores_and_circuits_are_saved_selected_and_read_again(tmp_path: Path) -> None:
    scores = find(load(tiny_llama()), pairs((6, 6)), method="eap", split="role")
    assert isinstance(scores, EdgeScores)
    again = EdgeScores.load(scores.save(tmp_path / "scores.json"))
    assert again.level == "role-edge" and again.graph.places == ("cue", "end", "rest")
    circuit = again.select(edges=20, connected=True)
    assert circuit.level == "role-edge" and len(circuit) == 20
    read = Circuit.load(circuit.save(tmp_path / "circuit.json"))
    assert read.parts == circuit.parts and read.of_edges
    pruned = again.select(threshold=float(np.quantile(np.abs(again.mean), 0.5)), connected=True)
    assert pruned.level == "role-edge" and 0 < len(pruned) <= len(again.universe) // 2 + 1


def test_what_is_refused() -> None:
    model, examples = load(build("gpt2")), pairs((6, 6))
    with pytest.raises(ConfigError, match="expected one of role, position"):
        find(model, examples, method="eap", split="word")
    with pytest.raises(PairError, match="6 to 7 tokens"):
        find(model, pairs((6, 7)), method="eap", split="position")
    unequal = with_roles(examples, {"cue": (1, 2)}, {"cue": (1, 2), "name": (2, 3)})
    with pytest.raises(
        PairError, match="Example 1 has the roles 'cue', 'name' and example 0 'cue'"
    ):
        EdgeAblator(model, unequal, split="role")
    with pytest.raises(PairError, match="name no roles"):
        find(model, with_roles(examples, {}, {}), method="eap", split="role")
    with pytest.raises(UnknownNameError, match="No edge 'embed->m0@clue'; nearest: embed->m0@cue"):
        EdgeAblator(model, examples, split="role").run([frozenset({"embed->m0@clue"})])
    with pytest.raises(ConfigError, match="takes no split"):
        find(model, examples, method="mask-ig", split="role")
    with pytest.raises(ModelSupportError, match="attention looks ahead"):
        find(load(build("modernbert")), examples, method="eap", split="position")


def test_too_many_edges_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from microtome.circuits import places

    monkeypatch.setattr(places, "MOST_EDGES", 100)
    with pytest.raises(ConfigError, match="edges at 6 places are about"):
        find(load(build("gpt2")), pairs((6,)), method="eap", split="position")
