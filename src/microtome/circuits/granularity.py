"""From fine parts to coarse ones and back: circuits, and scores whose sums must be conserved."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import numpy as np
import torch

from microtome.circuits.edges.scores import EdgeScores
from microtome.circuits.finding import find
from microtome.circuits.judging.levels import universe_of
from microtome.circuits.results import Circuit, Level
from microtome.core.provenance import collect
from microtome.errors import ConfigError, DataError

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model

CONSERVED = 1e-4
"""Share of the largest score by which sums of finer scores may differ (float32)."""

COARSER: dict[Level, Level] = {
    "role-edge": "edge",
    "position-edge": "edge",
    "neuron-edge": "edge",
    "neuron": "node",
}
"""The level whose parts the parts of a level add up to."""


def coarsen(circuit: Circuit) -> Circuit:
    """Return the circuit of whole edges, or of heads and MLPs, some part of which a circuit keeps.

    Args:
        circuit: A circuit of neurons, or of edges told apart by place or neuron.

    Raises:
        ConfigError: If it is of whole edges or of nodes already; see ``graph.nodes_on`` for the
            nodes that edges touch.
    """
    level = COARSER.get(circuit.level)
    if level is None:
        raise ConfigError(
            f"A circuit of {circuit.level}s cannot be coarsened; expected one of "
            f"{', '.join(f'{name}s' for name in COARSER)}."
        )
    kept = {_whole(part) for part in circuit.parts}
    universe = tuple(dict.fromkeys(_whole(part) for part in circuit.universe))
    return Circuit(
        parts=tuple(part for part in universe if part in kept),
        universe=universe,
        method=f"{circuit.method}, coarsened",
        level=level,
        model=circuit.model,
        provenance=circuit.provenance,
    )


@overload
def refine(
    found: Circuit,
    model: Model,
    examples: Examples,
    *,
    level: Level,
    reference: Examples | None = None,
) -> Circuit: ...


@overload
def refine(
    found: EdgeScores,
    model: Model,
    examples: Examples,
    *,
    level: Level,
    reference: Examples | None = None,
) -> EdgeScores: ...


def refine(
    found: Circuit | EdgeScores,
    model: Model,
    examples: Examples,
    *,
    level: Level,
    reference: Examples | None = None,
) -> Circuit | EdgeScores:
    """Return a circuit or scores of edges at a finer level.

    A circuit keeps all parts of what it kept, and runs as before. Scores are computed anew by the
    same method, and must add up to what they were.

    Args:
        found: A circuit of nodes or edges, or scores of edges by a gradient.
        model: The model.
        examples: Prompts whose roles or positions tell edges apart; for scores the ones that they
            were computed on.
        level: ``neuron`` for nodes, ``role-edge`` or ``position-edge`` for edges.
        reference: For scores the examples over which means were taken, if they were others.

    Raises:
        ConfigError: If the level is not a finer one, or the method's scores do not add up.
        DataError: If the sums differ, as those of other examples do.
    """
    if COARSER.get(level) != found.level or level == "neuron-edge":
        finer = [f"level={fine!r}" for fine, coarse in COARSER.items()
                 if coarse == found.level and fine != "neuron-edge"]  # fmt: skip
        raise ConfigError(
            f"{found.level}s cannot be refined to level={level!r}; expected "
            f"{' or '.join(finer) or 'nodes or edges'}."
        )
    if isinstance(found, EdgeScores):
        return _rescored(found, model, examples, level, reference)
    universe = universe_of(model, level, examples=examples)
    kept = found.kept
    return Circuit(
        parts=tuple(part for part in universe if _whole(part) in kept),
        universe=universe,
        method=f"{found.method}, refined",
        level=level,
        model=model.fingerprint,
        provenance=collect(model, {"level": level}),
    )


def difference_of_sums(fine: EdgeScores, coarse: EdgeScores) -> float:
    """Return by how much sums of finer scores differ, as a share of the largest coarse one.

    Args:
        fine: Scores of edges told apart by place or neuron.
        coarse: Scores of the same edges as wholes.

    Raises:
        DataError: If they are not about the same edges.
    """
    summed = fine.coarsened("edge")
    graph = coarse.graph
    if (summed.sources, summed.targets) != (graph.sources, graph.targets):
        raise DataError("The scores are about edges of different models; expected the same.")
    off = np.abs(summed.values - np.nan_to_num(coarse.matrix())).max()
    return float(off / max(np.abs(coarse.mean).max(), np.finfo(float).tiny))


def _rescored(
    found: EdgeScores,
    model: Model,
    examples: Examples,
    level: Level,
    reference: Examples | None,
) -> EdgeScores:
    name, _, rest = found.method.partition(", ")
    able = ("eap", "eap-ig", "clean-corrupted")
    if name not in able:
        raise ConfigError(
            f"Scores of {found.method} at single places do not add up to those of edges, or are "
            f"not computed; expected scores of {', '.join(able)}."
        )
    steps = {"steps": int(rest.split()[0])} if rest else {}
    fine: EdgeScores = find(
        model, examples, method=name, metric=found.metric, ablation=found.ablation,
        reference=reference, level=level, **steps,
    )  # fmt: skip
    off = difference_of_sums(fine, found)
    allowed = max(CONSERVED, 8 * torch.finfo(model.dtype).eps)
    if off > allowed:
        raise DataError(
            f"The scores by place add up to others than the given ones (by {off:.1e} of the "
            f"largest, expected at most {allowed:.0e}); give the model, examples and reference "
            "that these were computed on."
        )
    return fine


def _whole(part: str) -> str:
    """Return an edge without place and neuron, or the MLP of a neuron."""
    source, arrow, target = part.partition("->")
    source = source.partition(".")[0] if source[0] == "m" else source
    return source + arrow + target.partition("@")[0]
