"""Metrics against values worked out by hand, and the gate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.small import code_model

from microtome.behaviors import Example, Examples, metric, quote_closing, score
from microtome.behaviors.baselines import bag_of_words_accuracy, ngram_accuracy
from microtome.behaviors.check import check, gate_reasons
from microtome.core.stats import Interval
from microtome.errors import MetricError, UnknownNameError


def example(
    clean: tuple[int, ...], answers: tuple[int, ...], wrongs: tuple[int, ...], split: str = "test"
) -> Example:
    corrupt = (*clean[:-1], 0)
    return Example(
        0,
        clean,
        corrupt,
        tuple((a,) for a in answers),
        tuple((w,) for w in wrongs),
        "c",
        "t",
        split,
        {},
        {},
        "",
    )  # type: ignore[arg-type]


def test_last_token_metrics_by_hand() -> None:
    logits = torch.tensor([[[9.0, 9.0, 9.0], [1.0, 3.0, 2.0], [7.0, 7.0, 7.0]]])
    lengths = torch.tensor([2])
    one = [example((5, 6), (1,), (2,))]
    p = torch.softmax(logits[0, 1], 0)
    assert metric("logit-difference")(logits, lengths, one).item() == pytest.approx(1.0)  # type: ignore[operator]
    assert metric("probability_difference")(logits, lengths, one).item() == pytest.approx(
        (p[1] - p[2]).item()
    )  # type: ignore[operator]
    assert metric("loss")(logits, lengths, one).item() == pytest.approx(-math.log(p[1].item()))  # type: ignore[operator]
    assert metric("accuracy")(logits, lengths, one).item() == 1.0  # type: ignore[operator]
    both = [example((5, 6), (0, 1), (2,))]
    assert metric("logit_difference")(logits, lengths, both).item() == pytest.approx(
        (1 + 3) / 2 - 2
    )  # type: ignore[operator]


def test_direction_reproduces_the_linear_metric() -> None:
    logits = torch.randn(1, 1, 8)
    one = example((5, 6), (1, 4), (2,))
    ids, weights = metric("logit_difference").direction(one)
    value = (logits[0, 0, list(ids)] * torch.tensor(weights)).sum()
    assert value.item() == pytest.approx(
        metric("logit_difference")(logits, torch.tensor([2]), [one]).item(), abs=1e-6
    )  # type: ignore[operator]
    with pytest.raises(MetricError):
        metric("loss").direction(one)
    with pytest.raises(UnknownNameError, match="logit_difference"):
        metric("logit_diference")


def test_scores_do_not_depend_on_batch_size_and_sequences_are_summed() -> None:
    model = code_model()
    examples = quote_closing(40).prepare(model).split("test")
    one, many = (score(model, examples, batch_size=b).values for b in (1, 50))
    np.testing.assert_allclose(one, many, atol=2e-5)
    several = score(model, examples, metric="sequence_log_probability").values
    for place in (0, 3):
        e = examples[place]
        logp = torch.log_softmax(model.trace(e.clean).last()[0], -1)
        assert several[place] == pytest.approx(
            (logp[e.answers[0][0]] - logp[e.wrongs[0][0]]).item(), abs=1e-4
        )
    assert np.all(score(model, examples, metric="kl_to_unchanged").values == 0)


def test_baselines_know_what_they_can_know() -> None:
    train = Examples(
        tuple(example((1, 2, k % 2), (10 + k % 2,), (11 - k % 2,), "train") for k in range(8))
    )
    seen = Examples((example((7, 2, 1), (11,), (10,)),))
    unseen = Examples((example((7, 7, 9), (30,), (31,)),))
    assert ngram_accuracy(train, seen)[0] == 1.0
    assert ngram_accuracy(train, unseen)[0] == 0.5
    assert bag_of_words_accuracy(train, unseen)[0] == 0.5


def test_the_gate_names_what_fails() -> None:
    good = Interval(0.9, 0.85, 0.95)
    assert gate_reasons(good, 0.5, {"n-gram": Interval(0.6, 0.5, 0.7)}, 5.0) == ()
    assert "chance" in gate_reasons(Interval(0.6, 0.45, 0.7), 0.5, {}, 5.0)[0]
    assert "n-gram" in gate_reasons(good, 0.5, {"n-gram": Interval(0.88, 0.8, 0.9)}, 5.0)[0]
    assert "standard errors" in gate_reasons(good, 0.5, {}, 2.0)[0]


def test_a_random_model_ends_at_the_gate() -> None:
    found = check(code_model(), quote_closing(60))
    assert not found.passed and "nothing to explain" in found.sentence()
    assert found.n == 18
