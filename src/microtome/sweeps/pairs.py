"""Patching two parts at once, to find parts that act together or stand in for each other.

The interaction of two parts is what both together move beyond the sum of what each moves alone: 0
where they act apart, negative where either suffices (redundancy), positive where both are needed.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from microtome.behaviors.evaluate import batches
from microtome.behaviors.examples import Examples
from microtome.behaviors.metrics import LastTokenMetric
from microtome.behaviors.metrics import metric as metric_named
from microtome.core.hashing import sha256_json
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.core.seeds import rng
from microtome.errors import EmptyDataError, MetricError, SweepError, UnknownNameError, nearest
from microtome.sweeps.certification import FEWEST, MOST, allowed, largest
from microtome.sweeps.checkpoint import Checkpoint
from microtome.sweeps.pair_effects import PairEffects
from microtome.sweeps.rows import Reader, Row, at_read, row_values, rows_of
from microtome.sweeps.rules import restart_reason
from microtome.tracing.catalog import require_anatomy
from microtome.tracing.components import component_names, head_of, layer_of, site_of
from microtome.tracing.replay import BaseRun, Entry, wave
from microtome.tracing.sites import at
from microtome.tracing.suffix import suffix_facts

if TYPE_CHECKING:
    from microtome.behaviors.behavior import Behavior
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model

ROWS = 128
"""Rows of a pass at most."""

Pair = tuple[int, int]
"""Numbers of two parts, the same twice for one alone."""


def pair_patching(
    model: Model,
    behavior: Behavior | Examples,
    *,
    parts: Sequence[str] | None = None,
    base: Literal["clean", "corrupt"] = "clean",
    metric: str = "logit_difference",
    seed: int = 0,
    progress: Progress = quiet,
    resume: str | Path | None = None,
) -> PairEffects:
    """Patch every pair of some heads and MLPs, and each of them alone.

    Each pass starts at the block of the earlier part and, in a causal model, at the first position
    that differs; a random sample of the runs is repeated in a whole forward pass each.

    Args:
        model: A transformer.
        behavior: A behavior, or examples prepared for the model.
        parts: Names of heads (``a0.h3``) and MLPs (``m2``); all by default.
        base: The run that is changed; values are patched in from the other one.
        metric: A metric of the prompt's end.
        seed: For the sample that is repeated.
        progress: Told after each pass.
        resume: File that keeps what is done, to go on from after a stop.

    Raises:
        UnknownNameError: If a part does not exist.
        SweepError: If there are fewer than two parts, or one is named twice.
        MetricError: If the metric needs several rows for an example.
    """
    from microtome.behaviors.behavior import Behavior as _Behavior

    require_anatomy(model.anatomy, "Patching pairs")
    examples = behavior.prepare(model) if isinstance(behavior, _Behavior) else behavior
    if len(examples) == 0:
        raise EmptyDataError("There are no examples.")
    chosen = _metric(metric)
    names = _parts(model, parts)
    own = [(n, n) for n in range(len(names))]
    pairs = own + list(itertools.combinations(range(len(names)), 2))
    lines = rows_of(chosen, examples, base, model.readout)
    settings = {"base": base, "metric": metric, "parts": list(names)}
    saved = None if resume is None else _saved(resume, model, settings, lines, len(pairs))
    values = np.full((len(lines), len(pairs)), np.nan) if saved is None else saved.values
    ends = np.zeros((2, len(lines)))
    checked = _Checked(rng(seed, "pairs").permutation(values.size)[: _sample(values.size)])
    with saved or contextlib.nullcontext():
        for places in batches(examples, 32):
            batch = _Batch.of(model, tuple(lines[p] for p in places), names, chosen)
            ends[:, places] = batch.ends
            for some in batch.waves(pairs):
                where = np.ix_(places, some)
                if np.isnan(values[where]).any():
                    values[where] = batch.run([pairs[n] for n in some])
                progress.step(int((~np.isnan(values)).sum()), values.size, "pairs")
                if saved is not None:
                    saved.keep()
            checked.check(batch, pairs, places, values)
    return PairEffects(
        values=_grid(values, pairs, len(names)),
        parts=names,
        base=ends[0],
        source=ends[1],
        clusters=tuple(examples.clusters.tolist()),
        metric=metric,
        certificate=checked.certificate(model, values),
        provenance=collect(model, settings, seed=seed),
    )


def _saved(
    path: str | Path,
    model: Model,
    settings: Mapping[str, object],
    lines: Sequence[Row],
    pairs: int,
) -> Checkpoint:
    """Return what is done of this very computation."""
    rows = [(row.base, row.source, row.example.answers, row.example.wrongs) for row in lines]
    key = sha256_json([model.fingerprint, settings, rows, restart_reason(model)])
    return Checkpoint.at(path, key, np.full((len(lines), pairs), np.nan))


def _grid(values: np.ndarray, pairs: Sequence[Pair], parts: int) -> np.ndarray:
    """Return values ``[row, pair]`` as a symmetric grid ``[row, part, part]``."""
    grid = np.zeros((len(values), parts, parts))
    for number, (a, b) in enumerate(pairs):
        grid[:, a, b] = grid[:, b, a] = values[:, number]
    return grid


@dataclass(frozen=True, eq=False)
class _Batch:
    """Examples of one length with their recorded runs.

    Attributes:
        base: The recorded run that is changed, None where passes cannot be restarted.
        other: Values of the other run, by site.
        first: First position that is computed.
    """

    model: Model
    rows: tuple[Row, ...]
    names: tuple[str, ...]
    metric: LastTokenMetric
    base: BaseRun | None
    other: dict[str, torch.Tensor]
    first: int
    reader: Reader
    ends: np.ndarray

    @staticmethod
    def of(
        model: Model, rows: tuple[Row, ...], names: tuple[str, ...], metric: LastTokenMetric
    ) -> _Batch:
        sites = sorted({site_of(name) for name in names})
        tokens = [row.base for row in rows]
        base, first = None, 0
        if restart_reason(model):
            logits = model.trace(tokens, logits="last").logits
        else:
            keys = suffix_facts(model).usable
            base = model.record(tokens, keys=keys, logits="last")
            logits = at_read(base.logits, rows)
            first = min(row.first_difference for row in rows) if keys else 0
        trace = model.trace([row.source for row in rows], capture=sites, logits="last")
        ends = np.stack([_measured(metric, found, rows) for found in (logits, trace.logits)])
        other = {site: trace.value(site) for site in sites}
        reader = Reader.of(model, metric, rows, narrow=True)
        return _Batch(model, rows, names, metric, base, other, first, reader, ends)

    def waves(self, pairs: Sequence[Pair]) -> list[list[int]]:
        """Return the numbers of the pairs that share a pass, those that start late together."""
        starts = [min(layer_of(self.names[n]) for n in pair) for pair in pairs]
        order = sorted(range(len(pairs)), key=lambda n: (starts[n], n))
        size = max(1, ROWS // len(self.rows))
        return [order[start : start + size] for start in range(0, len(order), size)]

    def run(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return the metric ``[row, pair]``."""
        count = len(self.rows)
        starts = np.array([min(layer_of(self.names[n]) for n in pair) for pair in pairs])
        order = np.argsort(starts, kind="stable")
        placed = {int(pair): place for place, pair in enumerate(order)}
        changes = self._changes(pairs, placed)
        rows = torch.arange(count).repeat(len(pairs))
        if self.base is None:
            prompts = [self.rows[int(r)].base for r in rows]
            lines = [self.rows[int(r)] for r in rows]
            logits = self.model.trace(prompts, interventions=changes, logits="last").logits
            found = _measured(self.metric, logits, lines)
        else:
            entries = [
                Entry(int(start), self._stream(int(start), many), torch.arange(count).repeat(many))
                for start, many in zip(*np.unique(starts, return_counts=True), strict=True)
            ]
            last = wave(self.model, self.base, entries, first=self.first, interventions=changes)
            read = self.rows[0].reads[0] - self.first
            found = self.reader.read(last[:, read : read + 1], rows).float().cpu().numpy()
        values = np.zeros((len(pairs), count))
        values[order] = found.reshape(len(pairs), count)
        return values.T

    def alone(self, pair: Pair, row: int) -> float:
        """Return the metric of one run in a whole forward pass of its own."""
        changes = []
        for name in dict.fromkeys(self.names[n] for n in pair):
            head, site = head_of(name), site_of(name)
            place = at(site if head is None else f"{site}[head={head}]")
            changes.append(place.patch(self.other[site][row : row + 1]))
        one = self.rows[row]
        logits = self.model.trace([one.base], interventions=changes, logits="last").logits
        return float(_measured(self.metric, logits, [one])[0])

    def _stream(self, start: int, copies: int) -> torch.Tensor:
        if self.base is None:
            raise ValueError("no base run was recorded")
        return self.base.streams[start][:, self.first :].repeat(copies, 1, 1)

    def _changes(self, pairs: Sequence[Pair], placed: Mapping[int, int]) -> list[Intervention]:
        """Return what puts the other run's values in; ``placed`` is each pair's place."""
        runs: dict[str, list[tuple[int, int | None]]] = {}
        for number, pair in enumerate(pairs):
            for name in dict.fromkeys(self.names[n] for n in pair):
                runs.setdefault(site_of(name), []).append((placed[number], head_of(name)))
        return [at(site).apply(self._writer(site, found)) for site, found in runs.items()]

    def _writer(
        self, site: str, runs: Sequence[tuple[int, int | None]]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        count, other = len(self.rows), self.other[site][:, self.first :]

        def write(value: torch.Tensor) -> torch.Tensor:
            changed = value.clone()
            for place, head in runs:
                own = slice(place * count, (place + 1) * count)
                if head is None:
                    changed[own] = other.to(value)
                else:
                    changed[own, :, head] = other[:, :, head].to(value)
            return changed

        return write


class _Checked:
    """A random sample of the runs, repeated the naive way."""

    def __init__(self, sample: np.ndarray) -> None:
        self.sample = sample
        self.difference = 0.0

    def check(
        self, batch: _Batch, pairs: Sequence[Pair], places: Sequence[int], values: np.ndarray
    ) -> None:
        """Repeat the sample's runs of a batch."""
        for number in self.sample.tolist():
            row, pair = divmod(number, len(pairs))
            if row in places:
                slow = batch.alone(pairs[pair], places.index(row))
                self.difference = max(self.difference, largest(values[row, pair], slow))

    def certificate(self, model: Model, values: np.ndarray) -> dict[str, Any]:
        """Return what was found.

        Raises:
            SweepError: If a run differs from the naive way by more than rounding explains.
        """
        slack = 4 * torch.finfo(model.dtype).eps * float(np.abs(values).max())
        tolerance = max(allowed(model.dtype, values), 8 * slack)
        if not self.difference <= tolerance:
            raise SweepError(
                f"A pair differs from a whole forward pass by {self.difference:.3g}, more than "
                f"{tolerance:.3g}. Please report the model's family."
            )
        return {
            "difference": self.difference,
            "tolerance": tolerance,
            "sample": len(self.sample),
            "runs": int(values.size),
            "restarted": not restart_reason(model),
        }


def _sample(runs: int) -> int:
    return min(runs, max(FEWEST, min(MOST, runs // 100)))


def _metric(name: str) -> LastTokenMetric:
    chosen = metric_named(name)
    if not isinstance(chosen, LastTokenMetric):
        raise MetricError(f"Patching pairs needs a metric of the prompt's end; {name} is none.")
    return chosen


def _parts(model: Model, given: Sequence[str] | None) -> tuple[str, ...]:
    known = component_names(model)
    if given is None:
        return known
    for name in given:
        if name not in known:
            raise UnknownNameError(f"No head or MLP {name!r}{nearest(name, known)}.")
    if len(set(given)) < len(given) or len(given) < 2:
        raise SweepError(f"{', '.join(given) or 'no part'}: give two or more different parts.")
    return tuple(name for name in known if name in set(given))


def _measured(
    metric: LastTokenMetric, logits: torch.Tensor | None, rows: Sequence[Row]
) -> np.ndarray:
    if logits is None:
        raise MetricError("The model returned no logits.")
    values: np.ndarray = row_values(metric, logits, rows).detach().float().cpu().numpy()
    return values
