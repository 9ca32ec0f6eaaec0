"""Metrics: from logits to one number per example. Each declares what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from microtome.behaviors.examples import Example, Tokens
from microtome.errors import MetricError, UnknownNameError, nearest


@dataclass(frozen=True)
class LastTokenMetric:
    """A metric that reads the logits behind the prompt's last token.

    Answers of several tokens are compared on their first token, which differs from that of every
    wrong answer.

    Attributes:
        name: The name it is looked up and printed by.
        unit: Unit of the value.
        linear: Whether it is linear in the logits.
        higher_is_better: Whether a larger value means more of the behavior.
    """

    name: str
    unit: str
    linear: bool = False
    higher_is_better: bool = True

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
        if not self.linear:
            raise MetricError(f"{self.name} is not linear in the logits, so it has no direction.")
        right, wrong = first_tokens(example)
        ids = (*right, *wrong)
        return ids, (*([1 / len(right)] * len(right)), *([-1 / len(wrong)] * len(wrong)))

    def __call__(
        self, logits: torch.Tensor, lengths: torch.Tensor, examples: Sequence[Example]
    ) -> torch.Tensor:
        """Return one value per row.

        Args:
            logits: ``[batch, pos, vocab]``, or ``[batch, 1, vocab]`` with the last position only.
            lengths: Tokens of each row.
            examples: The example of each row.
        """
        if len(examples) != logits.shape[0]:
            raise MetricError(f"{len(examples)} examples for {logits.shape[0]} rows of logits.")
        rows = torch.arange(logits.shape[0], device=logits.device)
        last = lengths.to(logits.device) - 1
        read = logits[:, 0] if logits.shape[1] == 1 else logits[rows, last]
        return torch.stack(
            [_VALUES[self.name](row.float(), e) for row, e in zip(read, examples, strict=True)]
        )


def first_tokens(example: Example) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the distinct first tokens of the answers and of the wrong answers."""
    right = tuple(dict.fromkeys(t[0] for t in example.answers))
    return right, tuple(dict.fromkeys(t[0] for t in example.wrongs))


def _logit_difference(row: torch.Tensor, example: Example) -> torch.Tensor:
    right, wrong = first_tokens(example)
    return row[list(right)].mean() - row[list(wrong)].mean()


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


_VALUES = {
    "logit_difference": _logit_difference,
    "probability_difference": _probability_difference,
    "accuracy": _accuracy,
    "loss": _loss,
}


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

METRICS: dict[str, Metric] = {
    "logit_difference": LastTokenMetric("logit_difference", "logits", linear=True),
    "probability_difference": LastTokenMetric("probability_difference", "probability"),
    "sequence_log_probability": SequenceLogProbability(),
    "accuracy": LastTokenMetric("accuracy", "share"),
    "kl_to_unchanged": KLToUnchanged(),
    "loss": LastTokenMetric("loss", "nats", higher_is_better=False),
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
