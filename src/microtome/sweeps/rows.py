"""What is run for each example and read off its logits: one row for each continuation scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from microtome.behaviors.examples import Example, Examples
from microtome.behaviors.metrics import LastTokenMetric, SequenceLogProbability, require_end
from microtome.errors import ConfigError
from microtome.models import hf

if TYPE_CHECKING:
    from microtome.models.anatomy import Anatomy
    from microtome.models.readout import Readout
    from microtome.tracing.model import Model

SweepMetric = LastTokenMetric | SequenceLogProbability
"""Metrics that a sweep can measure."""


@dataclass(frozen=True, eq=False)
class Row:
    """One prompt that is run, with and without changes.

    Attributes:
        place: The example's place in the plan.
        example: The example.
        base: Tokens of the run that is changed, continuation included.
        source: Tokens of the other run.
        tokens: The continuation that is scored; empty for metrics of the prompt's end.
        reads: Positions whose logits are read.
    """

    place: int
    example: Example
    base: tuple[int, ...]
    source: tuple[int, ...]
    tokens: tuple[int, ...]
    reads: tuple[int, ...]

    @property
    def first_difference(self) -> int:
        """The first position at which the two runs differ, the last one at most."""
        pairs = enumerate(zip(self.base, self.source, strict=True))
        return next((i for i, (a, b) in pairs if a != b), len(self.base) - 1)


def rows_of(
    metric: SweepMetric,
    examples: Examples,
    base: Literal["clean", "corrupt"],
    readout: Readout,
) -> tuple[Row, ...]:
    """Return the rows of all examples, those of one example behind one another.

    Raises:
        ConfigError: If ``base`` is neither run.
        MetricError: If the metric reads behind the prompt in a model that answers at its start.
    """
    require_end(metric, readout)
    if base not in ("clean", "corrupt"):
        raise ConfigError(f"base={base!r}; expected clean or corrupt.")
    found = []
    for place, example in enumerate(examples):
        sides = (example.clean, example.corrupt)
        here, there = sides if base == "clean" else sides[::-1]
        for tokens in metric.continuations(example):
            # the last token of a continuation is predicted and never read
            behind = tokens[:-1]
            start = int(readout.positions([len(here)])[0])
            reads = tuple(range(start, start + max(len(tokens), 1)))
            found.append(Row(place, example, (*here, *behind), (*there, *behind), tokens, reads))
    return tuple(found)


def at_read(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Return the logits ``[row, 1, vocab]`` that a metric of one position reads."""
    start = rows[0].reads[0]
    return logits if logits.shape[1] == 1 else logits[:, start : start + 1]


def row_values(metric: SweepMetric, logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Return one value for each row, from logits ``[row, read, vocab]`` at its reads."""
    if isinstance(metric, LastTokenMetric):
        lengths = torch.tensor([len(r.base) for r in rows])
        examples = Examples(tuple(r.example for r in rows))
        return metric(logits[:, :1], lengths, examples)
    found = []
    for row, read in zip(rows, logits, strict=True):
        steps = torch.log_softmax(read[: len(row.tokens)].float(), dim=-1)
        found.append(steps[range(len(row.tokens)), list(row.tokens)].sum())
    return torch.stack(found)


def combined(metric: SweepMetric, rows: Sequence[Row], values: np.ndarray) -> np.ndarray:
    """Return values of examples ``[example, ...]`` from those of their rows ``[row, ...]``."""
    if isinstance(metric, LastTokenMetric):
        return values
    places = np.array([r.place for r in rows])
    found = []
    for place in range(int(places.max()) + 1):
        own = np.flatnonzero(places == place)
        example = rows[own[0]].example
        right = len(example.answers)
        found.append(values[own[:right]].max(0) - values[own[right:]].max(0))
    return np.stack(found)


@dataclass(frozen=True, eq=False)
class Reader:
    """From last residual streams to values: along one direction, or through all logits.

    Attributes:
        model: The model.
        metric: The metric.
        rows: The rows of a group.
        directions: Direction of each row in the normed stream ``[row, d_model]``, or None.
        offsets: What is added to the product ``[row]``.
    """

    model: Model
    metric: SweepMetric
    rows: tuple[Row, ...]
    directions: torch.Tensor | None
    offsets: torch.Tensor | None

    @staticmethod
    def of(model: Model, metric: SweepMetric, rows: tuple[Row, ...], *, narrow: bool) -> Reader:
        """Return a reader; ``narrow`` asks for the direction of a linear metric."""
        anatomy = model.anatomy
        if not narrow or anatomy is None or narrow_reason(model, metric):
            return Reader(model, metric, rows, None, None)
        directions, offsets = _directions(model, anatomy, metric, rows)
        return Reader(model, metric, rows, directions, offsets)

    def read(self, streams: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Return values from last streams at the reads.

        Args:
            streams: ``[n, read, d_model]`` at the reads of the rows.
            chosen: Row of each ``[n]``.
        """
        anatomy = self.model.anatomy
        if self.directions is None or self.offsets is None or anatomy is None:
            positions = torch.arange(streams.shape[1]).expand(len(chosen), -1)
            logits = self.model.tail(streams, positions)
            return row_values(self.metric, logits, [self.rows[int(i)] for i in chosen])
        norm = self.model.module.get_submodule(anatomy.final_norm or "")
        with torch.no_grad():
            normed = norm(streams[:, 0])
        own = chosen.to(streams.device)
        values: torch.Tensor = (normed * self.directions[own]).sum(-1) + self.offsets[own]
        return values


def narrow_reason(model: Model, metric: SweepMetric) -> str:
    """Return why a metric cannot be read along one direction; empty where it can."""
    anatomy = model.anatomy
    if anatomy is None or not anatomy.tail.exact or anatomy.tail.head is None:
        return "the logits cannot be read off the last stream"
    if not isinstance(metric, LastTokenMetric) or not metric.linear:
        return f"{metric.name} is not linear in the logits"
    if anatomy.tail.softcap is not None:
        return "the logits are soft-capped, so that the metric is not linear in the stream"
    if model.dtype != torch.float32:
        return f"logits of type {str(model.dtype).removeprefix('torch.')} are rounded first"
    head = model.module.get_submodule(anatomy.tail.head)
    if not hf.is_projection(head):
        return f"the unembedding is a {type(head).__name__}, not one matrix"
    return ""


def _directions(
    model: Model, anatomy: Anatomy, metric: SweepMetric, rows: Sequence[Row]
) -> tuple[torch.Tensor, torch.Tensor]:
    head = model.module.get_submodule(anatomy.tail.head or "")
    weight = hf.projection_weight(head).detach()
    bias = getattr(head, "bias", None)
    directions, offsets = [], []
    for row in rows:
        ids, weights = metric.direction(row.example)
        by = torch.tensor(weights, dtype=weight.dtype, device=weight.device) * anatomy.tail.scale
        directions.append(weight[:, list(ids)] @ by)
        offsets.append(by.new_zeros(()) if bias is None else bias.detach()[list(ids)] @ by)
    return torch.stack(directions), torch.stack(offsets)
