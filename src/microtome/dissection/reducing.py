"""Step 6, reduce: a shallow decision tree over named features that predicts the model's answer.

The tree predicts; that the model computes this way is not claimed. What counts is what it predicts
beyond the task's own rule: where the model departs from the right answer.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.behaviors.evaluate import evaluate
from microtome.behaviors.examples import Example, Examples
from microtome.core.seeds import rng
from microtome.core.stats import cluster_bootstrap, matthews
from microtome.dissection.results import Reduction

if TYPE_CHECKING:
    from microtome.tracing.model import Model

DEPTH = 3
"""Questions from root to leaf at most."""

CLASSES = 4
"""Most answers told apart by their text; with more, right and wrong are predicted."""

LEAF = 4
"""Train items in a leaf at least."""


def reduce(
    model: Model, train: Examples, test: Examples, *, metric: str, seed: int
) -> Reduction | None:
    """Fit a tree on train and score it on test.

    Args:
        model: The model.
        train: Where the tree is fitted.
        test: Where it is scored.
        metric: The metric whose deviance is explained.
        seed: For the permuted control and the bootstrap.

    Returns:
        The reduction, or None where the examples have no features.
    """
    from sklearn.tree import DecisionTreeClassifier

    columns = feature_columns(train)
    if not columns:
        return None
    fitted_on, scored_on = (_answers(model, part) for part in (train, test))
    table, held = _table(train, columns), _table(test, columns)
    tree = DecisionTreeClassifier(max_depth=DEPTH, min_samples_leaf=LEAF, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree.fit(table, fitted_on)
        control = DecisionTreeClassifier(max_depth=DEPTH, min_samples_leaf=LEAF, random_state=seed)
        control.fit(rng(seed, "permuted features").permutation(table), fitted_on)
    predicted = tree.predict(held)
    right = np.array([_right(e, test) for e in test])
    departs, says = scored_on != right, predicted != right
    values = evaluate(model, test, metric=metric).values
    trained = evaluate(model, train, metric=metric).values

    def share(hits: np.ndarray) -> Any:
        return cluster_bootstrap(hits.astype(float), test.clusters, seed=seed)

    commonest = Counter(fitted_on.tolist()).most_common(1)[0][0]
    both = 0 < departs.sum() < len(test) and 0 < says.sum() < len(test)
    return Reduction(
        tree=_nested(tree, 0, held, scored_on, columns),
        features=tuple(columns),
        agreement=share(predicted == scored_on),
        majority=share(scored_on == commonest),
        task_rule=share(scored_on == right),
        permuted=share(control.predict(held) == scored_on),
        beyond=float(matthews(departs, says)) if both else float("nan"),
        departures=int(departs.sum()),
        predicted_failures=int(says.sum()),
        confirmed_failures=int((says & departs).sum()),
        deviance=_deviance(tree, table, trained, train, held, values, test),
        failures=tuple(
            (test[int(i)].text[-70:], bool(departs[i])) for i in np.flatnonzero(says)[:5]
        ),
        leaves=int(tree.get_n_leaves()),
    )


def feature_columns(examples: Examples) -> list[str]:
    """Return the columns offered to the tree: numbers as they are, texts as ``name = value``."""
    columns: list[str] = []
    for name in examples[0].features:
        values = [e.features.get(name) for e in examples]
        if name == "template":
            continue
        if all(isinstance(v, int | float) for v in values):
            columns.append(name)
        else:
            columns += [f"{name} = {v}" for v in sorted({str(v) for v in values})[:12]]
    return columns


def _table(examples: Examples, columns: list[str]) -> np.ndarray:
    return np.array([[_cell(e, column) for column in columns] for e in examples])


def _cell(example: Example, column: str) -> float:
    name, equals, value = column.partition(" = ")
    found = example.features.get(name, 0.0)
    return float(str(found) == value) if equals else float(found)


def _texts(examples: Examples) -> bool:
    answers = {e.answers[0] for e in examples} | {e.wrongs[0] for e in examples}
    return len(answers) <= CLASSES


def _right(example: Example, examples: Examples) -> str:
    return str(example.answers[0][0]) if _texts(examples) else "right"


def _answers(model: Model, examples: Examples) -> np.ndarray:
    """Return the model's answer to each item: its token, or right and wrong for many."""
    hits = evaluate(model, examples, metric="accuracy").values
    if not _texts(examples):
        return np.where(hits > 0.5, "right", "wrong")
    chosen = [
        e.answers[0][0] if h > 0.5 else e.wrongs[0][0] for e, h in zip(examples, hits, strict=True)
    ]
    return np.array([str(c) for c in chosen])


def _nested(
    tree: Any, node: int, table: np.ndarray, answers: np.ndarray, columns: list[str]
) -> dict[str, Any]:
    """Return a node of the tree with the test items that reach it."""
    inner = tree.tree_
    counts = Counter(answers.tolist())
    label = str(tree.classes_[int(np.argmax(inner.value[node][0]))])
    found: dict[str, Any] = {
        "n": len(answers),
        "label": label,
        "purity": counts[label] / len(answers) if len(answers) else 0.0,
    }
    if inner.children_left[node] < 0:
        return found
    column, threshold = columns[inner.feature[node]], float(inner.threshold[node])
    goes_left = table[:, inner.feature[node]] <= threshold
    left = _nested(tree, inner.children_left[node], table[goes_left], answers[goes_left], columns)
    right = _nested(
        tree, inner.children_right[node], table[~goes_left], answers[~goes_left], columns
    )
    binary = " = " in column or set(np.unique(table[:, inner.feature[node]])) <= {0.0, 1.0}
    condition = column if binary else f"{column} > {threshold:g}"
    return {**found, "condition": condition, "yes": right, "no": left}


def _deviance(
    tree: Any,
    table: np.ndarray,
    trained: np.ndarray,
    train: Examples,
    held: np.ndarray,
    values: np.ndarray,
    test: Examples,
) -> float:
    """Return the share of the metric's variance that the leaves explain beyond the answer."""
    leaves, tested = tree.apply(table), tree.apply(held)
    means = {leaf: float(trained[leaves == leaf].mean()) for leaf in np.unique(leaves)}
    guess = np.array([means[leaf] for leaf in tested])
    given = np.array([_right(e, train) for e in train])
    right = {r: float(trained[given == r].mean()) for r in np.unique(given)}
    base = np.array([right.get(_right(e, test), float(trained.mean())) for e in test])
    total = float(((values - base) ** 2).sum())
    return 1.0 - float(((values - guess) ** 2).sum()) / total if total > 0 else 0.0
