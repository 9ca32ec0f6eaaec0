"""The figures of the report: from results to views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from microtome.attribution import ComponentScores
from microtome.circuits.results import Circuit, FaithfulnessCurve, Nulls, Verdict
from microtome.circuits.verdict import SUFFICIENT
from microtome.core.stats import Interval
from microtome.dissection.results import Located, Operation, Proof, Reduction, TokenEffects
from microtome.tracing.components import head_of, layer_of
from microtome.views import (
    CircuitDiagram,
    Control,
    ControlsTable,
    Curve,
    Distribution,
    Edge,
    Estimate,
    HeatMap,
    Node,
    NullBand,
    RuleNode,
    RuleTree,
    Sample,
    Series,
    TokenRow,
    TokenStrip,
    TokenStrips,
    VerdictCard,
)

EDGES = 40
"""Connections that are drawn at most."""

_STATES = {
    "sufficient and necessary": "filled",
    "sufficient, redundant": "half",
    "sufficient only": "half",
    "not established": "open",
}


def verdict_card(verdict: Verdict, proof: Proof, circuit: Circuit) -> VerdictCard:
    """The grade, the sentences and the three numbers behind them."""
    evaluation = proof.evaluation
    sentences = verdict.sentence.split(". They are", 1)
    if len(sentences) == 2:
        sentences = [sentences[0] + ".", "They are" + sentences[1]]
    return VerdictCard(
        grade=verdict.grade[0].upper() + verdict.grade[1:],
        state=_STATES[verdict.grade],
        sentences=sentences,
        numbers=(
            _estimate(
                evaluation.faithfulness,
                "faithfulness",
                "1 is the whole model; 0.8 to 1.2 asked for",
            ),
            _estimate(evaluation.moved, "moved by ablating only the circuit", "0.8 asked for"),
            Estimate(
                circuit.share,
                label=f"{len(circuit.parts)} of {len(circuit.universe)} heads and MLPs",
                unit="%",
            ),
        ),
        held_fixed=(
            "Everything that clean and corrupt prompts share: the contrast explains only what "
            "differs.",
            "The token and position embeddings, which are never ablated.",
        ),
        overturned_by=(
            "A twin or a permutation of the answers whose circuit of equal size does as well.",
            "Faithfulness outside 0.8 to 1.2 on further templates or under another ablation.",
        ),
    )


def _estimate(interval: Interval, label: str, note: str) -> Estimate:
    return Estimate(interval.value, interval.low, interval.high, label, "", note)


def token_strips(tokens: tuple[TokenEffects, ...]) -> TokenStrips:
    """A few prompts, each position colored by the effect of restoring it."""
    strips = [
        TokenStrip(
            (TokenRow("clean", t.clean, t.effects.tolist()), TokenRow("corrupt", t.corrupt)),
            note=f"right continuation: {_visible(t.answer)}",
        )
        for t in tokens
    ]
    return TokenStrips(strips, unit="logits", scale="effect of restoring the position")


def _visible(text: str) -> str:
    return text.replace(" ", "·").replace("\n", "⏎")


def stream_map(located: Located) -> HeatMap:
    """Effect of restoring the residual stream at each layer and role."""
    effect = located.streams.effect
    return HeatMap(
        effect.to_numpy(),
        [str(int(layer)) for layer in effect["layer"].to_numpy()],
        [str(r) for r in effect[effect.dims[1]].to_numpy()],
        col_axis="role",
        title="share of the difference restored",
    )


def head_map(scores: ComponentScores, circuit: Circuit) -> HeatMap:
    """Support of every head and MLP, the circuit's nodes outlined."""
    layers = max(layer_of(n) for n in scores.names) + 1
    heads = max((head_of(n) or 0) for n in scores.names) + 1
    values = np.full((layers, heads + 1), np.nan)
    outlined = []
    for name, value in zip(scores.names, scores.mean, strict=True):
        head = head_of(name)
        cell = (layer_of(name), heads if head is None else head)
        values[cell] = value
        if name in circuit.kept:
            outlined.append(cell)
    return HeatMap(
        values,
        [str(n) for n in range(layers)],
        [*(str(h) for h in range(heads)), "MLP"],
        col_axis="head",
        title="support",
        unit="logits",
        highlight=outlined,
    )


