"""Circuits of growing size along a ranking, as one picture with a slider beside their curve."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits.drawing.diagrams import Drawn, check_nodes
from microtome.circuits.parts import Scores
from microtome.circuits.results import Circuit, Level
from microtome.errors import ConfigError
from microtome.views import CircuitSlider, Curve, Series, Stage

if TYPE_CHECKING:
    from microtome.circuits.results import FaithfulnessCurve

STAGES = 16
"""Sizes on the slider at most."""


def nested(
    ranking: Sequence[str],
    sizes: Iterable[int],
    *,
    universe: Sequence[str],
    level: Level = "edge",
    method: str = "ranking",
) -> tuple[Circuit, ...]:
    """Return circuits of the first parts of a ranking.

    Args:
        ranking: Parts, strongest first.
        sizes: Numbers of parts.
        universe: All parts of the model.
        level: Level of the parts.
        method: How they were ranked.

    Raises:
        ConfigError: If a size is below 1 or above the ranking's length.
    """
    circuits = []
    for size in sorted(set(sizes)):
        if not 1 <= size <= len(ranking):
            raise ConfigError(f"size {size}; expected 1 to {len(ranking)}, the ranking's length")
        chosen = set(ranking[:size])
        parts = tuple(name for name in universe if name in chosen)
        circuits.append(Circuit(parts, tuple(universe), f"{method}, {size} first", level=level))
    return tuple(circuits)


def spread_sizes(most: int, *, count: int = STAGES) -> tuple[int, ...]:
    """Return up to ``count`` whole sizes from 1 to ``most``, with about equal ratios."""
    return tuple(sorted({round(x) for x in np.geomspace(1, max(1, most), count)}))


def slider(
    circuits: Sequence[Circuit],
    scores: Scores | None = None,
    *,
    curve: FaithfulnessCurve | None = None,
    chosen: int | None = None,
    classes: Mapping[str, str] | None = None,
    max_edges: int = 200,
    unit: str = "",
) -> CircuitSlider:
    """Return a picture with a slider over circuits of growing size.

    Args:
        circuits: Circuits of one model, such as ``nested`` gives; those of more than ``max_edges``
            parts are on the curve only, and of many at most 16 are on the slider.
        scores: Scores of their parts.
        curve: Their faithfulness by size, drawn beside with a mark at the size on show.
        chosen: Size shown first; the largest by default.
        classes: Named class of nodes.
        max_edges: Largest circuit that is drawn.
        unit: Unit of the scores.

    Raises:
        ConfigError: If no circuit is small enough to draw, or their sizes or universes differ in
            a way that makes no series.
    """
    drawn = _drawable(circuits, max_edges, chosen)
    together = {name for circuit in drawn for name in circuit.parts}
    first = drawn[0]
    union = Circuit(
        tuple(p for p in first.universe if p in together), first.universe, "union", first.level
    )
    found = Drawn(union, scores, classes=classes)
    check_nodes(len(found.nodes))
    edges = found.drawn_edges()
    whole = found.diagram(max_edges=max(1, len(edges)), unit=unit, marks=False)
    shown = frozenset(whole.edges)
    sizes = [len(circuit) for circuit in drawn]
    values = {} if curve is None else dict(zip(curve.sizes, curve.faithfulness, strict=True))
    nan = math.nan
    stages = []
    for circuit in drawn:
        kept = [edge for part in circuit.parts for edge in found.edges.get(part, ())]
        at = values.get(len(circuit))
        stages.append(
            Stage(
                size=len(circuit),
                nodes=frozenset(circuit.parts)
                if not circuit.of_edges
                else frozenset(name for edge in kept for name in (edge.source, edge.target)),
                edges=frozenset(kept) & shown,
                value=nan if at is None else at.value,
                low=nan if at is None else at.low,
                high=nan if at is None else at.high,
            )
        )
    return CircuitSlider(
        whole,
        stages,
        curve=None if curve is None else faithfulness_by_size(curve, f"{first.level}s"),
        chosen=sizes.index(chosen) if chosen in sizes else len(sizes) - 1,
        unit=f"{first.level}s",
    )


def faithfulness_by_size(curve: FaithfulnessCurve, unit: str) -> Curve:
    """Return a curve over the number of parts, sizes of 0 left out because its axis is a ratio."""
    # Imported here: with it come the model libraries, which a drawing without a curve can spare.
    from microtome.circuits.verdict import SUFFICIENT

    rows = [(size, f) for size, f in zip(curve.sizes, curve.faithfulness, strict=True) if size > 0]
    return Curve(
        (
            Series(
                "circuit",
                [size for size, _ in rows],
                [f.value for _, f in rows],
                low=[f.low for _, f in rows],
                high=[f.high for _, f in rows],
            ),
        ),
        x_label=f"{unit} in the circuit",
        y_label=f"faithfulness ({curve.ablation} ablation)",
        chosen_label="shown",
        target=SUFFICIENT,
        log_x=True,
    )


def _drawable(
    circuits: Sequence[Circuit], max_edges: int, chosen: int | None
) -> tuple[Circuit, ...]:
    """Return the circuits of the slider by size, at most ``STAGES``, the chosen one among them."""
    by_size = {len(c): c for c in circuits if 0 < len(c) <= max_edges}
    if not by_size:
        found = ", ".join(str(len(c)) for c in circuits) or "none"
        raise ConfigError(
            f"no circuit can be drawn: their sizes are {found}; expected one of 1 to {max_edges} "
            "parts"
        )
    if len({(c.level, c.universe) for c in by_size.values()}) > 1:
        raise ConfigError("the circuits have different universes; give circuits of one model")
    if chosen is not None and chosen not in by_size:
        raise ConfigError(
            f"chosen={chosen} is not among the sizes that can be drawn: "
            f"{', '.join(str(size) for size in sorted(by_size))}"
        )
    sizes = sorted(by_size)
    if len(sizes) > STAGES:
        places = {round(x) for x in np.linspace(0, len(sizes) - 1, STAGES)}
        if chosen is not None:
            places.add(sizes.index(chosen))
        sizes = [sizes[place] for place in sorted(places)]
    return tuple(by_size[size] for size in sizes)
