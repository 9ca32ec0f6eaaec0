"""Step 2, locate: which parts carry the behavior?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from microtome.behaviors.examples import Examples
from microtome.circuits.finding import find
from microtome.dissection.results import Located, TokenEffects
from microtome.sweeps.planning import sweep

if TYPE_CHECKING:
    from microtome.circuits.ablation import Ablation
    from microtome.circuits.finding import Method
    from microtome.core.progress import Progress
    from microtome.tracing.model import Model

SWEPT = 48
"""Train items in the sweep of the residual stream."""

SHOWN = 4
"""Items whose tokens are shown, one for each of as many test templates."""


def locate(
    model: Model,
    train: Examples,
    test: Examples,
    *,
    metric: str,
    ablation: Ablation,
    method: Method,
    progress: Progress,
) -> Located:
    """Score every head and MLP two ways and sweep the residual stream.

    Args:
        model: The model.
        train: Where scores are computed.
        test: Where the shown items come from.
        metric: The metric.
        ablation: For the scores.
        method: The finder; where that is ``exact``, attribution stands beside it.
        progress: Told of the sweep.
    """
    quick: Method = "attribution" if method == "exact" else method
    scores = find(model, train, method=quick, metric=metric, ablation=ablation)
    exact = find(model, train, method="exact", metric=metric, ablation=ablation)
    streams = sweep(
        model, train[:SWEPT], "resid_pre", over="role", metric=metric, progress=progress
    )
    tokens = tuple(
        _token_effects(model, test.take([i]), metric) for i in one_per_template(test)[:SHOWN]
    )
    return Located(
        scores=scores,
        exact=exact,
        agreement=_correlation(scores.mean, exact.mean),
        streams=streams,
        tokens=tokens,
        answer_names=_answer_names(model, test),
    )


def _answer_names(model: Model, test: Examples) -> dict[str, str]:
    """Return the text of each answer's first token, by its id."""
    ids = {t[0] for e in test for t in (*e.answers, *e.wrongs)}
    return {str(i): model.tokens([i])[0] for i in sorted(ids)}


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def one_per_template(examples: Examples) -> list[int]:
    """Return the place of the first example of each template."""
    first: dict[str, int] = {}
    for place, example in enumerate(examples):
        first.setdefault(example.template, place)
    return list(first.values())


def _token_effects(model: Model, one: Examples, metric: str) -> TokenEffects:
    """Restore the clean stream at each position of the corrupt run, halfway up the model."""
    layer = 0 if model.anatomy is None else model.anatomy.n_layers // 2
    found = sweep(model, one, f"blocks.{layer}.resid_pre", over="pos", metric=metric)
    return TokenEffects(
        clean=tuple(model.tokens(one[0].clean)),
        corrupt=tuple(model.tokens(one[0].corrupt)),
        effects=found.values.to_numpy()[0, 0] - found.base[0],
        answer="".join(model.tokens(one[0].answers[0])),
        layer=layer,
    )