def diagram(
    circuit: Circuit,
    scores: ComponentScores,
    connections: Mapping[str, float],
    classes: Mapping[str, str],
) -> CircuitDiagram:
    """The circuit in layers, its strongest connections drawn, named parts ringed."""
    strength = dict(zip(scores.names, scores.mean.tolist(), strict=True))
    layers = max(layer_of(n) for n in circuit.universe) + 1
    heads = max((head_of(n) or 0) for n in circuit.universe) + 1
    nodes = [
        Node(
            n,
            "mlp" if head_of(n) is None else "head",
            layer_of(n),
            head_of(n) or 0,
            strength=strength[n],
            group=classes.get(n, ""),
        )
        for n in circuit.parts
    ]
    pairs = [(*key.split(" -> ", 1), weight) for key, weight in connections.items()]
    strongest: list[Any] = sorted(pairs, key=lambda p: -abs(cast(float, p[2])))[:EDGES]
    if any(target == "logits" for _, target, _ in strongest):
        nodes.append(Node("logits", "logits", layers))
    return CircuitDiagram(
        nodes,
        [Edge(source, target, weight) for source, target, weight in strongest],
        n_layers=layers,
        n_heads=heads,
        has_mlp=any(head_of(n) is None for n in circuit.universe),
        unit="logits",
        strength_label="support of the part",
    )


def faithfulness_curve(curve: FaithfulnessCurve, nulls: Nulls | None, size: int) -> Curve:
    """Faithfulness by size on validation, with the band of the twins."""
    sizes = np.array(curve.sizes)
    values = curve.faithfulness
    line = Series(
        "circuit",
        sizes,
        [f.value for f in values],
        [_bounded(f.low) for f in values],
        [_bounded(f.high) for f in values],
    )
    return Curve(
        (line,),
        "heads and MLPs kept",
        "faithfulness",
        null=_band(nulls),
        chosen=float(size),
        target=SUFFICIENT,
        target_label="sufficient on test",
        y_range=(-0.6, 1.8),
    )


def _bounded(value: float) -> float:
    return float(np.clip(value, -0.6, 1.8)) if np.isfinite(value) else float("nan")


def _band(nulls: Nulls | None) -> NullBand | None:
    if nulls is None or not len(nulls.twin_curves):
        return None
    low, high = np.nanpercentile(nulls.twin_curves, [5, 95], axis=0)
    return NullBand(
        nulls.sizes,
        np.clip(low, -0.6, 1.8),
        np.clip(high, -0.6, 1.8),
        len(nulls.twin_curves),
        "twins, 5 to 95 %",
    )


def controls(verdict: Verdict, proof: Proof) -> ControlsTable:
    """Every rule of the verdict, and the ablation kinds side by side."""
    outcomes = {"pass": True, "fail": False}
    rows = [
        Control(
            r["name"], r["demand"], r["value"], r["baseline"] or None, outcomes.get(r["outcome"])
        )
        for r in verdict.rules
    ]
    low, high = SUFFICIENT
    for kind, interval in proof.ablations.items():
        rows.append(
            Control(
                f"{kind} ablation",
                f"reported beside: whole interval inside [{low}, {high}]",
                f"faithfulness {interval}",
                None,
                interval.within(low, high),
            )
        )
    return ControlsTable(rows)


def rule_tree(reduction: Reduction, names: Mapping[str, str]) -> RuleTree:
    """The decision tree, with answers written as text."""
    return RuleTree(_rule(reduction.tree, names), "answer")


def _rule(node: Mapping[str, Any], names: Mapping[str, str]) -> RuleNode:
    label = names.get(str(node["label"]), str(node["label"]))
    if "condition" not in node:
        return RuleNode(int(node["n"]), label, float(node["purity"]))
    return RuleNode(
        int(node["n"]),
        label,
        float(node["purity"]),
        str(node["condition"]),
        _rule(node["yes"], names),
        _rule(node["no"], names),
    )


def operation_views(operation: Operation) -> tuple[Distribution, Distribution]:
    """Accuracy and drift under the ablated circuit and under random ablations of its size."""
    accuracy = Distribution(
        (
            Sample("circuit ablated", [operation.after.value]),
            Sample(
                f"{len(operation.random_after)} random ablations of its size",
                operation.random_after,
            ),
        ),
        operation.before.value,
        "accuracy on the behavior",
        "unchanged model",
    )
    drift = Distribution(
        (
            Sample("circuit ablated", [operation.drift.value]),
            Sample(
                f"{len(operation.random_drift)} random ablations of its size",
                operation.random_drift,
            ),
        ),
        0.0,
        "drift on other prompts, nats",
        "unchanged model",
    )
    return accuracy, drift
