"""Metrics of one's own, interventions while scoring, baselines that must be right or wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.small import code_model

import microtome as mt
from microtome.behaviors import (
    Behavior,
    Example,
    Examples,
    custom_metric,
    get,
    metric,
    names,
    quote_closing,
    score,
)
from microtome.behaviors.baselines import bag_of_words_accuracy, ngram_accuracy
from microtome.behaviors.check import _separation, check, gate_reasons
from microtome.behaviors.metrics import METRICS, SequenceLogProbability
from microtome.core.stats import Interval
from microtome.errors import ConfigError, EmptyDataError, MetricError

MODEL = code_model()
EXAMPLES = quote_closing(40).prepare(MODEL).split("test")


def example(
    clean: tuple[int, ...],
    answers: tuple[tuple[int, ...], ...],
    wrongs: tuple[tuple[int, ...], ...],
    corrupt: tuple[int, ...] | None = None,
) -> Example:
    other = corrupt or (*clean[:-1], 0)
    return Example(0, clean, other, answers, wrongs, "c", "t", "test", {}, {}, "")


ROW = torch.tensor([0.5, 2.0, -1.0, 1.0])
SETS = example((5, 6), ((1,), (3,)), ((2,), (0,)))
P = [math.exp(v) / sum(math.exp(w) for w in ROW.tolist()) for v in ROW.tolist()]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_difference", (2 + 1) / 2 - (-1 + 0.5) / 2),
        ("probability_difference", P[1] + P[3] - P[2] - P[0]),
        ("accuracy", 1.0),
        ("loss", -math.log(P[1] + P[3])),
    ],
)
def test_sets_of_answers_by_hand(name: str, value: float) -> None:
    chosen = METRICS[name]
    found = chosen(ROW[None, None], torch.tensor([2]), [SETS])  # type: ignore[operator]
    assert found.item() == pytest.approx(value, abs=1e-6)


def test_a_tie_is_half_right() -> None:
    tie = example((5,), ((0,),), ((1,),))
    assert METRICS["accuracy"](torch.ones(1, 1, 3), torch.tensor([1]), [tie]).item() == 0.5  # type: ignore[operator]


def test_kl_by_hand() -> None:
    p, q = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.0, 0.0]])
    value = metric("kl-to-unchanged").between(p, q).item()  # type: ignore[union-attr]
    assert value == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_sequences_by_hand_and_under_several_lengths() -> None:
    e = example((1, 2), ((3,), (0, 1)), ((2, 2),))
    rows = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    logp = torch.log_softmax(rows, -1)
    chosen = SequenceLogProbability()
    assert chosen.continuations(e) == ((3,), (0, 1), (2, 2)) and chosen.reads(e) == (-1, 0)
    values = chosen(rows, torch.tensor([3, 4, 4]), [e, e, e])
    hand = [logp[0, 1, 3], logp[1, 1, 0] + logp[1, 2, 1], logp[2, 1, 2] + logp[2, 2, 2]]
    torch.testing.assert_close(values, torch.stack(hand))
    assert chosen.combined(values, e) == max(hand[0], hand[1]) - hand[2]


def test_scored_sequences_equal_one_pass_each() -> None:
    base = EXAMPLES[0]
    e = example(base.clean, ((7,), (8, 9, 10)), ((11, 12),), base.corrupt)
    value = score(MODEL, Examples((e,)), metric="sequence_log_probability").values[0]
    sums = []
    for tokens in (*e.answers, *e.wrongs):
        logits = MODEL.trace([*e.clean, *tokens]).logits
        assert logits is not None
        logp = torch.log_softmax(logits[0], -1)
        at = len(e.clean) - 1
        sums.append(sum(float(logp[at + k, t]) for k, t in enumerate(tokens)))
    assert value == pytest.approx(max(sums[:2]) - sums[2], abs=1e-4)


def test_a_metric_of_ones_own() -> None:
    margin = custom_metric("margin", lambda row, e: row[e.answers[0][0]] - row.max(), unit="logits")
    assert not margin.linear and margin.unit == "logits"
    found = score(MODEL, EXAMPLES, metric=margin)
    logits = [MODEL.trace(e.clean).last()[0] for e in EXAMPLES]
    hand = [float(r[e.answers[0][0]] - r.max()) for r, e in zip(logits, EXAMPLES, strict=True)]
    np.testing.assert_allclose(found.values, hand, atol=1e-4)
    assert found.metric == "margin"
    with pytest.raises(MetricError, match="not linear"):
        margin.direction(EXAMPLES[0])


def test_a_linear_metric_of_ones_own_is_its_direction() -> None:
    def towards(e: Example) -> tuple[tuple[int, ...], tuple[float, ...]]:
        return (e.answers[0][0], e.wrongs[0][0]), (1.0, -1.0)

    linear = custom_metric("difference", direction=towards)
    np.testing.assert_allclose(
        score(MODEL, EXAMPLES, metric=linear).values, score(MODEL, EXAMPLES).values, atol=1e-5
    )
    assert linear.direction(EXAMPLES[0]) == metric("logit_difference").direction(EXAMPLES[0])


def test_metrics_that_cannot_be() -> None:
    with pytest.raises(MetricError, match="either a value or a direction"):
        custom_metric("m")
    bad = custom_metric("bad", lambda row, e: row[:2])
    with pytest.raises(MetricError, match="without axes"):
        score(MODEL, EXAMPLES, metric=bad)
    with pytest.raises(MetricError, match="custom_metric"):
        score(MODEL, EXAMPLES, metric=len)  # type: ignore[arg-type]
    with pytest.raises(MetricError, match="hold NaN"):
        score(
            MODEL,
            EXAMPLES,
            interventions=[mt.at("final.norm").apply(lambda value: value * float("nan"))],
        )
    with pytest.raises(MetricError, match="2 examples for 1 rows"):
        METRICS["loss"](torch.ones(1, 1, 3), torch.tensor([1]), [SETS, SETS])  # type: ignore[operator]
    with pytest.raises(ConfigError, match="batch_size=0"):
        score(MODEL, EXAMPLES, batch_size=0)
    with pytest.raises(EmptyDataError):
        score(MODEL, Examples(()))


def test_a_metric_is_differentiable() -> None:
    logits = torch.randn(2, 1, 12, requires_grad=True)
    two = [example((1,), ((3,),), ((4,),)), example((1,), ((5,), (6,)), ((7,),))]
    METRICS["logit_difference"](logits, torch.tensor([1, 1]), two).sum().backward()  # type: ignore[operator]
    assert logits.grad is not None
    for row, e in enumerate(two):
        ids, weights = metric("logit_difference").direction(e)
        expected = torch.zeros(12).index_add(0, torch.tensor(ids), torch.tensor(weights))
        torch.testing.assert_close(logits.grad[row, 0], expected)


@pytest.mark.parametrize("name", ["logit_difference", "accuracy"])
def test_examples_at_once_are_scored_as_one_by_one(name: str) -> None:
    logits = torch.randn(6, 12, generator=torch.Generator().manual_seed(0)).round()
    logits[3, 5] = -torch.inf
    some = [
        example((1,), tuple((a,) for a in right), tuple((w,) for w in wrong))
        for right, wrong in (((3,), (4,)), ((0, 6), (7,)), ((7, 8, 9), (1, 2)), ((5,), (0,)))
    ]
    chosen = METRICS[name]
    for rows in (some, some[:1] * 6, [*some, *some[:2]]):
        found = chosen(logits[: len(rows), None], torch.ones(len(rows)), rows)  # type: ignore[operator]
        slow = [chosen.value(row, e) for row, e in zip(logits, rows, strict=False)]  # type: ignore[union-attr]
        torch.testing.assert_close(found, torch.stack(slow))


def test_patches_of_the_batchs_own_other_run_give_the_other_run() -> None:
    sites = mt.at("resid_pre", layer=0)

    def from_corrupt(batch: Examples) -> list[object]:
        return [sites.patch(MODEL.trace(batch.corrupt, capture=[sites]))]

    patched = score(MODEL, EXAMPLES, interventions=from_corrupt, batch_size=5)
    other = score(MODEL, EXAMPLES, side="corrupt")
    np.testing.assert_allclose(patched.values, other.values, atol=1e-5)
    assert other.side == "corrupt"
    kl = score(MODEL, EXAMPLES, metric="kl_to_unchanged", interventions=from_corrupt)
    assert kl.values.min() > 0
    whole = score(MODEL, EXAMPLES).by_cluster()
    assert set(whole) == set(EXAMPLES.clusters)


def pairs(rows: list[tuple[tuple[int, ...], int, int]]) -> Examples:
    return Examples(
        tuple(example(c, ((a,),), ((w,),), corrupt=(*c[:-1], c[-1] ^ 1)) for c, a, w in rows)
    )


def test_an_ngram_takes_the_longest_context_it_has_seen() -> None:
    # the last token says 10 or 11 in three of four, but behind a 7 it is the other way round
    train = pairs([((5, 2), 10, 11)] * 3 + [((7, 2), 11, 10)])
    assert ngram_accuracy(train, pairs([((9, 2), 10, 11)]))[0] == 1.0
    assert ngram_accuracy(train, pairs([((9, 3), 11, 10)]))[0] == 1.0
    assert ngram_accuracy(train, pairs([((7, 2), 11, 10)]))[0] == 1.0
    assert ngram_accuracy(train, pairs([((7, 2), 10, 11)]))[0] == 0.0
    # as often as not overall, and never seen behind 8
    assert ngram_accuracy(train, pairs([((9, 8), 10, 11)]))[0] == 0.5


def test_short_prompts_count_their_contexts_once() -> None:
    # [5] says 10; of the longer context [5, 5] too; a prompt of one token must not wrap around
    train = Examples((example((5,), ((10,),), ((11,),), corrupt=(6,)),))
    assert ngram_accuracy(train, pairs([((1, 2, 3, 5), 10, 11)]))[0] == 1.0
    counts_once = pairs([((4, 5), 10, 11), ((9, 9, 9, 5), 11, 10), ((9, 9, 9, 5), 11, 10)])
    assert ngram_accuracy(counts_once, pairs([((0, 0, 0, 5), 11, 10)]))[0] == 1.0


def test_a_bag_of_words_finds_a_word_anywhere_and_no_order() -> None:
    word = Examples(
        tuple(
            example((2, 9, n, 30), ((10,),), ((11,),), corrupt=(n, 3, 9, 30)) for n in range(40, 46)
        )
    )
    assert bag_of_words_accuracy(word, pairs([((50, 51, 2, 30), 10, 11)]))[0] == 1.0
    assert bag_of_words_accuracy(word, pairs([((50, 3, 51, 30), 11, 10)]))[0] == 1.0
    order = Examples(
        tuple(
            example((*o, n, 30), ((a,),), ((21 - a,),), corrupt=(*reversed(o), n, 30))
            for n in range(40, 46)
            for o, a in (((2, 3), 10), ((3, 2), 11))
        )
    )
    found = bag_of_words_accuracy(order, order)
    assert found.mean() == 0.5


def test_separation_by_hand() -> None:
    clusters = np.array(["a", "a", "b", "b"])
    assert _separation(np.zeros(4), clusters) == 0.0
    assert _separation(np.ones(4), clusters) == math.inf
    assert _separation(np.array([1.0, 1, 3, 3]), clusters) == pytest.approx(2.0, rel=0.5)
    assert "0 clustered" in gate_reasons(Interval(0.9, 0.8, 1.0), 0.5, {}, 0.0)[0]


def test_the_gate_needs_every_split() -> None:
    behavior = quote_closing(40)
    only = Behavior("b", "b", "", behavior.split("test"))
    with pytest.raises(EmptyDataError, match="train split holds no examples"):
        check(MODEL, only)


def test_a_check_saves_and_loads(tmp_path) -> None:
    found = check(MODEL, quote_closing(40))
    again = type(found).load(found.save(tmp_path / "check.json"))
    assert again.accuracy == found.accuracy and again.reasons == found.reasons
    assert again.baselines == found.baselines and again.drops == found.drops


@pytest.fixture(scope="module")
def stories(shared_data):
    return mt.load(shared_data / "models/stories260K")


def test_the_story_model_shows_gendered_pronouns(stories) -> None:
    found = get("gendered-pronoun").check(stories)
    assert found.passed, found.reasons
    assert found.accuracy.value > 0.8 and found.twin.value < 0.75
    inverted = get("gendered-pronoun").invert().check(stories)
    assert not inverted.passed
    assert inverted.accuracy.value == pytest.approx(1 - found.accuracy.value)
    assert not get("gendered-pronoun").shuffle(0).check(stories).passed


@pytest.mark.parametrize("name", names())
def test_every_behavior_fills_its_splits_for_the_story_model(stories, name: str) -> None:
    examples = get(name).prepare(stories)
    assert [len(examples.split(s)) for s in ("train", "validation", "test")] == [100, 40, 60]
    for e in examples:
        assert e.clean[0] == stories.tokenizer.bos_token_id
        for start, stop in e.roles.values():
            assert 0 < start < stop <= len(e.clean)
