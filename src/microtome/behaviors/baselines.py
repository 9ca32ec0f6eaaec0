"""What predicts the answer without the model: n-grams with backoff and a bag of words.

Both are fitted on the train split, on clean prompts with their answers and corrupt prompts with
theirs, and then choose between the answer and the wrong answer of each test item. A tie counts
half.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator

import numpy as np

from microtome.behaviors.examples import Example, Examples, Tokens

LONGEST = 4
"""Tokens of context of the longest n-gram."""


def _labelled(examples: Examples) -> Iterator[tuple[Tokens, int]]:
    for example in examples:
        yield example.clean, example.answers[0][0]
        yield example.corrupt, example.wrongs[0][0]


def ngram_accuracy(train: Examples, test: Examples) -> np.ndarray:
    """Return whether the longest seen n-gram prefers each test item's answer: 0, 0.5 or 1."""
    counts: Counter[tuple[Tokens, int]] = Counter()
    for prompt, answer in _labelled(train):
        for size in range(min(LONGEST, len(prompt)) + 1):
            counts[prompt[len(prompt) - size :], answer] += 1
    return np.array([_ngram_choice(counts, e) for e in test])


def _ngram_choice(counts: Counter[tuple[Tokens, int]], example: Example) -> float:
    right, wrong = example.answers[0][0], example.wrongs[0][0]
    for size in range(min(LONGEST, len(example.clean)), -1, -1):
        context = example.clean[len(example.clean) - size :]
        a, b = counts[context, right], counts[context, wrong]
        if a != b:
            return float(a > b)
    return 0.5


def bag_of_words_accuracy(train: Examples, test: Examples, *, seed: int = 0) -> np.ndarray:
    """Return whether a logistic regression on token counts prefers each test item's answer.

    Answers that never occur in the train split are as good as one another, which counts half.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    prompts, answers = zip(*_labelled(train), strict=True)
    vocabulary = {t: n for n, t in enumerate(sorted({t for p in prompts for t in p}))}
    classes = sorted(set(answers))
    if len(classes) < 2:
        return np.full(len(test), 0.5)
    fitted = LogisticRegression(max_iter=300, random_state=seed)
    with warnings.catch_warnings():
        # more steps do not change the choices of a separable fit
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted.fit(_counts(prompts, vocabulary), np.array(answers))
    scores = fitted.predict_proba(_counts([e.clean for e in test], vocabulary))
    column = {int(c): n for n, c in enumerate(fitted.classes_)}
    return np.array([_bag_choice(row, column, e) for row, e in zip(scores, test, strict=True)])


def _counts(prompts: object, vocabulary: dict[int, int]) -> np.ndarray:
    rows = list(prompts)  # type: ignore[call-overload]
    table = np.zeros((len(rows), len(vocabulary)))
    for number, prompt in enumerate(rows):
        for token in prompt:
            if token in vocabulary:
                table[number, vocabulary[token]] += 1
    return table


def _bag_choice(row: np.ndarray, column: dict[int, int], example: Example) -> float:
    right, wrong = example.answers[0][0], example.wrongs[0][0]
    a = row[column[right]] if right in column else 0.0
    b = row[column[wrong]] if wrong in column else 0.0
    return 0.5 if a == b else float(a > b)
