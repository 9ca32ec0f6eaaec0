"""The smallest faithful circuit along a ranking of nodes or edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from microtome.circuits.ablation import Ablation
from microtome.circuits.finding import by_layer, sizes_up_to, top
from microtome.circuits.judging.evaluation import connected, curve
from microtome.circuits.judging.levels import graph_at, universe_of
from microtome.circuits.results import Circuit, FaithfulnessCurve, Level
from microtome.core.provenance import collect

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model


def smallest_faithful(
    model: Model,
    validation: Examples,
    order: Sequence[str],
    *,
    level: Level = "node",
    faithfulness: float = 0.9,
    ablation: Ablation = "resample",
    metric: str = "logit_difference",
    reference: Examples | None = None,
    method: str = "a ranking",
    seed: int = 0,
) -> Circuit:
    """Return the first circuit along a ranking whose faithfulness is as near 1 as asked.

    More than 1 is no better than less: 0.9 asks for 0.9 to 1.1. Edges that lie on no path from the
    embedding to the logits are left out.

    Args:
        model: The model.
        validation: Where the size is chosen.
        order: All parts, strongest first.
        level: What they are.
        faithfulness: Between 0 and 1.
        ablation: What ablated parts give.
        metric: A metric that reads the prompt's end.
        reference: Examples over which means are taken.
        method: How the ranking was found, for the result.
        seed: For the bootstrap.
    """
    return cut(
        model, validation, order, level=level, faithfulness=faithfulness, ablation=ablation,
        metric=metric, reference=reference, method=method, seed=seed,
    )[0]  # fmt: skip


def cut(
    model: Model,
    validation: Examples,
    order: Sequence[str],
    *,
    level: Level = "node",
    faithfulness: float,
    ablation: Ablation,
    metric: str,
    reference: Examples | None,
    method: str,
    seed: int,
) -> tuple[Circuit, FaithfulnessCurve]:
    """Return the circuit of :func:`smallest_faithful`, and the curve that it was read off."""
    sizes = sizes_up_to(len(order))
    measured = curve(
        model, validation, order, sizes, level=level, ablation=ablation, metric=metric,
        reference=reference, seed=seed,
    )  # fmt: skip
    slack = 1 - faithfulness
    size = next(
        (s for s, f in zip(sizes, measured.faithfulness, strict=True) if abs(1 - f.value) <= slack),
        len(order),
    )
    universe = universe_of(model, level, examples=validation, universe=order)
    graph = graph_at(model, level, examples=validation)
    circuit = Circuit(
        parts=by_layer(connected(top(order, size), graph), universe),
        universe=universe,
        method=f"{method}, first {size}",
        level=level,
        model=model.fingerprint,
        provenance=collect(model, {"faithfulness": faithfulness, "level": level}, seed=seed),
    )
    return circuit, measured
