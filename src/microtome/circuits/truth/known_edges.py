"""The ground truth of a compiled program: its structural and its functional edges, and who is who.

Structural: the weights join source and target on a live path. Functional, for a named ablation:
replacing that one edge, or that edge together with one other that alone does nothing, moves the
output on some input. Structural edges that carry what never changes (positions, the first token)
are functional under zero ablation and not under resampling, so a figure has to name its truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np

from microtome.circuits.graph import EMBED, ComponentGraph, nodes_on, split_edge
from microtome.circuits.truth.patching import TRUTH_ABLATIONS, Patcher
from microtome.circuits.truth.planting import planted_behavior
from microtome.circuits.truth.rasp import Aggregate, Operation
from microtome.circuits.truth.structure import structural_edges
from microtome.circuits.truth.weights import ModuleWeights
from microtome.core.provenance import Provenance, collect
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from microtome.circuits.truth.compiling import Compiled

Truth = Literal["structural", "functional"]

MOVES = 1e-3
"""Change of the logit difference, on any example, from which an edge counts as functional."""

FEWER = 32
"""Examples on which pairs of edges, and edges without a weight product, are replaced."""


@dataclass(frozen=True, eq=False)
class GroundTruth(Result):
    """Which edges of a compiled program are its circuit.

    Attributes:
        program: Name of the program.
        universe: All possible edges.
        structural: Edges with a non-zero weight product on a live path.
        alone: By ablation, the edges that move the output when they alone are replaced.
        together: By ablation, the edges that do so only with one other that alone does nothing:
            the arms of a redundant circuit.
        roles: What each head and MLP does.
        examples: Clean/corrupt pairs over which edges were replaced.
        provenance: Model, seed, versions.
    """

    program: str
    universe: tuple[str, ...]
    structural: tuple[str, ...]
    alone: Mapping[str, tuple[str, ...]]
    together: Mapping[str, tuple[str, ...]]
    roles: Mapping[str, str]
    examples: int
    provenance: Provenance | None = None

    def functional(self, ablation: str) -> tuple[str, ...]:
        """Return the functional edges under an ablation, alone and together."""
        chosen = {*self.alone[ablation], *self.together[ablation]}
        return tuple(e for e in self.universe if e in chosen)

    def edges(self, truth: Truth, ablation: str) -> tuple[str, ...]:
        """Return the edges that are true in one sense; the structural ones for any ablation."""
        return self.structural if truth == "structural" else self.functional(ablation)

    @property
    def parts(self) -> tuple[str, ...]:
        """The heads and MLPs of the structural circuit, in the order of computation."""
        names = {part for edge in self.structural for part in _ends(edge)}
        return tuple(n for n in self.roles if n in names)

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each possible edge and in which sense it is true."""
        import pandas as pd

        table: dict[str, object] = {
            "edge": self.universe,
            "structural": [e in set(self.structural) for e in self.universe],
        }
        for ablation in self.alone:
            chosen = set(self.functional(ablation))
            table[f"functional, {ablation}"] = [e in chosen for e in self.universe]
        return pd.DataFrame(table)


def _ends(edge: str) -> tuple[str, str]:
    source, target = split_edge(edge)
    return source, target.split("<")[0]


def ground_truth(compiled: Compiled, *, n: int = 128, seed: int = 0) -> GroundTruth:
    """Compute the truth of a compiled program: from its weights, and by replacing every edge.

    Args:
        compiled: The program.
        n: Clean/corrupt pairs over which every edge with a weight product is replaced. All other
            edges, and pairs of edges, are replaced on the first 32 of them.
        seed: For the pairs.
    """
    model = compiled.model
    graph, weights = ComponentGraph.of(model), ModuleWeights.of(compiled.module)
    examples = planted_behavior(compiled, n=n, seed=seed).prepare(model)
    structural = structural_edges(weights, graph)
    alone: dict[str, tuple[str, ...]] = {}
    together: dict[str, tuple[str, ...]] = {}
    for ablation in TRUTH_ABLATIONS:
        patcher = Patcher(weights, graph, examples, ablation)
        quick = replace(patcher, examples=examples[:FEWER])
        alone[ablation] = _alone(patcher, quick, structural)
        silent = [e for e in structural if e not in set(alone[ablation])]
        together[ablation] = _joint(quick, silent)
    return GroundTruth(
        program=compiled.program.name,
        universe=graph.edges,
        structural=structural,
        alone=alone,
        together=together,
        roles=roles_of(compiled, nodes_on(structural, graph)),
        examples=len(examples),
        provenance=collect(model, {"n": n, "realism": compiled.realism}, seed=seed),
    )


def _alone(patcher: Patcher, quick: Patcher, structural: tuple[str, ...]) -> tuple[str, ...]:
    """Return the edges that move the output when they alone are replaced."""
    linked = set(structural)
    others = [e for e in patcher.graph.edges if e not in linked]
    found = {*_moving(patcher, structural), *_moving(quick, others)}
    return tuple(e for e in patcher.graph.edges if e in found)


def _moving(patcher: Patcher, edges: Sequence[str]) -> tuple[str, ...]:
    values = patcher.differences([(), *((edge,) for edge in edges)])
    moved = np.abs(values[1:] - values[0]).max(1, initial=0.0) > MOVES
    return tuple(e for e, m in zip(edges, moved, strict=True) if m)


def _joint(patcher: Patcher, silent: list[str]) -> tuple[str, ...]:
    """Return the edges that alone do nothing and move the output in some pair of such edges."""
    pairs = list(combinations(silent, 2))
    values = patcher.differences([(), *pairs])
    moved = np.abs(values[1:] - values[0]).max(1, initial=0.0) > MOVES
    found = {edge for pair, m in zip(pairs, moved, strict=True) if m for edge in pair}
    return tuple(e for e in patcher.graph.edges if e in found)


def roles_of(compiled: Compiled, live: tuple[str, ...]) -> dict[str, str]:
    """Return what every head and MLP computes; parts outside the live circuit are decoys.

    Args:
        compiled: The program.
        live: Heads and MLPs of its structural circuit.
    """
    model = compiled.model
    roles = {}
    for source in ComponentGraph.of(model).sources:
        if source == EMBED:
            continue
        block, _, head = source[1:].partition(".h")
        operations: tuple[Operation, ...] = compiled.mlps.get(int(block), ())
        if head:
            only = compiled.heads.get((int(block), int(head)))
            operations = () if only is None else (only,)
        texts = list(dict.fromkeys(_role(o) for o in operations))
        roles[source] = ", ".join(texts) if texts and source in live else "decoy"
    return roles


def _role(operation: Operation) -> str:
    """Return what an operation is, in words."""
    name = {
        "Aggregate": "aggregate",
        "InverseWidth": "selector width",
        "Map": "map",
        "SequenceMap": "sequence map",
        "Vote": "vote of copies",
        "Correction": "backup",
    }[type(operation).__name__]
    kind = "number" if operation.numerical else "category"
    return f"{name} ({kind})" if isinstance(operation, Aggregate) else name
