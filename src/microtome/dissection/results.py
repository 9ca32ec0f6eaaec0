"""What each step of a dissection found, and all of it together."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.attribution import ComponentScores
from microtome.behaviors.check import Check
from microtome.circuits.judging.contrasts import Versus
from microtome.circuits.results import (
    Circuit,
    Evaluation,
    FaithfulnessCurve,
    Nulls,
    Stability,
    Verdict,
)
from microtome.circuits.taxonomy.results import PartNames
from microtome.core.provenance import Provenance
from microtome.core.stats import Interval
from microtome.dissection.latents import NamedLatents
from microtome.dissection.wiring import Wiring
from microtome.store.results import Result
from microtome.sweeps.results import Sweep

if TYPE_CHECKING:
    from microtome.dissection.config import Config


@dataclass(frozen=True, eq=False)
class TokenEffects(Result):
    """What restoring each position of one corrupt prompt does.

    Attributes:
        clean: Display texts of the clean prompt.
        corrupt: Those of the corrupt prompt.
        effects: Change of the metric ``[pos]``.
        answer: The right continuation.
        layer: Block whose input was restored.
    """

    clean: tuple[str, ...]
    corrupt: tuple[str, ...]
    effects: np.ndarray
    answer: str
    layer: int


@dataclass(frozen=True, eq=False)
class Located(Result):
    """Which parts carry the behavior.

    Attributes:
        scores: Support of every head and MLP on train, by the finder that was asked for; by
            attribution where that is ``exact``.
        exact: The same by exact ablation.
        agreement: Pearson correlation of the two over nodes.
        streams: Sweep of the residual stream by layer and role.
        tokens: Token effects of a few test items.
        answer_names: Text of each answer by its token id, where answers are few.
    """

    scores: ComponentScores
    exact: ComponentScores
    agreement: float
    streams: Sweep
    tokens: tuple[TokenEffects, ...]
    answer_names: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Proof(Result):
    """The evidence on test.

    Attributes:
        evaluation: The circuit under the asked ablation.
        ablations: Faithfulness under each kind of ablation.
        nulls: Nulls, None where sufficiency had failed already.
        inverted_accuracy: Accuracy of the finder on inverted answers, None likewise.
        stability: Over bootstrap resamples.
        minimality: Faithfulness lost when each node is dropped.
        connections: Weight of one node on another, by ``"a0.h1 -> m2"``.
        takeovers: What nodes outside carry, with and without the circuit.
        templates: Number of test templates.
        clusters: Number of test clusters.
    """

    evaluation: Evaluation
    ablations: Mapping[str, Interval]
    nulls: Nulls | None
    inverted_accuracy: Interval | None
    stability: Stability
    minimality: Mapping[str, float]
    connections: Mapping[str, float]
    takeovers: Mapping[str, tuple[float, float]]
    templates: int
    clusters: int


@dataclass(frozen=True, eq=False)
class Reduction(Result, schema="tree-reduction"):
    """A shallow tree over named features that predicts the model's answer.

    Attributes:
        tree: Nested nodes: ``condition``, ``yes``, ``no``, ``n``, ``label``, ``purity`` on test.
        features: Names of the columns offered, each charged.
        agreement: Share of test items on which the tree gives the model's answer.
        majority: The same for the commonest answer of the model.
        task_rule: The same for the task's own rule (always the right answer).
        permuted: The same for a tree on permuted features.
        beyond: Matthews correlation between predicted and actual departures from the right answer,
            NaN where the model or the tree never departs.
        departures: Test items on which the model departs from the right answer.
        predicted_failures: Test items on which the tree says that it will.
        confirmed_failures: How many of these it does.
        deviance: Share of the metric's variance explained, given the right answer.
        failures: A few prompts on which failure was predicted, with whether it came.
        leaves: Leaves of the tree.
    """

    tree: Mapping[str, Any]
    features: tuple[str, ...]
    agreement: Interval
    majority: Interval
    task_rule: Interval
    permuted: Interval
    beyond: float
    departures: int
    predicted_failures: int
    confirmed_failures: int
    deviance: float
    failures: tuple[tuple[str, bool], ...]
    leaves: int


@dataclass(frozen=True, eq=False)
class Operation(Result, schema="circuit-ablation"):
    """The circuit ablated by interventions: the behavior and the drift on other text.

    Attributes:
        ablation: What ablated nodes gave on both.
        before: Accuracy of the model.
        after: Accuracy with the circuit ablated.
        random_after: Accuracy with size-matched random nodes ablated, one for each draw.
        drift: KL from the unchanged model on other prompts, in nats.
        random_drift: Mean KL for each random draw.
        other: What the other prompts are.
        other_prompts: How many.
        undone: Whether the logits were bit-equal after the interventions were taken off.
    """

    ablation: str
    before: Interval
    after: Interval
    random_after: np.ndarray
    drift: Interval
    random_drift: np.ndarray
    other: str
    other_prompts: int
    undone: bool


@dataclass(frozen=True, eq=False)
class Dissection(Result, version=2):
    """A dissection: everything that was found, with the controls that go with it.

    Attributes:
        behavior: Name of the behavior.
        title: Its title.
        description: What the model has to do, and the task's own rule.
        model: Name of the model.
        shape: Layers, heads and width of the model, in words.
        config: The settings, and the number of items asked for.
        check: The gate's outcome.
        located: Which parts carry it; None where the gate ended the dissection, like all below.
        circuit: The circuit.
        curve: Faithfulness on validation by size.
        proof: The evidence on test.
        verdict: The verdict.
        wiring: The circuit of edges; None where it was not asked for or the model has none.
        names: Names of the parts; None where they were not asked for.
        versus: What differs from a second condition; None without one.
        latents: The latents of an SAE that carry it; None without one.
        reduction: The readable rule.
        operation: The circuit ablated.
        notes: Why a step was left out, by step.
        seconds: How long each step took.
        provenance: Model, seed, versions, command.
    """

    behavior: str
    title: str
    description: str
    model: str
    shape: str
    config: Mapping[str, Any]
    check: Check
    located: Located | None = None
    circuit: Circuit | None = None
    curve: FaithfulnessCurve | None = None
    proof: Proof | None = None
    verdict: Verdict | None = None
    wiring: Wiring | None = None
    names: PartNames | None = None
    versus: Versus | None = None
    latents: NamedLatents | None = None
    reduction: Reduction | None = None
    operation: Operation | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] | None = None
    provenance: Provenance | None = None

    @property
    def explained(self) -> bool:
        """Whether the gate was passed and the steps behind it ran."""
        return self.verdict is not None

    @property
    def sentence(self) -> str:
        """The outcome in one or two sentences."""
        return self.check.sentence() if self.verdict is None else self.verdict.sentence

    @property
    def command(self) -> str:
        """The command that reproduces it: the one that ran, or the same for a call from Python."""
        ran = self.provenance.command if self.provenance is not None else ""
        if ran.startswith("microtome dissect"):
            return ran
        from microtome.dissection.config import Config

        usual = {**config_dict(Config()), "seed": None}
        options = ["microtome", "dissect", self.model, self.behavior]
        for name, value in self.config.items():
            if value is False:
                options.append(f"--no-{name}")
            elif value != usual.get(name):
                options += [f"--{name}", str(value)]
        if self.versus is not None:
            options += ["--versus", self.versus.b]
        return shlex.join(options)

    def summary(self) -> dict[str, Any]:
        """Return the figures that matter as plain data, for ``--json``."""
        from microtome.core.plain import plain

        found: dict[str, Any] = {
            "model": self.model,
            "behavior": self.behavior,
            "passed_gate": self.check.passed,
            "sentence": self.sentence,
            "accuracy": self.check.accuracy,
            "baselines": dict(self.check.baselines),
            "command": self.command,
            "seconds": self.seconds,
        }
        if self.verdict is not None and self.circuit is not None and self.proof is not None:
            found.update(
                grade=self.verdict.grade,
                rules=list(self.verdict.rules),
                parts=list(self.circuit.parts),
                of=len(self.circuit.universe),
                faithfulness=self.proof.evaluation.faithfulness,
                moved=self.proof.evaluation.moved,
                backups=list(self.verdict.backups),
            )
        if self.wiring is not None:
            judged = self.wiring.judgment
            verdict = None if judged is None else judged.verdict
            found["edges"] = {
                "grade": None if verdict is None else verdict.grade,
                "parts": list(self.wiring.circuit.parts),
                "of": len(self.wiring.circuit.universe),
                "faithfulness": self.wiring.evaluation.faithfulness,
                "moved": self.wiring.evaluation.moved,
            }
        if self.names is not None and self.circuit is not None:
            found["names"] = {part: list(self.names.names_of(part)) for part in self.circuit.parts}
        if self.versus is not None:
            found["versus"] = self.versus.sentence
        if self.latents is not None:
            found["latents"] = {
                "site": self.latents.site,
                "sentence": self.latents.sentence,
                "faithfulness": self.latents.together.faithfulness,
                "error": self.latents.error,
                "latents": self.latents.table.to_dict("records"),
            }
        if self.notes:
            found["notes"] = dict(self.notes)
        result = plain(found)
        return result if isinstance(result, dict) else {}

    def to_html(self, path: str | Path) -> Path:
        """Write the report, one self-contained file; return its path."""
        from microtome.dissection.report import report
        from microtome.store.atomic import write_text

        return write_text(path, report(self))

    def save_folder(self, folder: str | Path) -> Path:
        """Write report, result, tables and settings into a folder, all or nothing.

        Files of an earlier dissection there are replaced or removed; other files stay.

        Raises:
            OutputError: If the folder cannot be written.
        """
        from microtome.dissection.report import report
        from microtome.store.atomic import atomic_folder, write_json, write_text

        with atomic_folder(folder) as place:
            write_text(place / "report.html", report(self))
            self.save(place / "dissection.json")
            write_json(
                place / "run.json",
                {"command": self.command, "config": dict(self.config), **self.summary()},
            )
            if self.located is not None:
                self.located.scores.to_frame().to_csv(place / "scores.csv", index=False)
            if self.wiring is not None:
                self.wiring.circuit.save(place / "edges.json")
                self.wiring.scores.to_frame().to_csv(place / "edges.csv", index=False)
            if self.names is not None:
                self.names.table.to_csv(place / "names.csv", index=False)
            if self.latents is not None:
                self.latents.table.to_csv(place / "latents.csv", index=False)
            if self.verdict is not None:
                self.verdict.to_frame().to_csv(place / "rules.csv", index=False)
            made = {file.name for file in place.iterdir()}
        # what an earlier dissection left in the folder would be taken for this one's
        for file in Path(folder).iterdir():
            if _FILES.fullmatch(file.name) and file.name not in made:
                file.unlink()
        return Path(folder)


_FILES = re.compile(
    r"(scores|edges|names|latents|rules)\.csv|edges\.json|(dissection|edges)-[0-9a-f]{12}\.safetensors"
)
"""Names of the files that not every dissection writes."""


def config_dict(config: Config) -> dict[str, Any]:
    """Return the settings as plain data."""
    from dataclasses import asdict

    return asdict(config)
