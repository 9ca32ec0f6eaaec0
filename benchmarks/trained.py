"""Trained models: what the finders find, how large it is, and what the verdict says.

For each model and behavior: finders of edges, their agreement with exact patching of every single
edge where the model is small enough for that, the size at 0.9 faithfulness, CPR and CMD along each
ranking, and the judgment. Rankings come from the train split,
everything else is measured on test.

``MICROTOME_TRAINED_LEVEL=edge`` judges circuits of edges rather than of nodes;
``MICROTOME_TRAINED_MODELS=brackets,sorter`` runs a part.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import torch

from benchmarks.options import Options
from benchmarks.trained_cases import CASES, Case
from microtome.behaviors.examples import Examples
from microtome.circuits.edges.scores import EdgeScores
from microtome.circuits.finding import FINDERS, find
from microtome.circuits.graph import ComponentGraph
from microtome.circuits.judging.evaluation import complete, faithfulness_curve, universe_of
from microtome.circuits.judging.judgment import Judgment
from microtome.circuits.judging.protocol import judge
from microtome.circuits.results import FaithfulnessCurve, Level
from microtome.circuits.truth.scoring import separation
from microtome.tracing.model import Model

LEVEL = cast(Level, os.environ.get("MICROTOME_TRAINED_LEVEL", "node"))
ASKED = [name for name in os.environ.get("MICROTOME_TRAINED_MODELS", "").split(",") if name]

EXAMPLES, FEW = 200, 60
"""Examples over all splits: of small models, and of others or with ``--quick``."""

CHEAP = ("eap", "eap-ig", "mask-ig", "information-flow")
"""Finders of edges that are run on models that are not small."""

NODE_FINDER, EDGE_FINDER = "attribution", "eap-ig"
"""Whose rankings are judged."""

EXACT = "exact-edges"

TOP = 0.1
"""Share of the edges that counts as found, by exact patching and by a finder."""

NOTE = f"""at 0.9: parts kept by the first circuit of at least 0.9 faithfulness on test; surely:
with its whole interval above. Spearman, AUC, overlap: with exact patching of every edge, by
magnitude; AUC and overlap of its strongest {TOP:.0%}."""


@dataclass(frozen=True)
class Along:
    """A ranking as a curve: nodes or edges kept at 0.9 faithfulness, and areas, on test.

    Attributes:
        level: Node or edge.
        method: The finder.
        seconds: CPU seconds of the finder.
        total: Parts of the model.
        size: Parts kept by the first circuit with a faithfulness of at least 0.9.
        sure_size: The same, with the whole interval above 0.9.
        cpr: Area under the faithfulness.
        cmd: Area under its distance from 1.
        spearman: Rank correlation with exact patching, where that was run.
        auc: How often one of its top edges scores above another edge.
        overlap: Share of its top edges that the finder puts on top, too.
    """

    level: str
    method: str
    seconds: float
    total: int
    size: float
    sure_size: int
    cpr: float
    cmd: float
    spearman: float | None = None
    auc: float | None = None
    overlap: float | None = None


@dataclass
class Row:
    """What was measured on one case; ``skipped`` says why nothing was."""

    model: str
    behavior: str
    skipped: str = ""
    examples: dict[str, int] = field(default_factory=dict)
    nodes: int = 0
    edges: int = 0
    along: list[Along] = field(default_factory=list)
    judged: dict[str, Any] = field(default_factory=dict)


def table(options: Options) -> tuple[str, Any]:
    """Run all cases; return the table and its figures."""
    torch.set_num_threads(options.threads)
    rows = []
    for case in CASES:
        if ASKED and case.model not in ASKED:
            continue
        rows.append(measured(case, EXAMPLES if case.small and not options.quick else FEW))
        print(_text([rows[-1]], notes=False), file=sys.stderr, flush=True)
    return _text(rows), [asdict(row) for row in rows]


def measured(case: Case, count: int) -> Row:
    """Return the figures of one case."""
    behavior = case.behavior(count)
    if case.missing:
        return Row(case.model, behavior.name, skipped=case.missing)
    model = case.open()
    examples = behavior.prepare(model)
    train, test = examples.split("train"), examples.split("test")
    row = Row(
        case.model,
        behavior.name,
        examples={name: len(examples.split(name)) for name in ("train", "validation", "test")},
        nodes=len(universe_of(model, "node")),
        edges=ComponentGraph.of(model).n_edges,
    )
    row.along.append(_curve(model, train, test, "node", NODE_FINDER)[0])
    exact: EdgeScores | None = None
    for method in edge_methods(case.small):
        along, scores = _curve(model, train, test, "edge", method, exact)
        exact = scores if method == EXACT else exact
        row.along.append(along)
    finder = NODE_FINDER if LEVEL == "node" else EDGE_FINDER
    began = time.process_time()
    found = judge(model, behavior, finder=finder, gate=case.gate)
    row.judged = {"finder": finder, "seconds": time.process_time() - began, **_judged(found)}
    return row


def edge_methods(small: bool) -> list[str]:
    """Return the finders to run, exact patching first where it is run at all."""
    if not small:
        return list(CHEAP)
    names = [f.name for f in FINDERS.values() if f.level == "edge" and f.unasked]
    return [EXACT, *(name for name in names if name != EXACT), "acdc"]


def _curve(
    model: Model,
    train: Examples,
    test: Examples,
    level: Level,
    method: str,
    exact: EdgeScores | None = None,
) -> tuple[Along, Any]:
    """Return what a finder's ranking comes to, and the scores themselves."""
    began = time.process_time()
    scores = find(model, train, method=method)
    seconds = time.process_time() - began
    order = complete(scores.ranking(), universe_of(model, level))
    curve: FaithfulnessCurve = faithfulness_curve(model, test, order, level=level, reference=train)
    if curve.areas is None:
        raise RuntimeError("a curve over MIB's sizes has areas")
    found = Along(
        level, method, seconds, curve.total, curve.areas.size.value, curve.areas.sure_size,
        curve.areas.cpr.value, curve.areas.cmd.value,
        *(agreement(exact, scores) if exact is not None else (None, None, None)),
    )  # fmt: skip
    return found, scores


