"""Metrics: from logits to one number per example. Each declares what it reads.

Where several answers are right, the logit difference takes the mean of their logits, which keeps it
linear; the probability difference and the loss sum their probabilities; accuracy compares the best
answer with the best wrong answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from microtome.behaviors.examples import Example, Tokens
from microtome.errors import MetricError, UnknownNameError, nearest
from microtome.models.readout import Readout

Value = Callable[[torch.Tensor, Example], torch.Tensor]
"""From the logits behind an example's prompt, ``[vocab]``, to a number."""

Direction = Callable[[Example], tuple[tuple[int, ...], tuple[float, ...]]]
"""From an example to token ids and the weights of their logits."""

Values = Callable[[torch.Tensor, Sequence[Example]], torch.Tensor]
"""From the logits behind several prompts, ``[batch, vocab]``, to a number for each."""


@dataclass(frozen=True)
class LastTokenMetric:
    """A metric that reads the logits behind the prompt's last token.

    Answers of several tokens are compared on their first token, which differs from that of every
    wrong answer.

    Attributes:
        name: The name it is looked up and printed by.
        unit: Unit of the value.
        value: The function that gives it.
        weights: Token ids and weights, for a metric that is linear in the logits.
        higher_is_better: Whether a larger value means more of the behavior.
        values: The same for several examples at once, where that is faster than one by one.
    """

    name: str
    unit: str
    value: Value = field(repr=False)
    weights: Direction | None = field(default=None, repr=False)
    higher_is_better: bool = True
    values: Values | None = field(default=None, repr=False)

    @property
    def linear(self) -> bool:
        """Whether the value is linear in the logits."""
        return self.weights is not None

    def continuations(self, example: Example) -> tuple[Tokens, ...]:
        """Return what is appended to the prompt: nothing."""
        return ((),)

    def reads(self, example: Example) -> tuple[int, ...]:
        """Return the position that is read, relative to the prompt's end."""
        return (-1,)

    def combine(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the value of an example from its only row."""
        return rows[0]

    def direction(self, example: Example) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return token ids and weights of a linear metric.

        Raises:
            MetricError: If the metric is not linear.
        """
        if self.weights is None:
            raise MetricError(f"{self.name} is not linear in the logits, so it has no direction.")
        return self.weights(example)

    def __call__(
        self, logits: torch.Tensor, lengths: torch.Tensor, examples: Sequence[Example]
    ) -> torch.Tensor:
        """Return one value per row.

        Args:
            logits: ``[batch, pos, vocab]``, or ``[batch, 1, vocab]`` with the last position only.
            lengths: Tokens of each row.
            examples: The example of each row.

        Raises:
            MetricError: If there are not as many examples as rows, the logits that are read hold
                NaN, or the metric gives NaN or something else than one number.
        """
        if len(examples) != logits.shape[0]:
            raise MetricError(f"{len(examples)} examples for {logits.shape[0]} rows of logits.")
        rows = torch.arange(logits.shape[0], device=logits.device)
        last = lengths.to(logits.device) - 1
        read = logits[:, 0] if logits.shape[1] == 1 else logits[rows, last]
        if bool(torch.isnan(read).any()):
            row = int(torch.isnan(read).any(-1).nonzero()[0, 0])
            raise MetricError(
                f"{self.name} cannot be computed: the logits of example {examples[row].index} "
                "hold NaN."
            )
        if self.values is not None and len(examples):
            return self.values(read.float(), examples)
        values = [self.value(row.float(), e) for row, e in zip(read, examples, strict=True)]
        if any(not isinstance(v, torch.Tensor) or v.ndim != 0 for v in values):
            raise MetricError(f"{self.name} must give a tensor without axes for every example.")
        found = torch.stack(values)
        if bool(torch.isnan(found).any()):
            row = int(torch.isnan(found).nonzero()[0, 0])
            raise MetricError(f"{self.name} gives NaN for example {examples[row].index}.")
        return found


def first_tokens(example: Example) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the distinct first tokens of the answers and of the wrong answers."""
    right = tuple(dict.fromkeys(t[0] for t in example.answers))
    return right, tuple(dict.fromkeys(t[0] for t in example.wrongs))


def _logit_difference(row: torch.Tensor, example: Example) -> torch.Tensor:
    right, wrong = first_tokens(example)
    return row[list(right)].mean() - row[list(wrong)].mean()


def _logit_differences(rows: torch.Tensor, examples: Sequence[Example]) -> torch.Tensor:
    right, wrong = (_read(rows, ids) for ids in _first_tokens(examples))
    return right.nanmean(1) - wrong.nanmean(1)


def _accuracies(rows: torch.Tensor, examples: Sequence[Example]) -> torch.Tensor:
    both = (_read(rows, ids) for ids in _first_tokens(examples))
    a, b = (found.masked_fill(found.isnan(), -torch.inf).amax(1) for found in both)
    return (a > b).float() + 0.5 * (a == b).float()


def _first_tokens(examples: Sequence[Example]) -> tuple[list[Tokens], list[Tokens]]:
    found = [first_tokens(e) for e in examples]
    return [right for right, _ in found], [wrong for _, wrong in found]


def _read(rows: torch.Tensor, ids: Sequence[Tokens]) -> torch.Tensor:
    """Return the logits of some tokens of each row ``[batch, most]``, NaN where it has fewer."""
    most = max(len(i) for i in ids)
    places = torch.tensor([(*i, *([-1] * (most - len(i)))) for i in ids], device=rows.device)
    found = rows.gather(1, places.clamp(min=0))
    return found if bool((places >= 0).all()) else found.where(places >= 0, torch.nan)


def _probability_difference(row: torch.Tensor, example: Example) -> torch.Tensor:
    right, wrong = first_tokens(example)
    p = torch.softmax(row, dim=-1)
    return p[list(right)].sum() - p[list(wrong)].sum()


def _accuracy(row: torch.Tensor, example: Example) -> torch.Tensor:
    right, wrong = first_tokens(example)
    a, b = row[list(right)].max(), row[list(wrong)].max()
    return (a > b).float() + 0.5 * (a == b).float()


def _loss(row: torch.Tensor, example: Example) -> torch.Tensor:
    right, _ = first_tokens(example)
    return -torch.log_softmax(row, dim=-1)[list(right)].logsumexp(0)


def _difference_weights(example: Example) -> tuple[tuple[int, ...], tuple[float, ...]]:
    right, wrong = first_tokens(example)
    weights = (*([1 / len(right)] * len(right)), *([-1 / len(wrong)] * len(wrong)))
    return (*right, *wrong), weights


def custom_metric(
    name: str,
    value: Value | None = None,
    *,
    direction: Direction | None = None,
    unit: str = "",
    higher_is_better: bool = True,
) -> LastTokenMetric:
    """Return a metric of your own that reads the logits behind the prompt.

    Args:
        name: The name it is printed by.
        value: Function from logits ``[vocab]`` and an example to a tensor without axes. It has to
            be differentiable if gradients are wanted.
        direction: For a metric that is linear in the logits, instead of ``value``: function from an
            example to token ids and the weights of their logits.
        unit: Unit of the value.
        higher_is_better: Whether a larger value means more of the behavior.

    Raises:
        MetricError: If not exactly one of ``value`` and ``direction`` is given.

    Example:
        >>> from microtome.behaviors import custom_metric
        >>> custom_metric("answer_logit", direction=lambda e: (e.answers[0][:1], (1.0,))).linear
        True
    """
    if (value is None) == (direction is None):
        raise MetricError(f"{name}: give either a value or a direction, not both or neither.")
    read = value if value is not None else _weighted(direction)
    return LastTokenMetric(name, unit, read, direction, higher_is_better)


def _weighted(direction: Direction | None) -> Value:
    """Return the function that a direction stands for."""

    def value(row: torch.Tensor, example: Example) -> torch.Tensor:
        ids, weights = direction(example) if direction else ((), ())
        return row[list(ids)] @ torch.tensor(weights, dtype=row.dtype, device=row.device)

    return value


@dataclass(frozen=True)
class SequenceLogProbability:
    """Log-probability of the best whole answer minus that of the best whole wrong answer, in nats.

    Each answer is one row: the prompt with the answer's tokens behind it.
    """

    name: str = "sequence_log_probability"
    unit: str = "nats"
    linear: bool = False
    higher_is_better: bool = True

    def continuations(self, example: Example) -> tuple[Tokens, ...]:
        """Return the answers, then the wrong answers."""
        return (*example.answers, *example.wrongs)

    def reads(self, example: Example) -> tuple[int, ...]:
        """Return the positions that predict the longest continuation, from the prompt's end."""
        longest = max(len(t) for t in self.continuations(example))
        return tuple(range(-1, longest - 1))

    def direction(self, example: Example) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Refuse: a log-probability is not linear in the logits.

        Raises:
            MetricError: Always.
        """
        raise MetricError(f"{self.name} is not linear in the logits, so it has no direction.")

    def __call__(
        self, logits: torch.Tensor, lengths: torch.Tensor, examples: Sequence[Example]
    ) -> torch.Tensor:
        """Return the log-probability of each row's continuation.

        Args:
            logits: ``[batch, pos, vocab]`` of prompts with continuations, examples in order and
                each with all its continuations.
            lengths: Tokens of each row, continuation included.
            examples: The example of each row.
        """
        values, seen = [], dict[int, int]()
        for row, (example, length) in enumerate(zip(examples, lengths.tolist(), strict=True)):
            number = seen.get(id(example), 0)
            seen[id(example)] = number + 1
            tokens = self.continuations(example)[number]
            start = int(length) - len(tokens) - 1
            steps = torch.log_softmax(logits[row, start : start + len(tokens)].float(), dim=-1)
            values.append(steps[range(len(tokens)), list(tokens)].sum())
        return torch.stack(values)

    def combine(self, rows: torch.Tensor) -> torch.Tensor:
        """Refuse: how many rows are answers depends on the example; use :meth:`combined`.

        Raises:
            MetricError: Always.
        """
        raise MetricError(
            "A sequence log-probability is combined with its example; use combined()."
        )

    def combined(self, rows: torch.Tensor, example: Example) -> torch.Tensor:
        """Return the best answer's value minus the best wrong answer's."""
        count = len(example.answers)
        return rows[:count].max() - rows[count:].max()


@dataclass(frozen=True)
class KLToUnchanged:
    """Kullback-Leibler divergence from the unchanged model at the prompt's end, in nats."""

    name: str = "kl_to_unchanged"
    unit: str = "nats"
    linear: bool = False
    higher_is_better: bool = False

    def continuations(self, example: Example) -> tuple[Tokens, ...]:
        """Return what is appended to the prompt: nothing."""
        return ((),)

    def reads(self, example: Example) -> tuple[int, ...]:
        """Return the position that is read, relative to the prompt's end."""
        return (-1,)

    def between(self, unchanged: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
        """Return the divergence of each row, from last-position logits ``[batch, vocab]``."""
        p = torch.log_softmax(unchanged.float(), dim=-1)
        q = torch.log_softmax(changed.float(), dim=-1)
        return (p.exp() * (p - q)).sum(-1)


Metric = LastTokenMetric | SequenceLogProbability | KLToUnchanged


def require_end(metric: Metric, readout: Readout) -> None:
    """Refuse a metric of whole continuations for a model that does not answer at the prompt's end.

    Raises:
        MetricError: If it is one.
    """
    if readout.place != "last" and isinstance(metric, SequenceLogProbability):
        raise MetricError(
            f"{metric.name} reads what follows the prompt, but this model answers at its "
            f"{readout.place} position. Take a metric such as logit_difference."
        )


METRICS: dict[str, Metric] = {
    "logit_difference": LastTokenMetric(
        "logit_difference",
        "logits",
        _logit_difference,
        _difference_weights,
        values=_logit_differences,
    ),
    "probability_difference": LastTokenMetric(
        "probability_difference", "probability", _probability_difference
    ),
    "sequence_log_probability": SequenceLogProbability(),
    "accuracy": LastTokenMetric("accuracy", "share", _accuracy, values=_accuracies),
    "kl_to_unchanged": KLToUnchanged(),
    "loss": LastTokenMetric("loss", "nats", _loss, higher_is_better=False),
}
"""The metrics by name."""


def metric(name: str | Metric) -> Metric:
    """Return a metric by its name (``-`` and ``_`` are the same); a metric comes back as it is.

    Raises:
        UnknownNameError: If there is none of this name.
    """
    if not isinstance(name, str):
        return name
    key = name.replace("-", "_")
    if key not in METRICS:
        raise UnknownNameError(f"No metric {name!r}{nearest(key, METRICS)}.")
    return METRICS[key]
