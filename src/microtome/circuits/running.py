"""Running circuits: many in one forward pass, restarted where the first of them differs.

What a circuit leaves out, and how that is ablated, is the business of the subclasses: nodes in
:mod:`microtome.circuits.ablation`, edges in :mod:`microtome.circuits.edges.ablation`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch

from microtome.behaviors.evaluate import batches
from microtome.behaviors.metrics import KLToUnchanged, LastTokenMetric, Metric, metric
from microtome.circuits.references import ROWS, Ablation, References
from microtome.errors import MetricError
from microtome.sweeps.rules import restart_reason
from microtome.tracing.condition import Remembered
from microtome.tracing.replay import BaseRun, Entry, wave
from microtome.tracing.suffix import suffix_facts

if TYPE_CHECKING:
    from microtome.behaviors.examples import Example, Examples
    from microtome.circuits.results import Level
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model

AGREE = 1e-4
"""Share of the logits' size by which a restarted pass may differ from a whole one (float32)."""

Cut = TypeVar("Cut")
"""What a circuit leaves out or keeps, as the subclass likes it."""


@dataclass(frozen=True, eq=False)
class Group:
    """Examples of one length with what replaces their ablated parts, by site.

    Attributes:
        places: Their places among all examples.
        examples: The examples.
        instead: What ablated parts give, by site.
        base: The recorded clean run, None where passes are not restarted.
        first: First position at which any ablation can change a value.
    """

    places: list[int]
    examples: Examples
    instead: dict[str, torch.Tensor]
    base: BaseRun | None
    first: int


_agreed: Remembered[dict[str, bool]] = Remembered()
"""Whether restarted passes of a module were found to equal whole ones, by kind of ablation."""


