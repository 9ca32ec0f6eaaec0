"""Finding a circuit: attribution at both ends ranks the nodes, exact ablation confirms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from microtome.attribution import ComponentScores, component_names, support_at_both_ends
from microtome.circuits.ablation import Ablation, Ablator
from microtome.core.provenance import collect
from microtome.errors import ConfigError, UnknownNameError, nearest

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model

Method = Literal["attribution", "exact"]
METHODS: tuple[Method, ...] = get_args(Method)

MEANING = {
    "attribution": "Estimated support for the behavior: how much of the metric is lost when the "
    "node is patched out of the clean run, averaged with how much returns when it is patched into "
    "the corrupt one.",
    "exact": "Support for the behavior: how much of the metric is lost when this node alone is "
    "ablated.",
}


def find(
    model: Model,
    examples: Examples,
    *,
    method: str = "attribution",
    metric: str = "logit_difference",
    ablation: Ablation = "resample",
) -> ComponentScores:
    """Score every node by its support for a behavior, per example.

    Args:
        model: A transformer.
        examples: Where to look: the train split.
        method: ``attribution`` (gradients at the clean and the corrupt run, averaged) or ``exact``
            (each node ablated alone).
        metric: A metric that reads the prompt's end.
        ablation: What an ablated node gives, for ``exact``.

    Raises:
        UnknownNameError: If the method is unknown.
    """
    if method not in METHODS:
        raise UnknownNameError(f"No method {method!r}{nearest(method, METHODS)}.")
    if method == "exact":
        return _exact(model, examples, metric, ablation)
    values = support_at_both_ends(model, examples, metric=metric)
    return _scores(model, component_names(model), values, method, metric)


def _exact(model: Model, examples: Examples, metric: str, ablation: Ablation) -> ComponentScores:
    ablator = Ablator(model, examples, ablation=ablation)
    everything = frozenset(ablator.universe)
    found = ablator.run([everything, *(everything - {n} for n in ablator.universe)], [metric])[
        metric
    ]
    return _scores(model, ablator.universe, (found[0] - found[1:]).T, "exact", metric)


def _scores(
    model: Model, names: tuple[str, ...], values: np.ndarray, method: str, metric: str
) -> ComponentScores:
    return ComponentScores(
        names=names,
        values=values,
        method=method,
        metric=metric,
        meaning=MEANING[method],
        provenance=collect(model, {"method": method, "metric": metric}),
    )


def sizes_up_to(count: int) -> tuple[int, ...]:
    """Return the sizes a curve is computed at: every size up to 12, then a logarithmic grid."""
    if count < 1:
        raise ConfigError(f"There are {count} nodes; expected at least 1.")
    grid = {*range(0, min(12, count) + 1), count}
    grid |= {int(round(s)) for s in np.geomspace(12, count, 12)} if count > 12 else set()
    return tuple(sorted(s for s in grid if s <= count))


def top(ranking: Sequence[str], size: int) -> frozenset[str]:
    """Return the first nodes of a ranking."""
    return frozenset(ranking[:size])


def by_layer(nodes: frozenset[str], universe: Sequence[str]) -> tuple[str, ...]:
    """Return nodes in the order of the universe."""
    return tuple(n for n in universe if n in nodes)
