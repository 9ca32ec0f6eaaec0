"""Compiled programs: they compute exactly, and their edges are what patching says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from microtome.circuits import EdgeAblator, find
from microtome.circuits.graph import ComponentGraph, nodes_on
from microtome.circuits.truth import (
    PROGRAMS,
    Realism,
    compile_program,
    ground_truth,
    plant,
    planted_behavior,
    program,
)
from microtome.circuits.truth.patching import TRUTH_ABLATIONS, Patcher
from microtome.circuits.truth.rasp import (
    INDICES,
    TOKENS,
    Aggregate,
    Correction,
    InverseWidth,
    Map,
    Select,
    SequenceMap,
    Vote,
    evaluate,
    selector_width,
)
from microtome.circuits.truth.realism import COPIES, PLAIN
from microtome.circuits.truth.structure import structural_edges
from microtome.circuits.truth.weights import ModuleWeights
from microtome.errors import ConfigError, UnknownNameError


def values(operation, text: str):
    return evaluate(operation, tuple(text))[id(operation)]


def logits_of(compiled) -> dict[tuple[str, ...], np.ndarray]:
    """Logits at the end of every input, from the module itself."""
    by_length: dict[int, list[tuple[str, ...]]] = {}
    for tokens in compiled.answers:
        by_length.setdefault(len(tokens), []).append(tokens)
    found = {}
    for inputs in by_length.values():
        with torch.no_grad():
            rows = compiled.module(torch.tensor([compiled.ids(s) for s in inputs])).logits[:, -1]
        found |= dict(zip(inputs, rows.numpy(), strict=True))
    return found


def test_the_language() -> None:
    same = Select(TOKENS, TOKENS, lambda k, q: k == q)
    before = Select(INDICES, INDICES, lambda k, q: k == q - 1)
    previous = Aggregate(before, TOKENS)
    assert values(selector_width(same, 9), "abaa") == (1, 1, 2, 3)
    assert values(previous, "abc") == (None, "a", "b")
    assert values(InverseWidth(before), "abc") == (1.0, 0.5, 0.5)
    share = Aggregate(
        Select(TOKENS, TOKENS, lambda k, q: True), Map(lambda t: t == "a", TOKENS, True)
    )
    assert values(share, "ab") == (1.0, 0.5)
    assert values(SequenceMap(lambda a, b: a + b, previous, TOKENS), "abc") == (None, "ab", "bc")
    # two different values are selected at once: there is no category
    assert values(Aggregate(Select(TOKENS, TOKENS, lambda k, q: True), TOKENS), "ab") == ("a", None)
    votes = Vote((TOKENS, TOKENS, previous), 2)
    assert values(votes, "ab") == ("a", "b")
    assert values(Vote((TOKENS, previous), 2), "aab") == (None, "a", None)
    assert values(Correction(previous, TOKENS), "ab") == ("a", "b")


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("realism", [PLAIN, Realism()], ids=["plain", "hidden"])
def test_a_program_is_exact_on_its_whole_input_space(name: str, realism: Realism) -> None:
    compiled = compile_program(program(name), realism=realism, seed=3)
    found = logits_of(compiled)
    assert set(found) == set(compiled.program.inputs)
    number = {t: n for n, t in enumerate(compiled.vocabulary)}
    answers = [compiled.vocabulary[int(row.argmax())] for row in found.values()]
    assert answers == [compiled.answers[s] for s in found]
    if not compiled.output.numerical:
        wanted = np.array([np.eye(len(number))[number[compiled.answers[s]]] * 4.0 for s in found])
        assert np.abs(np.array(list(found.values())) - wanted).max() < 1e-3


@pytest.mark.parametrize("copies", [c for c in COPIES if c != "none"])
def test_copies_leave_the_program_as_it_is(copies: str) -> None:
    compiled = compile_program(program("previous-token"), realism=Realism(copies=copies))
    for tokens, row in logits_of(compiled).items():
        assert compiled.vocabulary[int(row.argmax())] == tokens[-2]
    assert len(compiled.copies) == {"either": 2, "vote": 3, "backup": 2}[copies]


def test_a_compiled_module_opens_like_any_other() -> None:
    compiled = compile_program(program("reverse"))
    model = compiled.model
    assert model.anatomy.n_layers == 3 and model.anatomy.n_heads == 3
    assert model.anatomy.causal and model.anatomy.d_mlp > 0
    assert all(b.placement == "sequential" for b in model.anatomy.blocks)
    assert model.verify().passed
    assert all(
        s.present for s in model.sites() if s.name.endswith(("attn.z", "mlp.act", "pattern"))
    )


def test_compiling_is_deterministic_and_leaves_the_global_seed_alone() -> None:
    before = torch.get_rng_state()
    one, two, other = (compile_program(program("and"), seed=s).module for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [m.transformer.h[0].attn.c_attn.weight for m in (one, two, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_known_circuits() -> None:
    """In the plain previous-token program one head does it; its keys and queries are constant."""
    truth = ground_truth(compile_program(program("previous-token"), realism=PLAIN), n=40)
    edges = ("embed->a0.h0<q>", "embed->a0.h0<k>", "embed->a0.h0<v>", "a0.h0->logits")
    assert truth.structural == edges
    assert truth.functional("zero") == edges
    assert truth.functional("resample") == edges[2:]
    assert truth.roles["a0.h0"] == "aggregate (category)" and truth.parts == ("a0.h0",)


@pytest.mark.parametrize("name", ["histogram", "induction", "xor"])
def test_decoys_and_rotation_keep_the_truth(name: str) -> None:
    plain, hidden = (compile_program(program(name), realism=r, seed=5) for r in (PLAIN, Realism()))
    one, two = (ground_truth(c, n=40) for c in (plain, hidden))
    assert len(two.universe) > len(one.universe)
    assert len(one.structural) == len(two.structural)
    for ablation in TRUTH_ABLATIONS:
        assert len(one.functional(ablation)) == len(two.functional(ablation))
        assert set(two.functional(ablation)) <= set(two.structural)
    assert {two.roles[p] for p in two.parts} == {one.roles[p] for p in one.parts}


def test_redundant_copies_work_only_together() -> None:
    compiled = compile_program(program("previous-token"), realism=Realism(copies="vote"))
    truth = ground_truth(compiled, n=40)
    (merged,) = truth.alone["resample"]
    assert merged.endswith("->logits")
    # embed->value and head->vote of each of the three copies
    assert len(truth.together["resample"]) == 6
    either = ground_truth(
        compile_program(program("previous-token"), realism=Realism(copies="either")), n=40
    )
    assert len(either.together["zero"]) == 6 and not either.together["resample"]


@pytest.mark.parametrize("ablation", TRUTH_ABLATIONS)
def test_two_implementations_of_edge_patching_agree(ablation: str) -> None:
    compiled = compile_program(program("induction"))
    model = compiled.model
    examples = planted_behavior(compiled, n=20).prepare(model)
    ablator = EdgeAblator(model, examples, ablation=ablation)
    everything = frozenset(ablator.universe)
    live = structural_edges(ModuleWeights.of(compiled.module), ComponentGraph.of(model))
    patches = [(), *((e,) for e in ablator.universe[::5]), live, live[:3], live[2:5]]
    found = ablator.run([everything - set(p) for p in patches])["logit_difference"]
    patcher = Patcher(
        ModuleWeights.of(compiled.module), ComponentGraph.of(model), examples, ablation
    )
    assert np.abs(found - patcher.differences(patches)).max() < 1e-3


def test_edges_into_an_mlp_without_a_norm_carry_no_gradient_of_what_goes_on() -> None:
    """The stream that an MLP reads goes on behind it; only the MLP's own reading counts."""
    planted = plant("and", n=40)
    examples = planted.behavior.prepare(planted.model)
    scores = find(planted.model, examples, method="eap")
    decoys = [e for e in scores.universe if e not in planted.truth.structural]
    strength = dict(zip(scores.universe, np.abs(scores.mean), strict=True))
    largest = max(strength.values())
    assert largest > 1.0 and max(strength[e] for e in decoys) < 1e-4 * largest


