"""The report: one self-contained page that reads like an article, the verdict first."""

from __future__ import annotations

from typing import Any

import numpy as np

from microtome.dissection import figures, phrases
from microtome.dissection.circuit_sections import classes, described
from microtome.dissection.methods import methods_section, provenance_facts
from microtome.dissection.results import Dissection, Operation, Reduction
from microtome.views import (
    Control,
    ControlsTable,
    Figure,
    Page,
    Section,
    VerdictCard,
    View,
)
from microtome.views.numbers import Estimate, number, percent

BOOTSTRAP = "95 % cluster bootstrap, 2000 draws"


def report(found: Dissection) -> str:
    """Return the report as HTML.

    Args:
        found: A dissection, also one that ended at the gate.
    """
    page: str = _Report(found).page().to_html()
    return page


class _Report:
    def __init__(self, found: Dissection) -> None:
        self.found = found

    def page(self) -> Page:
        found = self.found
        sections = [self._check()]
        title = f"{found.model} does not show {found.behavior}"
        verdict = self._no_verdict()
        if found.verdict is not None and found.circuit is not None and found.proof is not None:
            kept, total = len(found.circuit.parts), len(found.circuit.universe)
            title = phrases.page_title(found.behavior, found.verdict.grade, kept, total)
            verdict = figures.verdict_card(found.verdict, found.proof, found.circuit)
            sections += [self._locate(), self._cut(), self._prove()]
            sections += described(found, self._figure)
            sections += [self._reduce(found.reduction)] if found.reduction is not None else []
            sections += [self._operate(found.operation)] if found.operation is not None else []
        return Page(
            title=title,
            kicker=f"microtome dissect · {found.model} · {found.behavior}",
            dek=found.description,
            verdict=verdict,
            sections=(*sections, methods_section(found)),
            provenance=provenance_facts(found),
            command=found.command,
        )

    def _no_verdict(self) -> VerdictCard:
        check = self.found.check
        return VerdictCard(
            grade="Nothing to explain",
            state="open",
            sentences=(check.sentence(),),
            numbers=(Estimate.of(check.accuracy, label="accuracy"),),
        )

    def _figure(
        self, title: str, body: View | tuple[View, ...], caption: str, **foot: Any
    ) -> Figure:
        check = self.found.check
        return Figure(
            title,
            body,
            caption,
            n=foot.get("n", check.n),
            clusters=foot.get("clusters", check.clusters),
            baseline=foot.get("baseline", "the corrupt prompts"),
            interval=foot.get("interval", BOOTSTRAP),
            command=self.found.command,
        )

    def _check(self) -> Section:
        found, check = self.found, self.found.check
        name, best = check.best_baseline
        rows = [
            Control(
                "accuracy",
                "lower bound above chance and above every baseline",
                str(check.accuracy),
                f"chance {number(check.chance)}",
                check.accuracy.low > max(check.chance, best.value),
            ),
            *(
                Control(
                    f"{key} baseline",
                    "below the lower bound of accuracy",
                    str(b),
                    None,
                    check.accuracy.low > b.value,
                )
                for key, b in check.baselines.items()
            ),
            Control(
                "shuffled twin",
                "reported beside",
                str(check.twin),
                f"chance {number(check.chance)}",
                None,
            ),
            Control(
                "separation",
                "clean and corrupt more than 3 clustered standard errors apart",
                f"{number(check.separation)} standard errors",
                f"clean {check.full}, corrupt {check.empty}",
                check.separation > 3,
            ),
        ]
        shows = "shows" if check.passed else "does not show"
        title = (
            f"The model {shows} the behavior: {percent(check.accuracy.value)} right on unseen "
            "templates"
        )
        blocks: list[Any] = [
            f"{found.description} Every item is a pair of prompts that differ in what matters and "
            "in nothing else; the model is asked for its preference between the two continuations. "
            "The test split has templates and words that the train split does not have.",
            self._figure(
                f"Accuracy is {number(check.accuracy.value)}, the best baseline ({name}) reaches "
                f"{number(best.value)}",
                ControlsTable(rows),
                "Baselines are fitted on the train split and choose between the same two "
                "continuations. The twin is the model with every weight tensor shuffled.",
                baseline=f"{name} {number(best.value)}, chance {number(check.chance)}",
            ),
        ]
        if check.drops:
            dropped = "; ".join(f"{n} because {reason}" for reason, n in check.drops.items())
            blocks.append(
                "Of the generated items, these did not fit the model's tokenizer and were dropped: "
                f"{dropped}."
            )
        return Section(title, blocks, short="Check")

    def _locate(self) -> Section:
        found = self.found
        located, circuit = found.located, found.circuit
        if located is None or circuit is None:
            return Section("Locate", ())
        agreement = number(located.agreement)
        return Section(
            "Where the answer is, and which parts carry it",
            (
                self._figure(
                    phrases.tokens_title(located),
                    figures.token_strips(located.tokens),
                    "Test prompts, one of each template. The clean residual stream before block "
                    f"{located.tokens[0].layer} is restored at one position of the corrupt run at "
                    "a time; the color is the change of the logit difference.",
                    n=len(located.tokens),
                    clusters=len(located.tokens),
                    interval="none: single prompts",
                ),
                self._figure(
                    phrases.streams_title(located),
                    figures.stream_map(located),
                    "The clean residual stream before each block is restored in the corrupt run at "
                    "one named range of tokens. 0 is the corrupt run, 1 the clean one. Certified: "
                    "a random sample of cells, run naively, differs by at most "
                    f"{number(float(located.streams.certificate['difference']))} logits.",
                    n=len(located.streams.base),
                    clusters=len(set(located.streams.clusters)),
                    interval="means; per-example values are in the result",
                ),
                self._figure(
                    phrases.heads_title(located),
                    figures.head_map(located.scores, circuit),
                    f"Support of every head and MLP ({located.scores.method}) on the train split. "
                    "Exact single ablations of all of them agree with a correlation "
                    f"of {agreement} over parts.",
                    n=len(located.scores.values),
                    clusters=self._clusters("train"),
                    interval="means; standard errors in scores.csv",
                ),
            ),
            short="Locate",
        )

    def _clusters(self, split: str) -> int | None:
        return None if split == "train" else self.found.check.clusters

    def _cut(self) -> Section:
        found = self.found
        circuit, curve, proof, located = found.circuit, found.curve, found.proof, found.located
        if circuit is None or curve is None or proof is None or located is None:
            return Section("Cut", ())
        kept, total = len(circuit.parts), len(circuit.universe)
        asked = float(found.config.get("faithfulness", 0.9))
        shown = figures.diagram(
            circuit, located.scores, proof.connections, classes(found.names, circuit)
        )
        weakest = sorted(proof.minimality, key=lambda n: proof.minimality[n])
        spare = [n for n in weakest if proof.minimality[n] < 0.01]
        note = (
            " Dropping one part at a time from the circuit costs less than 0.01 of faithfulness "
            f"for {len(spare)} of them, so the circuit is not minimal."
            if spare
            else " Each part, dropped alone, costs at least 0.01 of faithfulness."
        )
        return Section(
            f"The circuit: {kept} of {total} heads and MLPs",
            (
                self._figure(
                    f"{', '.join(_strongest(proof.connections))} are the strongest connections"
                    if proof.connections
                    else "The parts of the circuit by layer",
                    shown,
                    "Discs are heads, squares MLPs, filled by support. A connection is the part of "
                    "the later node's support that is lost when the earlier one alone is "
                    "corrupted, by all ways between them; into the logits it is the direct "
                    "contribution." + note,
                    n=32,
                    clusters=None,
                    interval="means over train items",
                ),
                self._figure(
                    phrases.curve_title(kept, total, asked),
                    figures.faithfulness_curve(curve, proof.nulls, kept),
                    f"Everything outside the circuit is ablated ({curve.ablation}); the ranking "
                    "comes from train, the size from validation. The gray band is what the same "
                    "finder reaches in shuffled twins, each measured against its own behavior.",
                    n=curve.faithfulness[0].n,
                    clusters=curve.faithfulness[0].clusters,
                    baseline="twins searched the same way",
                ),
            ),
            short="Circuit",
        )

    def _prove(self) -> Section:
        found = self.found
        verdict, proof = found.verdict, found.proof
        if verdict is None or proof is None:
            return Section("Prove", ())
        outcomes = [r["outcome"] for r in verdict.rules if r["outcome"] != "switched off"]
        backups = ", ".join(verdict.backups) or "none"
        core = ", ".join(proof.stability.core) or "none"
        return Section(
            f"The verdict: {verdict.grade}",
            (
                verdict.sentence
                + " The rules were fixed before looking; a rule that is not met is printed like "
                "any other.",
                self._figure(
                    phrases.controls_title(outcomes),
                    figures.controls(verdict, proof),
                    f"On {phrases.proof_text(proof)}. Stable core over bootstrap resamples: "
                    f"{core}. Parts that take over when the circuit is ablated: {backups}.",
                    baseline="in the table",
                ),
            ),
            short="Verdict",
        )

    def _reduce(self, reduction: Reduction) -> Section:
        names = self._answer_names()
        beyond = "cannot be computed: " + (
            "the model never departs from the right answer"
            if reduction.departures == 0
            else "the tree never predicts a departure"
        )
        if np.isfinite(reduction.beyond):
            beyond = f"is {number(reduction.beyond)}"
        failures = "; ".join(
            f"{'confirmed' if hit else 'not confirmed'}: `{text.strip()[-50:]}`"
            for text, hit in reduction.failures
        )
        return Section(
            "A readable rule that predicts the model",
            (
                self._figure(
                    phrases.rule_title(reduction),
                    figures.rule_tree(reduction, names),
                    f"A decision tree over {len(reduction.features)} columns of named features, "
                    "fitted on train, counted on test. Agreement with the model "
                    f"{reduction.agreement}; its commonest answer {reduction.majority}; the task's "
                    f"own rule {reduction.task_rule}; permuted features {reduction.permuted}. It "
                    "predicts; that the model computes this way is not claimed.",
                    baseline=f"task's own rule {number(reduction.task_rule.value)}",
                ),
                "Beyond the task's own rule: the model departs from the right answer on "
                f"{reduction.departures} test items; the Matthews correlation between departures "
                f"that the tree predicts and those that happen {beyond}. Given the right answer, "
                f"the leaves explain {percent(reduction.deviance)} of the metric's variance. The "
                f"tree says that the model will fail on {reduction.predicted_failures} test items, "
                f"and it does on {reduction.confirmed_failures} of "
                "them." + (f" {failures}." if failures else ""),
            ),
            short="Rule",
        )

    def _answer_names(self) -> dict[str, str]:
        located = self.found.located
        return {} if located is None else dict(located.answer_names)

    def _operate(self, operation: Operation) -> Section:
        return Section(
            "The circuit ablated",
            (
                self._figure(
                    phrases.operation_title(operation),
                    figures.operation_views(operation),
                    "The circuit's parts give their mean over train prompts. Before "
                    f"{operation.before}, after {operation.after}. Drift is the divergence from "
                    f"the unchanged model at the end of {operation.other_prompts} "
                    f"{operation.other}: {operation.drift} nats. After the interventions were "
                    "taken off, the logits were "
                    f"{'bit-equal' if operation.undone else 'NOT bit-equal'} to those before.",
                    baseline="random ablations matched by layer and type",
                ),
            ),
            short="Operation",
        )


def _strongest(connections: Any) -> list[str]:
    order = sorted(connections, key=lambda key: -abs(connections[key]))
    return [key.replace(" -> ", " → ") for key in order[:3]]
