"""Knock-out completeness: does the circuit react to knock-outs as the whole model does?

For a set K of a circuit's parts the incompleteness is ``|F(C without K) - F(M without K)|``,
where F is faithfulness (Wang et al. 2023, section 4). Random sets show the usual, greedy ones the
worst case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits.ablation import Ablation
from microtome.circuits.judging.areas import faithfulness_of
from microtome.circuits.judging.levels import Runner, runner
from microtome.circuits.results import Circuit
from microtome.core.provenance import Provenance, collect
from microtome.core.resampling import cluster_function_bootstrap
from microtome.core.seeds import rng
from microtome.core.stats import Interval
from microtome.errors import ConfigError
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model

RANDOM_SETS = 20
"""Random knock-out sets."""

GREEDY_SETS = 3
"""Greedy searches, each over its own random draws of candidates."""

CANDIDATES = 10
"""Parts that a greedy step tries."""

DEPTH = 10
"""Parts of a greedy set at most."""


@dataclass(frozen=True, eq=False)
class Completeness(Result):
    """How far a circuit and the model part when parts of the circuit are knocked out.

    Attributes:
        sets: The sets K, random ones first.
        greedy: Whether each was searched for.
        circuit: F(C without K) of each set.
        model: F(M without K) of each set.
        difference: ``|F(C without K) - F(M without K)|`` of each set, with its interval.
        ablation: What ablated parts gave.
        provenance: Model, seed, versions.
    """

    sets: tuple[tuple[str, ...], ...]
    greedy: tuple[bool, ...]
    circuit: tuple[Interval, ...]
    model: tuple[Interval, ...]
    difference: tuple[Interval, ...]
    ablation: str
    provenance: Provenance | None = None

    @property
    def mean(self) -> float:
        """Mean incompleteness over the random sets; 0 is best."""
        found = [d.value for d, g in zip(self.difference, self.greedy, strict=True) if not g]
        return float(np.mean(found)) if found else 0.0

    @property
    def worst(self) -> Interval:
        """The largest incompleteness of any set; 0 is best."""
        if not self.difference:
            return Interval(0.0, 0.0, 0.0)
        return max(self.difference, key=lambda d: d.value)

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each set."""
        import pandas as pd

        rows = [
            {
                "parts": ", ".join(parts),
                "search": "greedy" if greedy else "random",
                "circuit": c.value,
                "model": m.value,
                "difference": d.value,
                "low": d.low,
                "high": d.high,
            }
            for parts, greedy, c, m, d in zip(
                self.sets, self.greedy, self.circuit, self.model, self.difference, strict=True
            )
        ]
        return pd.DataFrame(rows)


def completeness(
    model: Model,
    examples: Examples,
    circuit: Circuit,
    *,
    search: Examples | None = None,
    random_sets: int = RANDOM_SETS,
    greedy_sets: int = GREEDY_SETS,
    ablation: Ablation = "resample",
    metric: str = "logit_difference",
    reference: Examples | None = None,
    seed: int = 0,
) -> Completeness:
    """Knock out sets of a circuit's parts in the circuit and in the whole model.

    Args:
        model: The model.
        examples: Where the sets are scored.
        circuit: The circuit, of nodes or of edges.
        search: Where greedy sets are searched; the same examples by default, which flatters the
            search, not the circuit.
        random_sets: How many sets hold each part with probability one half.
        greedy_sets: How many are grown part by part, each time by the one among some random
            candidates that adds most to the incompleteness.
        ablation: What ablated parts give.
        metric: A metric that reads the prompt's end.
        reference: Examples over which means are taken.
        seed: Which sets, and the bootstrap.

    Raises:
        ConfigError: If a count is negative.
    """
    if random_sets < 0 or greedy_sets < 0:
        raise ConfigError(
            f"{random_sets} random and {greedy_sets} greedy sets; expected 0 or more."
        )
    random = rng(seed, "knock-outs")
    sets = [_half(circuit, random) for _ in range(random_sets if circuit.parts else 0)]
    count = len(sets)
    if greedy_sets and circuit.parts:
        looked = runner(
            model, search or examples, circuit.level, ablation=ablation, reference=reference,
            universe=circuit.universe,
        )  # fmt: skip
        sets += [_worst(looked, circuit, metric, random) for _ in range(greedy_sets)]
    ran = runner(
        model, examples, circuit.level, ablation=ablation, reference=reference,
        universe=circuit.universe,
    )  # fmt: skip
    values = _rows(ran, circuit, sets, metric)
    sign = float(np.sign((values[0] - values[1]).mean()))

    def measured(means: np.ndarray) -> np.ndarray:
        f = faithfulness_of(means, sign)
        kept, whole = f[:, : len(sets)], f[:, len(sets) :]
        return np.concatenate([kept, whole, np.abs(kept - whole)], axis=1)

    found = cluster_function_bootstrap(values, examples.clusters, measured, seed=seed)
    n = len(sets)
    return Completeness(
        sets=tuple(tuple(p for p in circuit.parts if p in k) for k in sets),
        greedy=(False,) * count + (True,) * (n - count),
        circuit=found[:n],
        model=found[n : 2 * n],
        difference=found[2 * n :],
        ablation=ablation,
        provenance=collect(model, {"ablation": ablation, "metric": metric}, seed=seed),
    )


def _half(circuit: Circuit, random: np.random.Generator) -> frozenset[str]:
    """Draw a set that holds every part with probability one half, and at least one."""
    drawn = frozenset(p for p in circuit.parts if random.random() < 0.5)
    return drawn or frozenset({circuit.parts[int(random.integers(len(circuit.parts)))]})


def _worst(
    ran: Runner, circuit: Circuit, metric: str, random: np.random.Generator
) -> frozenset[str]:
    """Grow a set greedily; return the worst of the sets that were passed."""
    chosen: frozenset[str] = frozenset()
    passed: list[tuple[float, frozenset[str]]] = []
    while len(chosen) < min(DEPTH, len(circuit.parts)):
        left = [p for p in circuit.parts if p not in chosen]
        picks = random.choice(len(left), size=min(CANDIDATES, len(left)), replace=False)
        tried = [chosen | {left[int(i)]} for i in picks]
        means = _rows(ran, circuit, tried, metric).mean(1)
        f = faithfulness_of(means[None], float(np.sign(means[0] - means[1])))[0]
        gaps = np.abs(f[: len(tried)] - f[len(tried) :])
        best = int(np.argmax(np.nan_to_num(gaps)))
        chosen = tried[best]
        passed.append((float(gaps[best]), chosen))
    return max(passed, key=lambda pair: pair[0])[1]


def _rows(ran: Runner, circuit: Circuit, sets: Sequence[frozenset[str]], metric: str) -> np.ndarray:
    """Return the metric of the model, of nothing, of C without each K, and of M without each."""
    everything = frozenset(ran.universe)
    circuits = [circuit.kept - k for k in sets] + [everything - k for k in sets]
    return ran.run([everything, frozenset(), *circuits], [metric])[metric]