def test_planted_items() -> None:
    compiled = compile_program(program("reverse"))
    behavior = planted_behavior(compiled, n=60, seed=2)
    examples = behavior.prepare(compiled.model)
    assert {s: len(behavior.split(s)) for s in ("train", "validation", "test")} == {
        "train": 30, "validation": 12, "test": 18
    }  # fmt: skip
    for item in behavior.items:
        clean, corrupt = tuple(item.clean.split()), tuple(item.corrupt.split())
        assert len(clean) == len(corrupt)
        assert item.answers == (f" {compiled.answers[clean]}",)
        assert item.wrongs == (f" {compiled.answers[corrupt]}",)
    kept = {s: {e.template for e in examples.split(s)} for s in ("train", "validation", "test")}
    assert not kept["test"] & (kept["train"] | kept["validation"])
    clusters = {s: set(examples.split(s).clusters) for s in ("train", "validation")}
    assert not clusters["train"] & clusters["validation"]
    pairs = {(i.clean, i.corrupt) for i in behavior.items}
    assert {(b, a) for a, b in pairs} == pairs


def test_a_planted_circuit_keeps_everything_and_is_all_there_is() -> None:
    from microtome.circuits import evaluate as judge

    planted = plant("induction", n=60)
    test = planted.behavior.prepare(planted.model).split("test")
    found = judge(planted.model, test, planted.circuit())
    assert found.faithfulness.value == pytest.approx(1.0, abs=1e-4)
    assert found.moved.value == pytest.approx(1.0, abs=1e-4)
    edges = planted.circuit(level="edge")
    assert edges.level == "edge" and edges.parts == planted.truth.functional("resample")
    graph = ComponentGraph.of(planted.model)
    assert planted.circuit().parts == nodes_on(edges.parts, graph)


def test_with_a_backup_one_arm_is_enough_and_not_needed() -> None:
    from microtome.circuits import evaluate as judge

    planted = plant("induction", realism=Realism(copies="backup"), n=60)
    test = planted.behavior.prepare(planted.model).split("test")
    found = judge(planted.model, test, planted.arm(0))
    assert found.faithfulness.value == pytest.approx(1.0, abs=1e-4)
    assert found.moved.value == pytest.approx(0.0, abs=1e-4)
    with pytest.raises(ConfigError, match="2 copies"):
        planted.arm(2)


def test_a_truth_is_saved_and_loaded(tmp_path) -> None:
    truth = ground_truth(compile_program(program("and"), realism=PLAIN), n=20)
    again = type(truth).load(truth.save(tmp_path / "truth.json"))
    assert again.structural == truth.structural and again.alone == truth.alone
    assert list(truth.to_frame().columns)[:2] == ["edge", "structural"]


def test_refusals() -> None:
    with pytest.raises(UnknownNameError, match="induction"):
        program("inductoin")
    with pytest.raises(ConfigError, match="copies"):
        Realism(copies="twice")
    with pytest.raises(ConfigError, match="decoys"):
        Realism(decoy_heads=-1)
    with pytest.raises(ConfigError, match="three splits"):
        planted_behavior(compile_program(program("and")), n=10)
    with pytest.raises(ConfigError, match="of numbers"):
        compile_program(program("fraction-of-previous"), realism=Realism(copies="vote"))
