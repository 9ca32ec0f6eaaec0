"""Scoring a model on examples: one value per example, under interventions if wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from microtome.behaviors.examples import Examples, Tokens
from microtome.behaviors.metrics import (
    KLToUnchanged,
    LastTokenMetric,
    Metric,
    SequenceLogProbability,
    metric,
    require_end,
)
from microtome.core.stats import Interval, cluster_bootstrap
from microtome.errors import ConfigError, EmptyDataError, MetricError

if TYPE_CHECKING:
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model

PADDING = 4
"""Prompts share a pass that are longer than its shortest by no more than one part in this."""

Side = Literal["clean", "corrupt"]
Changes = Sequence["Intervention"] | Callable[[Examples], Sequence["Intervention"]] | None


@dataclass(frozen=True, eq=False)
class Scores:
    """A metric's value of every example.

    Attributes:
        values: ``[example]``.
        metric: Name of the metric.
        side: Which prompt was run.
        clusters: Cluster of each example.
    """

    values: np.ndarray
    metric: str
    side: Side
    clusters: np.ndarray

    def interval(self, *, seed: int = 0) -> Interval:
        """Return the mean with its clustered 95 % interval."""
        return cluster_bootstrap(self.values, self.clusters, seed=seed)

    def by_cluster(self) -> dict[str, float]:
        """Return the mean of each cluster."""
        return {
            str(c): float(self.values[self.clusters == c].mean()) for c in np.unique(self.clusters)
        }


def evaluate(
    model: Model,
    examples: Examples,
    *,
    metric: str | Metric = "logit_difference",
    side: Side = "clean",
    interventions: Changes = None,
    batch_size: int = 64,
) -> Scores:
    """Run a model on one side of each pair and score it.

    The metric's answers are those of the clean prompt on both sides. With a metric of several
    tokens, positions that an intervention counts from the end count from the continuation's end.

    Args:
        model: The model.
        examples: Examples prepared for it.
        metric: A metric or its name.
        side: Which prompt to run.
        interventions: Changes for every batch, or a function from the batch's examples to changes
            (for patches that need the batch's own other run).
        batch_size: Examples per forward pass; it does not change the values.

    Raises:
        EmptyDataError: If there are no examples.
        MetricError: If the metric is of a kind that cannot be run here, or the logits hold NaN.
    """
    chosen = _metric(metric)
    values = np.zeros(len(examples))
    plain = None if interventions else model
    for part in batches(examples, batch_size, model=plain):
        chunk = examples.take(part)
        changes = interventions(chunk) if callable(interventions) else (interventions or ())
        values[part] = _scores(model, chunk, chosen, side, list(changes))
    return Scores(values, chosen.name, side, examples.clusters)


def _metric(name: str | Metric) -> Metric:
    return metric(name)


def batches(
    examples: Examples, batch_size: int, *, model: Model | None = None
) -> Iterator[list[int]]:
    """Yield the places of examples for each forward pass.

    Args:
        examples: The examples.
        batch_size: How many at most.
        model: A model in which padding on the right changes nothing before it (a causal one) lets
            prompts of similar length share a pass; otherwise those of equal length do.

    Raises:
        EmptyDataError: If there are no examples.
        ConfigError: If the batch size is not positive.
    """
    if len(examples) == 0:
        raise EmptyDataError(f"{examples.behavior or 'The examples'}: there is nothing to run.")
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}; expected at least 1.")
    causal = model is not None and model.anatomy is not None and model.anatomy.causal
    lengths = np.array([len(e.clean) for e in examples])
    order = np.argsort(lengths, kind="stable").tolist()
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        longest += longest // PADDING if causal else 0
        stop = start
        while stop < min(len(order), start + batch_size) and lengths[order[stop]] <= longest:
            stop += 1
        yield order[start:stop]
        start = stop


def _scores(
    model: Model, chunk: Examples, chosen: Metric, side: Side, changes: list[Intervention]
) -> np.ndarray:
    prompts = chunk.clean if side == "clean" else chunk.corrupt
    if isinstance(chosen, LastTokenMetric):
        trace = model.trace(prompts, interventions=changes, logits="last")
        values = chosen(_logits(trace.logits), trace.lengths, chunk)
        return values.detach().cpu().numpy()
    if isinstance(chosen, KLToUnchanged):
        changed = _logits(model.trace(prompts, interventions=changes, logits="last").logits)
        plain = _logits(model.trace(prompts, logits="last").logits)
        return chosen.between(plain[:, 0], changed[:, 0]).cpu().numpy()
    if isinstance(chosen, SequenceLogProbability):
        require_end(chosen, model.readout)
        return _sequence_scores(model, chunk, chosen, prompts, changes)
    raise MetricError(
        f"{chosen!r} is no metric that can be run; give a name or make one with custom_metric()."
    )


def _sequence_scores(
    model: Model,
    chunk: Examples,
    chosen: SequenceLogProbability,
    prompts: Sequence[Tokens],
    changes: list[Intervention],
) -> np.ndarray:
    """Score each continuation in a pass of its own, so that rows stay those of the examples."""
    most = max(len(chosen.continuations(e)) for e in chunk)
    rows: list[list[torch.Tensor]] = [[] for _ in chunk]
    for number in range(most):
        tokens = [_at(chosen.continuations(e), number) for e in chunk]
        whole = [(*p, *t) for p, t in zip(prompts, tokens, strict=True)]
        trace = model.trace(whole, interventions=changes)
        for place, (example, continuation) in enumerate(zip(chunk, tokens, strict=True)):
            if number < len(chosen.continuations(example)):
                rows[place].append(
                    _continuation_value(trace.logits, place, len(whole[place]), continuation)
                )
    combined = [chosen.combined(torch.stack(r), e) for r, e in zip(rows, chunk, strict=True)]
    return torch.stack(combined).cpu().numpy()


def _at(continuations: Sequence[Tokens], number: int) -> Tokens:
    return continuations[min(number, len(continuations) - 1)]


def _continuation_value(
    logits: torch.Tensor | None, row: int, length: int, tokens: Tokens
) -> torch.Tensor:
    start = length - len(tokens) - 1
    steps = torch.log_softmax(_logits(logits)[row, start : start + len(tokens)].float(), dim=-1)
    return steps[list(range(len(tokens))), list(tokens)].sum()


def _logits(logits: torch.Tensor | None) -> torch.Tensor:
    if logits is None:
        raise EmptyDataError("The model returned no logits.")
    return logits
