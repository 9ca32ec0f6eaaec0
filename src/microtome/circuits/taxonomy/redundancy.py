"""Pairs of parts that stand in for each other: ablating both costs more than each in turn."""

from __future__ import annotations

import itertools

import numpy as np
from scipy import stats

from microtome.circuits.ablation import Ablator
from microtome.circuits.graph import ComponentGraph, nodes_on
from microtome.circuits.taxonomy.causal import EXAMPLES, Effects
from microtome.circuits.taxonomy.detector import Detector, Scores
from microtome.circuits.taxonomy.material import Material
from microtome.core.stats import cluster_standard_error
from microtome.errors import ModelSupportError

PARTS = 10
"""Parts whose pairs are tried at most: those whose ablation moves the metric most."""


def redundancy(material: Material) -> Scores:
    """Score how much more two ablations together cost than the sum of each alone."""
    inputs = material.inputs
    if inputs.examples is None:
        raise ModelSupportError(inputs.missing["behavior"])
    examples = inputs.examples[:EXAMPLES]
    ablator = Ablator(material.model, examples)
    everything = frozenset(ablator.universe)
    candidates = _candidates(material, ablator.universe)
    runs = [everything, *(everything - {n} for n in candidates)]
    found = ablator.run(runs, [inputs.metric])[inputs.metric]
    lost = dict(zip(candidates, found[0] - found[1:], strict=True))
    chosen = sorted(candidates, key=lambda n: -abs(float(lost[n].mean())))[:PARTS]
    pairs = list(itertools.combinations(sorted(chosen, key=candidates.index), 2))
    if not pairs:
        raise ModelSupportError("fewer than two parts to ablate together")
    both = ablator.run([everything - set(p) for p in pairs], [inputs.metric])[inputs.metric]
    extra = np.array(
        [found[0] - row - lost[a] - lost[b] for (a, b), row in zip(pairs, both, strict=True)]
    )
    return _scores(material, pairs, extra / material.once(Effects).unit, examples.clusters)


def _candidates(material: Material, universe: tuple[str, ...]) -> list[str]:
    circuit = material.inputs.circuit
    if circuit is None:
        return list(universe)
    kept = circuit.kept
    if circuit.of_edges:
        kept = frozenset(nodes_on(circuit.parts, ComponentGraph.of(material.model)))
    return [n for n in universe if n in kept]


def _scores(
    material: Material, pairs: list[tuple[str, str]], extra: np.ndarray, clusters: np.ndarray
) -> Scores:
    count = len(set(clusters.tolist()))
    if count < 4:
        raise ModelSupportError(
            f"the behavior's examples come from {count} clusters; flipping clusters needs four"
        )
    sd = np.maximum([cluster_standard_error(row, clusters) for row in extra], 1e-9)
    mean = extra.mean(1)
    return Scores(
        tuple(f"{a}+{b}" for a, b in pairs), mean, np.zeros(len(pairs)), sd,
        stats.t.sf(mean / sd, count - 1), np.ones(len(pairs), dtype=bool), {},
    )  # fmt: skip


REDUNDANCY = (
    Detector(
        "redundant pair", "pair",
        "metric lost when both parts are ablated less the sum of what each loses alone, as a "
        "share of the mean size of the metric in the clean and the corrupt run",
        "Wang 2022", "behavior", "the excess of random clusters with its sign flipped",
        redundancy, nulls=("shuffle", "others"), threshold=0.05, standing="microtome",
    ),
)  # fmt: skip
"""The detector of redundancy."""