def agreement(exact: EdgeScores, scores: EdgeScores) -> tuple[float, float, float]:
    """Return rank correlation, AUC and overlap of a finder's edges with those of exact patching.

    All by magnitude, since some finders have no sign.
    """
    from scipy.stats import spearmanr

    truth, found = np.abs(exact.strength()), np.abs(scores.strength())
    count = max(1, round(TOP * len(exact.universe)))
    top = set(exact.ranking()[:count])
    correlation = float(spearmanr(truth, found).statistic)
    auc = separation(scores.universe, found, top).auc
    return correlation, auc, len(top & set(scores.ranking()[:count])) / count


def _judged(found: Judgment) -> dict[str, Any]:
    verdict, evaluation = found.verdict, found.evaluation
    return {
        "level": found.circuit.level,
        "parts": list(found.circuit.parts),
        "total": len(found.circuit.universe),
        "faithfulness": asdict(evaluation.faithfulness),
        "moved": asdict(evaluation.moved),
        "grade": verdict.grade if verdict else "none",
        "sentence": verdict.sentence if verdict else "",
        "rules": [dict(rule) for rule in verdict.rules] if verdict else [],
    }  # fmt: skip


def _text(rows: list[Row], *, notes: bool = True) -> str:
    lines = []
    for row in rows:
        if row.skipped:
            lines.append(f"{row.model}, {row.behavior}: skipped, {row.skipped}\n")
            continue
        counts = ", ".join(f"{n} {name}" for name, n in row.examples.items())
        lines.append(
            f"{row.model}, {row.behavior}: {row.nodes} nodes, {row.edges:,} edges; {counts}\n"
            f"   {'':24s}{'CPU s':>8s}{'at 0.9':>9s}{'surely':>9s}{'CPR':>8s}{'CMD':>8s}"
            f"{'Spearman':>10s}{'AUC':>7s}{'overlap':>9s}"
        )
        lines += [_line(along) for along in row.along]
        judged = row.judged
        f = judged["faithfulness"]
        lines.append(
            f"   verdict ({judged['finder']}, {judged['level']}s, {judged['seconds']:.0f} CPU s): "
            f"{judged['grade']}; {len(judged['parts'])} of {judged['total']}, faithfulness "
            f"{f['value']:.2f} [{f['low']:.2f}, {f['high']:.2f}], moved "
            f"{judged['moved']['value']:.2f}"
        )
        lines += [
            f"   {rule['name']}: {rule['outcome']}: {rule['value']}; beside it {rule['baseline']}"
            for rule in judged["rules"]
            if rule["outcome"] not in ("pass", "reported")
        ]
        lines.append("")
    return "\n".join([*lines, NOTE][: None if notes else -1]) + "\n"


def _line(along: Along) -> str:
    def shown(value: float | None, width: int) -> str:
        return f"{'-':>{width}s}" if value is None else f"{value:{width}.2f}"

    kept = (f"{along.size:9.0f}", f"{along.sure_size:9d}")
    return (
        f"   {along.level + ' ' + along.method:24s}{along.seconds:8.2f}{kept[0]}{kept[1]}"
        f"{along.cpr:8.2f}{along.cmd:8.3f}{shown(along.spearman, 10)}{shown(along.auc, 7)}"
        f"{shown(along.overlap, 9)}"
    )
