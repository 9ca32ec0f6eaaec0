"""Names: parts written by hand get theirs, twins get none, and nulls equal their slow versions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.circuits.named_parts import VOCAB, planted
from tests.small import code_model

from microtome.behaviors import quote_closing
from microtome.circuits import Circuit, PartNames, name_parts
from microtome.circuits.graph import ComponentGraph
from microtome.circuits.taxonomy.catalog import DETECTORS
from microtome.circuits.taxonomy.composition import _reader, _variance, _writer
from microtome.circuits.taxonomy.deciding import adjusted, compare
from microtome.circuits.taxonomy.detector import Detector, Scores
from microtome.circuits.taxonomy.inputs import make_inputs
from microtome.circuits.taxonomy.matching import _after_same, _same, eigenvalue_share
from microtome.circuits.taxonomy.material import Material, Reading
from microtome.circuits.taxonomy.shuffles import best_offset, key_shuffle, row_exchange
from microtome.core.seeds import rng
from microtome.core.stats import benjamini_hochberg
from microtome.errors import ConfigError, UnknownNameError
from microtome.models.families import build
from microtome.tracing.opening import load

HEADS = [d.name for d in DETECTORS if d.kind == "head" and d.needs in ("weights", "random tokens")]


@pytest.fixture(scope="module")
def found() -> PartNames:
    stream = rng(0, "corpus")
    corpus = [stream.integers(0, VOCAB, 400).tolist() for _ in range(8)]
    return name_parts(planted(), corpus=corpus, twins=4)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("previous token", {"a0.h1"}),
        ("duplicate token", {"a0.h2"}),
        ("induction", {"a1.h2"}),
        ("induction in text", {"a1.h2"}),
        ("copying", {"a1.h2"}),
        ("copy suppression", {"a1.h3"}),
        ("attention sink", set()),
        ("positional", {"a0.h2"}),  # a duplicate-token head looks at the token itself, too
        ("token", {"m0.n0", "m1.n5"}),
        ("dead", {"m0.n2"}),
        ("confidence", {"m1.n5"}),
    ],
)
def test_planted_parts_get_their_names(found: PartNames, name: str, parts: set[str]) -> None:
    rows = found.labelled
    assert set(rows.loc[rows["name"] == name, "part"]) == parts, found.scores(name).head(3)


def test_the_planted_pair_composes_through_keys(found: PartNames) -> None:
    """It stands out from rotations and other pairs; twins of so sparse weights vary more."""
    best = found.scores("composition").iloc[0]
    assert best["part"] == "a0.h1->a1.h2<k>"
    assert best["z_shuffle"] > 10 and best["z_others"] > 10


def test_the_planted_position_neuron_is_the_first(found: PartNames) -> None:
    """Neurons of twins follow positions by chance, so that it stands out from no twin."""
    best = found.scores("position").iloc[0]
    assert best["part"] == "m0.n1" and best["score"] > 0.99 and best["z_shuffle"] > 100
    assert best["null"] == "twin" and best["z_twin"] == best["z"]


def test_every_name_keeps_the_rule(found: PartNames) -> None:
    rows = found.labelled
    assert len(rows) > 0 and (rows["z"] > 3).all() and (rows["q"] <= found.rate).all()
    known = rows[rows["threshold"].notna()]
    assert (known["score"] > known["threshold"]).all()
    assert rows["condition"].all()


def test_what_is_not_run_says_why(found: PartNames) -> None:
    assert found.not_run["mover"] == "no behavior was given"
    assert found.not_run["fan-in"] == "no circuit was given"
    assert "tokenizer" in found.not_run["delimiter"]
    assert "single tokens" in found.not_run["successor"]
    run = set(found.table["name"])
    assert run | set(found.not_run) == {d.name for d in DETECTORS}
    assert not run & set(found.not_run)
    assert "not run: mover" in found.summary() and "a1.h2" in found.summary()


def test_names_are_the_same_again_and_after_saving(found: PartNames, tmp_path: Path) -> None:
    model = planted()
    one, two = (name_parts(model, detectors=HEADS[:6], twins=2, seed=3) for _ in range(2))
    assert one.table.equals(two.table)
    loaded = PartNames.load(found.save(tmp_path / "names.json"))
    assert loaded.table.equals(found.table) and loaded.not_run == found.not_run


@pytest.mark.slow
def test_twins_of_small_random_models_get_no_names() -> None:
    named = 0
    for seed in range(20):
        with code_model(seed=seed).twin(900 + seed) as other:
            named += len(name_parts(other, detectors=HEADS, twins=2, seed=seed).labelled) > 0
    assert named <= 1


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "mpt"])
def test_other_shapes_are_scored_or_left_out_with_a_reason(family: str) -> None:
    """Shared keys, sliding windows, normed branches, biases instead of positions."""
    model = load(build(family))
    got = name_parts(model, detectors=HEADS, twins=1)
    assert set(got.table["name"]) | set(got.not_run) == set(HEADS)
    assert np.isfinite(got.table[["score", "z", "p", "q"]].to_numpy()).all()
    assert "previous token" in set(got.table["name"])


def test_a_behavior_and_a_circuit() -> None:
    """Only a1.h2 writes to the logits: it is the mover, and holds all direct effect of heads."""
    model = code_model()
    with torch.no_grad():
        for name, weight in model.module.named_parameters():
            if "mlp.c_proj" in name:
                weight.zero_()
            if "attn.c_proj.weight" in name:
                rows = weight.view(4, 8, -1)
                keep = rows[2].clone()
                weight.zero_()
                if "h.1." in name:
                    weight.view(4, 8, -1)[2] = keep
    graph = ComponentGraph.of(model)
    edges = tuple(e for e in graph.edges if e.startswith("embed->"))
    circuit = Circuit(edges, graph.edges, "from the embedding", level="edge")
    wanted = [d.name for d in DETECTORS if d.needs in ("behavior", "circuit")]
    got = name_parts(model, quote_closing(40), circuit=circuit, detectors=wanted, twins=1)
    scores = got.scores("mover").set_index("part")["score"]
    assert scores.drop("a1.h2").abs().max() < 1e-6
    extremes = got.scores("mover")["part"].iloc[[0, -1]].tolist()
    assert "a1.h2" in extremes and abs(scores["a1.h2"]) > 1e-4
    assert "fan-out" in got.names_of("embed")
    fans = got.scores("fan-out").set_index("part")
    assert fans.loc["embed", "score"] == len({r for e in edges for r in graph.readers(e[7:])})
    assert set(got.table["name"]) | set(got.not_run) == set(wanted)


def reading(seed: int, *, rows: int = 6, heads: int = 2, length: int = 20) -> Reading:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, heads, length, length, generator=generator)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    pattern = scores.masked_fill(future, float("-inf")).softmax(-1)
    tokens = torch.randint(0, 9, (rows, length), generator=generator)
    return Reading(tokens, {0: pattern}, {}, tokens, ())


def test_key_shuffles_in_closed_form_equal_drawn_ones() -> None:
    given = reading(0)
    pattern = given.patterns[0].double().numpy()
    length = pattern.shape[-1]
    target = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        target[query, max(0, query - 2) : query] = True
    closed = key_shuffle(given, 0, target)
    stream = np.random.default_rng(0)
    queries = range(3, length)

    def mass(head: int, *, shuffled: bool) -> float:
        total = []
        for row in pattern[:, head]:
            for q in queries:
                seen = stream.permutation(row[q, : q + 1]) if shuffled else row[q, : q + 1]
                total.append(seen[target[q, : q + 1].numpy()].sum())
        return float(np.mean(total))

    assert closed is not None
    for head in range(2):
        drawn = np.array([mass(head, shuffled=True) for _ in range(400)])
        left = 1 - drawn.mean()
        score = (mass(head, shuffled=False) - drawn.mean()) / left
        assert closed.score[head] == pytest.approx(score, abs=4 * drawn.std() / 20)
        assert closed.sd[head] == pytest.approx(drawn.std() / left, rel=0.15)


def test_the_best_offset_equals_the_best_of_single_offsets() -> None:
    given = reading(1)
    places = torch.arange(20)
    offset = places[:, None] - places[None, :]
    fast = best_offset(given, 0)
    slow = {o: key_shuffle(given, 0, offset == o) for o in range(10) if o != 1}
    assert fast is not None
    for head in range(2):
        best = max(slow, key=lambda o: slow[o].score[head])  # type: ignore[union-attr]
        assert fast[1][head] == best
        assert fast[0].score[head] == pytest.approx(slow[best].score[head])  # type: ignore[union-attr]
        assert fast[0].sd[head] == pytest.approx(slow[best].sd[head])  # type: ignore[union-attr]


def test_a_fixed_distance_earns_nothing_where_tokens_decide() -> None:
    """A head that always looks as far back as one period is no duplicate-token head."""
    inputs = make(planted())
    tokens, groups = inputs.repeats, inputs.periods
    rows, length = tokens.shape
    targets = _same(tokens, 0)
    fixed = torch.zeros(rows, 1, length, length)
    back = int(np.median(groups))
    for query in range(length):
        fixed[:, 0, query, max(0, query - back)] = 1
    # every key is seen by some row, so that the causal mask alone bounds what is visible
    spread = torch.tril(torch.ones(length, length)) * 1e-6
    found = row_exchange(
        Reading(tokens, {0: fixed + spread}, {}, tokens, ()), 0, targets, groups, 0
    )
    matched = (targets.tril().float() + 1e-6 * torch.tril(torch.ones(length, length)))[:, None]
    matched = matched / matched.sum(-1, keepdim=True)
    other = row_exchange(Reading(tokens, {0: matched}, {}, tokens, ()), 0, targets, groups, 0)
    assert found is not None and other is not None
    assert found.score[0] < 0.2 and other.score[0] > 0.95


def make(model):
    return make_inputs(
        model, corpus=None, examples=None, metric="logit_difference", circuit=None, lists={}, seed=0
    )


def test_targets_by_hand() -> None:
    tokens = torch.tensor([[4, 5, 4, 5]])
    assert _same(tokens, 0)[0].nonzero().tolist() == [[0, 2], [1, 3], [2, 0], [3, 1]]
    # behind the copy of 4 at 0 comes 1, behind the copy of 5 at 1 comes 2
    assert _after_same(tokens, 0)[0].tril().nonzero().tolist() == [[2, 1], [3, 2]]
    assert not _same(tokens, 1)[0, :, 0].any()


def test_eigenvalues_of_copying() -> None:
    material = Material(planted(), make(planted()))
    assert eigenvalue_share(material, 1, 2) == pytest.approx(1.0, abs=0.02)
    assert eigenvalue_share(material, 1, 3) == pytest.approx(-1.0, abs=0.02)


def test_composition_under_random_rotations() -> None:
    """The closed variance equals that of rotations that are really drawn."""
    model = code_model()
    material = Material(model, make(model))
    (left, own), reader = _writer(material, 0, 1), _reader(material, 1, 2, "k")
    assert reader is not None
    right, square = reader
    weights = model.weights.view(fold_norm=True)
    whole = (weights.OV(0, 1) @ weights.QK(1, 2).T).detach()
    assert float((left @ right).norm()) == pytest.approx(float(whole.norm()), rel=1e-4)
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(3000):
        turn, upper = torch.linalg.qr(torch.randn(32, 32, generator=generator))
        drawn.append(float((left @ (turn * upper.diag().sign()) @ right).square().sum()))
    sizes = float(left.square().sum()) * float(right.square().sum())
    assert np.mean(drawn) == pytest.approx(sizes / 32, rel=0.03)
    assert np.var(drawn) == pytest.approx(_variance(own, square, 32), rel=0.15)


def test_adjusted_values_agree_with_the_rule() -> None:
    p = np.random.default_rng(0).random(200) ** 4
    for rate in (0.01, 0.05, 0.3):
        np.testing.assert_array_equal(adjusted(p) <= rate, benjamini_hochberg(p, rate))


def test_the_hardest_null_decides() -> None:
    ones = np.ones(8)
    detector = Detector("x", "head", "", "", "weights", "", lambda m: own)
    own = Scores(tuple("abcdefgh"), np.array([1, 0, 0, 0, 0, 0, 0, 0.0]), 0 * ones, 0.1 * ones,
                 ones * 1e-9, ones > 0)  # fmt: skip
    other = Scores(own.parts, np.linspace(0, 2, 8), 0 * ones, 0.1 * ones, ones, ones > 0)
    row = compare(detector, own, [other]).iloc[0]
    assert row["null"] == "twin" and row["z"] == row["z_twin"] < row["z_shuffle"] == 10
    alone = compare(detector, own, []).iloc[0]
    assert alone["z"] == 10 and np.isnan(alone["z_twin"])


def test_the_page_lists_every_detector_with_its_source() -> None:
    page = (Path(__file__).parents[2] / "docs" / "names.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    for detector in DETECTORS:
        row = next(r for r in rows if detector.name in r.split("|")[1].strip().split(", "))
        assert detector.source in row
        assert (
            detector.threshold is None
            or detector.name == "dead"
            or f"{detector.threshold:g}" in row
        )


def test_errors() -> None:
    model = planted()
    with pytest.raises(UnknownNameError, match="induction"):
        name_parts(model, detectors=["inductions"])
    with pytest.raises(ConfigError, match="twins=0"):
        name_parts(model, twins=0)
    with pytest.raises(UnknownNameError, match="copying"):
        name_parts(model, detectors=["copying"], twins=1).scores("copyings")