class CircuitRunner(ABC, Generic[Cut]):
    """Runs circuits of one model on one set of examples under one ablation.

    Args:
        model: The model.
        examples: The examples whose clean prompts are run.
        universe: All parts.
        sites: Sites whose ablated values are needed.
        ablation: What ablated parts give.
        reference: Examples over whose clean and corrupt prompts means are taken; ``examples`` by
            default.

    Raises:
        ConfigError: If the ablation is unknown.
    """

    level: Level

    def __init__(
        self,
        model: Model,
        examples: Examples,
        *,
        universe: tuple[str, ...],
        sites: Sequence[str],
        ablation: Ablation,
        reference: Examples | None,
    ) -> None:
        self.model = model
        self.examples = examples
        self.ablation = ablation
        self.universe = universe
        self.sites = list(sites)
        self._references = References(
            model, examples, sites, ablation=ablation, reference=reference
        )
        self._restarts = not (_restart_reason(model) or self._apart())
        self._groups = [self._group(places) for places in self._batches()]
        known = _agreed.of(model.module, dict)
        if self._restarts and not self._known_to_agree(known):
            self._restarts = False
            self._groups = [self._group(places) for places in self._batches()]

    def run(
        self,
        circuits: Sequence[frozenset[str]],
        metrics: Sequence[str | Metric] = ("logit_difference",),
    ) -> dict[str, np.ndarray]:
        """Return metrics of every circuit and example.

        Args:
            circuits: Sets of parts to keep.
            metrics: Metrics that read the prompt's end, or their names.

        Returns:
            For each metric ``[circuit, example]``.

        Raises:
            UnknownNameError: If a part does not exist.
        """
        return self.run_cuts([self._cut(c) for c in circuits], metrics)

    def run_cuts(
        self, cuts: Sequence[Cut], metrics: Sequence[str | Metric]
    ) -> dict[str, np.ndarray]:
        """Return metrics of circuits in the form that the subclass runs them in."""
        chosen = [_last_token(name) for name in metrics]
        values = {m.name: np.zeros((len(cuts), len(self.examples))) for m in chosen}
        # circuits that differ from the model from the same block on share a pass from there
        order = sorted(range(len(cuts)), key=lambda i: self._first_block([cuts[i]]))
        for group in self._groups:
            for some in self._chunks(group, cuts, order):
                found = self._run_group(group, [cuts[i] for i in some], chosen)
                for name, rows in found.items():
                    values[name][np.ix_(some, group.places)] = rows
        return values

    def compare(self, circuit: frozenset[str], divergence: KLToUnchanged) -> np.ndarray:
        """Return the divergence of the ablated from the unchanged model at each prompt's end."""
        cut, whole = self._cut(circuit), self._cut(frozenset(self.universe))
        values = np.zeros(len(self.examples))
        for group in self._groups:
            plain, changed = (self._logits(group, [c]) for c in (whole, cut))
            values[group.places] = divergence.between(plain[:, 0], changed[:, 0]).cpu().numpy()
        return values

    @abstractmethod
    def _cut(self, circuit: frozenset[str]) -> Cut:
        """Return a circuit in the form that it is run in; refuse unknown parts."""

    @abstractmethod
    def _first_block(self, cuts: Sequence[Cut]) -> int:
        """Return the first block in which any of some circuits differs from the model."""

    @abstractmethod
    def _changes(self, group: Group, cuts: Sequence[Cut], start: int) -> list[Intervention]:
        """Return the interventions of a pass from a block on, circuits outermost in its rows."""

    def _chunks(
        self, group: Group, cuts: Sequence[Cut], order: Sequence[int]
    ) -> Iterator[list[int]]:
        """Yield the numbers of the circuits that share a pass."""
        size = max(1, ROWS // len(group.places))
        for start in range(0, len(order), size):
            yield list(order[start : start + size])

    def _batches(self) -> Iterator[list[int]]:
        return batches(self.examples, ROWS, model=self.model)

    def _group(self, places: list[int]) -> Group:
        chunk = self.examples.take(places)
        base, first = None, 0
        if self._restarts:
            base = self.model.record(
                chunk.clean, keys=True, logits="last", capture=self._recorded()
            )
            if self.ablation == "resample":
                # before the first differing token both runs are the same, whatever is exchanged
                first = min(_first_difference(e) for e in chunk)
        return Group(places, chunk, self._references.of(chunk, first=first), base, first)

    def _recorded(self) -> list[str]:
        """Return the sites whose values in the clean run are needed."""
        return []

    def _run_group(
        self, group: Group, cuts: Sequence[Cut], chosen: Sequence[LastTokenMetric]
    ) -> dict[str, np.ndarray]:
        rows = list(range(len(group.places))) * len(cuts)
        many = group.examples.take(rows)
        logits = self._logits(group, cuts)
        lengths = torch.tensor([len(e.clean) for e in many])
        shape = (len(cuts), len(group.places))
        return {
            m.name: m(logits, lengths, many).detach().float().cpu().numpy().reshape(shape)
            for m in chosen
        }

    def _logits(self, group: Group, cuts: Sequence[Cut]) -> torch.Tensor:
        """Return logits at the prompts' ends ``[circuit * example, 1, vocab]``."""
        count = len(group.places)
        if group.base is None:
            prompts = group.examples.take(list(range(count)) * len(cuts)).clean
            changes = self._changes(group, cuts, 0)
            found = self.model.trace(prompts, interventions=changes, logits="last").logits
            if found is None:
                raise MetricError("The model returned no logits.")
            return found
        rows = torch.arange(count).repeat(len(cuts))
        start = self._first_block(cuts)
        stream = group.base.streams[start][rows.to(self.model.device), group.first :]
        changes = self._changes(group, cuts, start)
        entry = Entry(start, stream, rows)
        last = wave(self.model, group.base, [entry], first=group.first, interventions=changes)
        read = self.model.readout.positions([len(e.clean) for e in group.examples]) - group.first
        return self.model.tail(last, read[rows].unsqueeze(1))

    def _known_to_agree(self, known: dict[str, bool]) -> bool:
        key = self._kind()
        if key not in known:
            known[key] = self._agrees()
        return known[key]

    def _kind(self) -> str:
        """Return what a finding about restarted passes holds for."""
        return f"{self.level} {self.ablation}"

    def _apart(self) -> str:
        """Return why passes over these parts cannot be restarted, empty where they can."""
        return ""

    def _agrees(self) -> bool:
        """Return whether restarted, padded passes give what a whole pass of one prompt gives."""
        group = self._groups[0]
        half = self._cut(frozenset(self.universe[::2]))
        fast = self._logits(group, [half])[:1].float()
        one = group.examples[:1]
        alone = Group(group.places[:1], one, self._references.of(one), None, 0)
        slow = self._logits(alone, [half]).float()
        slack = max(AGREE, 8 * torch.finfo(self.model.dtype).eps)
        return float((fast - slow).abs().max()) <= slack * float(slow.abs().max())


def _restart_reason(model: Model) -> str:
    """Return why passes over some parts cannot start where the first of them lies."""
    return restart_reason(model) or suffix_facts(model).reason


def _first_difference(example: Example) -> int:
    """Return the first position at which the prompts differ, the last one at most."""
    pairs = enumerate(zip(example.clean, example.corrupt, strict=True))
    return next((i for i, (a, b) in pairs if a != b), len(example.clean) - 1)


def _last_token(name: str | Metric) -> LastTokenMetric:
    chosen = metric(name)
    if not isinstance(chosen, LastTokenMetric):
        raise MetricError(
            f"Circuits are scored by a metric that reads the prompt's end; {chosen.name} does not."
        )
    return chosen
