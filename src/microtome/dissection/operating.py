"""Step 7, operate: the behavior and the drift elsewhere, before and after the ablation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.behaviors import registry
from microtome.behaviors.examples import Examples
from microtome.behaviors.metrics import KLToUnchanged
from microtome.circuits.ablation import Ablator
from microtome.circuits.judging.matching import matched
from microtome.core.seeds import rng
from microtome.core.stats import cluster_bootstrap
from microtome.dissection.results import Operation
from microtome.errors import EmptyDataError

if TYPE_CHECKING:
    from microtome.circuits.results import Circuit
    from microtome.tracing.model import Model

DRAWS = 10
"""Size-matched random ablations."""

OTHERS = 60
"""Other prompts, over all other behaviors of the same kind."""


def operate(
    model: Model, behavior: str, train: Examples, test: Examples, circuit: Circuit, *, seed: int
) -> Operation:
    """Ablate the circuit to its mean and measure the behavior and the drift elsewhere.

    Args:
        model: The model.
        behavior: Name of the behavior, which is left out of the other text.
        train: Where means are taken.
        test: Where the behavior is measured.
        circuit: The circuit.
        seed: For the random ablations.
    """
    other, label = other_prompts(model, behavior, seed)
    probe = test.clean[:1]
    before = model.trace(probe, logits="last").logits
    kept = [frozenset(circuit.universe), circuit.rest]
    random = rng(seed, "random ablations")
    kept += [frozenset(circuit.universe) - matched(circuit, random) for _ in range(DRAWS)]
    accuracy = Ablator(model, test, ablation="mean", reference=train).run(kept, ["accuracy"])[
        "accuracy"
    ]
    drifts = _drift(model, other, train, kept)
    after = model.trace(probe, logits="last").logits
    return Operation(
        ablation="mean",
        before=cluster_bootstrap(accuracy[0], test.clusters, seed=seed),
        after=cluster_bootstrap(accuracy[1], test.clusters, seed=seed),
        random_after=accuracy[2:].mean(1),
        drift=cluster_bootstrap(drifts[1], other.clusters, seed=seed),
        random_drift=drifts[2:].mean(1),
        other=label,
        other_prompts=len(other),
        undone=before is not None and after is not None and bool(torch.equal(before, after)),
    )


def other_prompts(model: Model, behavior: str, seed: int) -> tuple[Examples, str]:
    """Return prompts of the other behaviors of the same kind (code or English)."""
    code = behavior in registry.PYTHON
    names = [n for n in registry.names() if n != behavior and (n in registry.PYTHON) == code]
    found, used = [], []
    for name in names:
        try:
            part = registry.get(name, n=40, seed=seed).prepare(model)
        except EmptyDataError:
            continue
        found += list(part.items[: max(1, OTHERS // len(names))])
        used.append(name)
    return Examples(tuple(found), (), "other text"), "prompts of " + ", ".join(used)


def _drift(
    model: Model, other: Examples, train: Examples, kept: list[frozenset[str]]
) -> np.ndarray:
    """Return the KL from the unchanged model at each prompt's end ``[circuit, example]``."""
    kl = KLToUnchanged()
    drifts = np.zeros((len(kept), len(other)))
    ablator = Ablator(model, other, ablation="mean", reference=train)
    for number, circuit in enumerate(kept):
        drifts[number] = ablator.compare(circuit, kl)
    return drifts
