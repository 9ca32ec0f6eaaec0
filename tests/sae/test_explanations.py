"""Explanations of latents of which the rule is known, and their scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from microtome.errors import ConfigError, EmptyDataError
from microtome.sae import LatentIndex
from microtome.sae.reading.explanations import explain
from microtome.sae.reading.families import Families
from microtome.sae.reading.index import Sparse
from microtome.sae.reading.scoring import explain_all, to_frame
from microtome.sae.reading.templates import templates
from microtome.sae.reading.trials import intruder

WORDS = ["the", " cat", " dog", "\n", "'", " sat", "(", ")", "X", " 7"]


def made(rules: list[object], contexts: int = 60, length: int = 20) -> LatentIndex:
    """An index of random text in which latent ``i`` is active where ``rules[i]`` says."""
    stream = np.random.default_rng(3)
    ids = stream.integers(0, len(WORDS), contexts * length).astype(np.int32)
    starts = np.arange(contexts + 1, dtype=np.int64) * length
    dense = np.zeros((len(ids), len(rules)), dtype=np.float32)
    for number, rule in enumerate(rules):
        for position in range(len(ids)):
            start = position // length * length
            text = [WORDS[i] for i in ids[start : position + 1]]
            dense[position, number] = rule(text)  # type: ignore[operator]
    positions, latents = np.nonzero(dense)
    counts = np.bincount(positions, minlength=len(ids))
    rows = Sparse(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        latents.astype(np.int32),
        dense[positions, latents],
    )
    return LatentIndex(
        ids,
        starts,
        np.arange(contexts, dtype=np.int32),
        np.zeros(len(ids), dtype=bool),
        rows,
        rows.transposed(len(rules)),
        len(rules),
        {},
        dict(enumerate(WORDS)),
    )


def in_quotes(text: list[str]) -> float:
    opened = False
    for token in text[:-1]:
        opened = token == "'" and not opened if token in ("'", "\n") else opened
    return 2.0 * opened


KNOWN = [
    lambda text: 3.0 * (text[-1] == " cat"),
    lambda text: 2.0 * (text[-2:-1] == ["("]),
    lambda text: 4.0 * (text[-2:] == [" dog", " sat"]),
    in_quotes,
    lambda text: 1.0 * (text[-1] in (" cat", " dog")) + 2.0 * (text[-1] == " sat"),
    lambda text: float(
        sum((i + 3) * len(t) ** 2 + ord(t[0]) * i for i, t in enumerate(text)) % 7 == 0
    ),
]


@pytest.fixture(scope="module")
def index() -> LatentIndex:
    return made(KNOWN)


@pytest.mark.parametrize(
    ("latent", "text"),
    [
        (0, "the token is `·cat`"),
        (1, "the token before is `(`"),
        (2, "the text ends in `·dog` `·sat`"),
        (3, "a quotation is open"),
    ],
)
def test_a_latent_with_one_rule_is_explained_by_it(
    index: LatentIndex, latent: int, text: str
) -> None:
    found = explain(Families.of(index), latent)
    assert found.text == text
    assert found.explained == pytest.approx(1)
    assert len(found.rules) == 1


def test_several_tokens_become_several_rules_with_their_own_activations(index: LatentIndex) -> None:
    families = Families.of(index)
    found = explain(families, 4)
    assert {r.words: r.activation for r in found.rules} == {
        "the token is: `·cat`": 1.0,
        "the token is: `·dog`": 1.0,
        "the token is: `·sat`": 2.0,
    }
    np.testing.assert_allclose(found.predict(families), index.matrix().toarray()[:, 4])


def slow_explanation(families: Families, latent: int, most: int = 8) -> list[tuple[str, tuple]]:
    """The greedy decision list, every rule counted anew at each step."""
    index = families.index
    values = index.matrix().toarray()[:, latent].astype(np.float64)
    left, total, chosen = families.learned.copy(), np.square(values[families.learned]).sum(), []
    while len(chosen) < most:
        best = (0.0, 0.0, -1, np.zeros(0))
        for row in families.numbers:
            for number in np.unique(row[left & (values != 0) & (row >= 0)]):
                holds = left & (row == number)
                if holds.sum() < 3:
                    continue
                gain = values[holds].sum() ** 2 / holds.sum()
                height = gain * (values[holds] != 0).mean()
                if height > best[0] * (1 + 1e-9):
                    best = (height, gain, int(number), holds)
        if best[2] < 0 or best[1] < 0.01 * total:
            break
        rule = families.rule(best[2], float(values[best[3]].mean()))
        chosen.append((rule.family, rule.key))
        left &= ~best[3]
    return chosen


def test_counting_once_finds_what_counting_anew_finds(index: LatentIndex) -> None:
    stream = np.random.default_rng(0)
    half = np.repeat(stream.random(len(index.contexts) - 1) < 0.5, np.diff(index.contexts))
    for families in (Families.of(index), Families.of(index).among(half)):
        for latent in range(len(KNOWN)):
            found = explain(families, latent)
            assert [(r.family, r.key) for r in found.rules] == slow_explanation(families, latent)
            if latent < 4:
                assert found.explained == pytest.approx(1)


def test_places_of_a_rule_are_those_of_its_own_text_and_empty_for_another(
    index: LatentIndex,
) -> None:
    families = Families.of(index)
    rule = explain(families, 2).rules[0]
    expected = np.flatnonzero(index.matrix().toarray()[:, 2])
    np.testing.assert_array_equal(families.places(rule), expected)
    for other in (replace(rule, key=(99, 98)), replace(rule, key=(1,)), replace(rule, family="x")):
        assert not len(families.places(other))


def test_templates_of_position_repetition_and_comments() -> None:
    words = ["a", "#", "'", "b", "\n"]
    ids = np.array([0, 1, 2, 3, 4, 2, 0, 3, 3, 0], dtype=np.int32)
    index = replace(
        made(KNOWN[:1], contexts=1, length=10),
        ids=ids,
        contexts=np.array([0, 9, 10]),
        vocabulary=dict(enumerate(words)),
    )
    held = {name: np.flatnonzero(flags).tolist() for name, flags in templates(index).items()}
    assert held["a comment is open"] == [2, 3, 4]
    assert held["a quotation is open"] == [6, 7, 8]
    assert held["the token stood before in the text"] == [5, 6, 7, 8]
    assert held["the token before stood before that"] == [6, 7, 8]
    assert held["the text begins here"] == [0, 9]
    assert held["the token is one of the first 8"] == [*range(8), 9]


def test_good_explanations_score_high_and_the_baselines_do_not(index: LatentIndex) -> None:
    for e in explain_all(index, [0, 1, 3]):
        assert e.scores.simulation == pytest.approx(1)
        assert e.scores.fuzzing == 1.0
        assert e.scores.simulation > e.random.simulation + 0.5
        assert abs(e.shuffled.simulation) < 0.3
        assert 0.35 < e.shuffled.fuzzing < 0.65


def test_detection_tells_contexts_apart(index: LatentIndex) -> None:
    (e,) = explain_all(index, [2])
    assert e.scores.n_contexts > 10
    assert (e.scores.detection, e.scores.detection_accuracy) == (1.0, 1.0)


def test_a_latent_without_a_rule_is_not_explained(index: LatentIndex) -> None:
    (e,) = explain_all(index, [5])
    assert abs(e.scores.simulation) < 0.25


def test_the_intruder_is_found_for_a_latent_of_one_token_and_not_for_noise(
    index: LatentIndex,
) -> None:
    assert intruder(index, 0) > 0.5
    assert intruder(index, 5) < 0.4


def test_explanations_are_tabulated_and_seeded(index: LatentIndex) -> None:
    first, again = explain_all(index, [0, 4], seed=1), explain_all(index, [0, 4], seed=1)
    assert to_frame(first).equals(to_frame(again))
    assert list(to_frame(first).index) == [0, 4]


def test_what_cannot_be_explained_is_refused(index: LatentIndex) -> None:
    with pytest.raises(ConfigError, match="most=0"):
        explain(Families.of(index), 0, most=0)
    with pytest.raises(ConfigError, match="n_random"):
        explain_all(index, [0], n_random=0)
    with pytest.raises(EmptyDataError, match="1 context"):
        explain_all(made(KNOWN[:1], contexts=1), [0])
