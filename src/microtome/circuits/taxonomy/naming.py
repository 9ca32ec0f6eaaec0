"""Naming the parts of a model: every detector on the model and its twins, then the rule."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from microtome.circuits.taxonomy.catalog import DETECTORS
from microtome.circuits.taxonomy.deciding import RATE, compare, decide
from microtome.circuits.taxonomy.detector import Detector, Scores
from microtome.circuits.taxonomy.inputs import Inputs, make_inputs
from microtome.circuits.taxonomy.material import Material
from microtome.circuits.taxonomy.results import NOTE, PartNames
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.errors import (
    ConfigError,
    EmptyDataError,
    MetricError,
    ModelError,
    SiteError,
    SweepError,
    UnknownNameError,
    nearest,
)
from microtome.tracing.catalog import require_anatomy

if TYPE_CHECKING:
    import pandas as pd

    from microtome.behaviors.behavior import Behavior
    from microtome.behaviors.examples import Examples
    from microtome.circuits.results import Circuit
    from microtome.tracing.model import Model

TWINS = 4
"""Twins that stand as a null for what weights and random tokens show."""

COSTLY = 32
"""Heads of twins that are enough for the detectors that need a behavior or a corpus."""

REFUSALS = (ModelError, SiteError, MetricError, SweepError, EmptyDataError)
"""Errors that mean a detector does not apply to a model; their message is the reason."""


def name_parts(
    model: Model,
    behavior: Behavior | Examples | None = None,
    *,
    corpus: Sequence[str] | Sequence[Sequence[int]] | None = None,
    circuit: Circuit | None = None,
    lists: Mapping[str, Sequence[str]] | None = None,
    detectors: Sequence[str] | None = None,
    twins: int = TWINS,
    seed: int = 0,
    progress: Progress = quiet,
) -> PartNames:
    """Name heads, neurons, pairs and motifs by the detectors that apply, each against its nulls.

    Args:
        model: A transformer.
        behavior: A behavior, or examples prepared for the model, for the detectors of what heads
            do to it; the train split is used where there is one.
        corpus: Texts or lists of token ids, for the detectors that need natural text.
        circuit: A circuit of nodes or edges, for redundancy and motifs.
        lists: Further ordinal lists for the successor detector, by name.
        detectors: Names of the detectors to run; all by default.
        twins: Twins that stand as a null.
        seed: Seed of everything that is drawn.
        progress: Told after each detector.

    Returns:
        The names with all scores. Detectors that did not run are listed with the reason.

    Raises:
        ModelSupportError: If the model is not a transformer or reads fewer than 8 tokens.
        UnknownNameError: If a detector does not exist.
        EmptyDataError: If no detector applies; the message says why.
        ConfigError: If ``twins`` is less than 1.

    Example:
        >>> import microtome as mt
        >>> model = mt.load("python-code")
        >>> found = mt.circuits.name_parts(model, detectors=["induction"], twins=2)
        >>> found.not_run
        {}
    """
    require_anatomy(model.anatomy, "Naming parts")
    if twins < 1:
        raise ConfigError(f"twins={twins}; expected at least 1, because the twin is a null.")
    chosen = _chosen(detectors)
    examples, metric = _examples(model, behavior)
    inputs = make_inputs(
        model, corpus=corpus, examples=examples, metric=metric, circuit=circuit,
        lists=lists or {}, seed=seed,
    )  # fmt: skip
    run = _Run(chosen, progress, twins)
    own = run.scored(Material(model, inputs), chosen)
    others = _of_twins(model, inputs, run, list(own), twins)
    tables = [compare(d, scores, others[d.name]) for d, scores in own.items()]
    settings = {"detectors": [d.name for d in chosen], "twins": twins}
    return PartNames(
        table=decide(_joined(tables, run.refused)),
        detectors=tuple(_facts(d) for d in chosen),
        not_run=run.refused,
        left_out={d.name: s.left_out for d, s in own.items() if s.left_out},
        twins=twins,
        rate=RATE,
        note=NOTE,
        model=model.name,
        seconds={name: round(spent, 2) for name, spent in run.seconds.items()},
        provenance=collect(model, settings, seed=seed),
    )


class _Run:
    """Runs detectors; keeps the time each takes and why one refused."""

    def __init__(self, chosen: Sequence[Detector], progress: Progress, twins: int) -> None:
        self.refused: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._done, self._total = 0, len(chosen) * (1 + twins)

    def scored(self, material: Material, chosen: Sequence[Detector]) -> dict[Detector, Scores]:
        """Return the scores of the detectors that apply to the model itself."""
        found = {}
        for detector in chosen:
            scores = self._timed(material, detector)
            if isinstance(scores, str):
                self.refused[detector.name] = scores
            elif not scores.parts:
                why = "; ".join(scores.left_out) or "there is nothing to score"
                self.refused[detector.name] = why
            else:
                found[detector] = scores
        return found

    def of_twin(self, material: Material, detector: Detector) -> Scores | None:
        """Return the scores of a twin, None where the detector does not apply to it."""
        scores = self._timed(material, detector)
        return None if isinstance(scores, str) else scores

    def _timed(self, material: Material, detector: Detector) -> Scores | str:
        began = time.perf_counter()
        why = material.inputs.missing.get(detector.needs, "")
        result: Scores | str = why
        if not why:
            try:
                result = detector.score(material)
            except REFUSALS as error:
                result = str(error)
        spent = self.seconds.get(detector.name, 0.0)
        self.seconds[detector.name] = spent + time.perf_counter() - began
        self._done += 1
        self._progress.step(self._done, self._total, "naming parts")
        return result


def _of_twins(
    model: Model, inputs: Inputs, run: _Run, chosen: Sequence[Detector], twins: int
) -> dict[str, list[Scores]]:
    found: dict[str, list[Scores]] = {d.name: [] for d in chosen}
    for number in range(twins):
        with model.twin(inputs.seed + number) as other:
            material = Material(other, inputs)
            for detector in chosen:
                costly = detector.needs in ("behavior", "corpus")
                scored = sum(len(s.parts) for s in found[detector.name])
                if "twin" not in detector.nulls or (costly and scored >= COSTLY):
                    continue
                scores = run.of_twin(material, detector)
                if scores is not None:
                    found[detector.name].append(scores)
    return found


def _chosen(names: Sequence[str] | None) -> tuple[Detector, ...]:
    if names is None:
        return DETECTORS
    known = {d.name: d for d in DETECTORS}
    for name in names:
        if name not in known:
            raise UnknownNameError(f"No detector {name!r}{nearest(name, known)}.")
    return tuple(d for d in DETECTORS if d.name in names)


def _examples(model: Model, behavior: Behavior | Examples | None) -> tuple[Examples | None, str]:
    from microtome.behaviors.behavior import Behavior as _Behavior

    if behavior is None:
        return None, "logit_difference"
    if not isinstance(behavior, _Behavior):
        return behavior, "logit_difference"
    examples = behavior.prepare(model)
    train = examples.where(lambda e: e.split == "train")
    return (train if len(train) else examples), behavior.metric


def _joined(tables: Sequence[pd.DataFrame], refused: Mapping[str, str]) -> pd.DataFrame:
    import pandas as pd

    if not tables:
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise EmptyDataError(f"No detector applies. {reasons}.")
    return pd.concat(tables, ignore_index=True)


def _facts(detector: Detector) -> dict[str, Any]:
    """Return what a detector is, without its function."""
    return {f.name: getattr(detector, f.name) for f in fields(detector) if f.name != "score"}
