"""What a search holds a circuit against: the divergence from the unchanged model, or a metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from microtome.attribution.patching import single_row
from microtome.behaviors.evaluate import batches
from microtome.behaviors.metrics import KLToUnchanged, LastTokenMetric, Metric, metric
from microtome.circuits.references import ROWS

if TYPE_CHECKING:
    from microtome.behaviors.examples import Example, Examples
    from microtome.tracing.model import Model

DIVERGENCE = "kl_to_unchanged"
"""Name of the divergence."""


def objective(model: Model, examples: Examples, name: str | Metric, what: str) -> LastTokenMetric:
    """Return a metric as a function of the logits, the divergence included.

    Args:
        model: The unchanged model.
        examples: Examples on which the metric will be taken.
        name: A metric that reads the prompt's end, or ``kl_to_unchanged``.
        what: Who asks, for the error.

    Raises:
        MetricError: If the metric needs several rows for an example.
    """
    chosen = metric(name)
    if isinstance(chosen, KLToUnchanged):
        return _divergence(model, examples, chosen)
    return single_row(chosen, what)


def _divergence(model: Model, examples: Examples, kind: KLToUnchanged) -> LastTokenMetric:
    """Return the divergence from the model's own distribution behind each clean prompt."""
    unchanged: dict[tuple[int, ...], torch.Tensor] = {}
    for places in batches(examples, ROWS, model=model):
        chunk = examples.take(places)
        logits = model.trace(chunk.clean, logits="last").logits
        if logits is not None:
            rows = logits[:, 0].detach().float()
            unchanged.update((tuple(e.clean), row) for e, row in zip(chunk, rows, strict=True))

    def value(row: torch.Tensor, example: Example) -> torch.Tensor:
        return kind.between(unchanged[tuple(example.clean)], row)

    return LastTokenMetric(kind.name, kind.unit, value, higher_is_better=False)
