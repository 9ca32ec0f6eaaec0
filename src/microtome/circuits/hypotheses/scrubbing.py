"""Causal scrubbing: replace every activation by one that a hypothesis calls equivalent.

Behavior-preserving resampling ablation (Chan et al. 2022, Redwood Research): for the logits and,
recursively, for every claim they read, prompts are drawn that agree on what the claim carries; all
that the hypothesis does not mention comes from prompts drawn at random. If the hypothesis is right
the metric survives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.behaviors.metrics import LastTokenMetric, Metric, metric
from microtome.circuits.hypotheses.hypothesis import Hypothesis
from microtome.circuits.hypotheses.scrubbed_runs import Labels, Pool, Tree
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import Provenance, collect
from microtome.core.seeds import rng
from microtome.core.stats import Interval, cluster_ratio_bootstrap, permutation_p
from microtome.errors import ConfigError, MetricError
from microtome.store.results import Result
from microtome.tracing.components import component_names

if TYPE_CHECKING:
    import pandas as pd

    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model

__all__ = ["Scrubbing", "scrub"]

DRAWS = 4
"""Times that every item is scrubbed."""

RELABELINGS = 20
"""Hypotheses with exchanged labels."""


@dataclass(frozen=True, eq=False)
class Scrubbing(Result):
    """How much of a metric survives when a hypothesis decides what may be exchanged.

    Attributes:
        hypothesis: Its name.
        recovered: Share of the metric recovered,
            (scrubbed - random) / (model - random), a ratio of means.
        same_item: The same where every claim takes the item itself: what the named parts carry at
            all, whatever is claimed of it.
        null: Share recovered when what the claims carry is exchanged at random among prompts.
        p: Share of these that recover as much, the observation counted.
        alone: For each claim the share of items with which no other prompt agrees; they cannot
            speak against it.
        metric: Name of the metric.
        full: The metric of the model ``[example]``.
        random: The metric when everything is exchanged ``[example]``.
        scrubbed: The metric under the hypothesis ``[example]``.
        clusters: Number of clusters.
        draws: Times that every item was scrubbed.
        provenance: Model, seed, versions.
    """

    hypothesis: str
    recovered: Interval
    same_item: Interval
    null: np.ndarray
    p: float
    alone: dict[str, float]
    metric: str
    full: np.ndarray
    random: np.ndarray
    scrubbed: np.ndarray
    clusters: int
    draws: int
    provenance: Provenance | None = None

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each figure."""
        import pandas as pd

        rows = [
            ("recovered", self.recovered.value, self.recovered.low, self.recovered.high),
            ("same item", self.same_item.value, self.same_item.low, self.same_item.high),
            ("best relabeling", float(np.max(self.null, initial=-np.inf)), None, None),
            ("p", self.p, None, None),
        ]
        rows += [(f"alone, {name}", share, None, None) for name, share in self.alone.items()]
        return pd.DataFrame(rows, columns=["quantity", "value", "low", "high"])


def scrub(
    model: Model,
    examples: Examples,
    hypothesis: Hypothesis,
    *,
    metric: str | Metric = "loss",
    draws: int = DRAWS,
    relabelings: int = RELABELINGS,
    seed: int = 0,
    progress: Progress = quiet,
) -> Scrubbing:
    """Test a hypothesis by causal scrubbing.

    Args:
        model: A transformer.
        examples: Held-out examples prepared for it. Prompts are exchanged with others of the same
            length and layout of roles: clean ones, and corrupt ones unless the hypothesis speaks of
            features.
        hypothesis: The hypothesis.
        metric: A metric that reads the prompt's end.
        draws: Times that every item is scrubbed.
        relabelings: Hypotheses about the same parts with exchanged labels.
        seed: Of everything that is drawn.
        progress: Told after each relabeling.

    Raises:
        ConfigError: If a count is out of range.
        DataError: If the hypothesis cannot be computed on an item.
        UnknownNameError: If it names a part that the model does not have.
        MetricError: If the metric does not read the prompt's end alone.
    """
    if draws < 1 or relabelings < 0:
        raise ConfigError(
            f"draws={draws}, relabelings={relabelings}; expected at least 1 and at least 0."
        )
    chosen = _metric(metric)
    resolved = hypothesis.resolved(component_names(model))
    pool = Pool(model, examples, resolved)
    labels = pool.labels()
    nothing = Hypothesis(resolved.name, resolved.variables, (), (), None)

    def value(tested: Hypothesis, labels: Labels, stream: str, times: int) -> np.ndarray:
        random = rng(seed, "scrubbing", stream)
        rows = [_values(pool, tested, labels, chosen, random) for _ in range(times)]
        return np.asarray(np.mean(rows, axis=0))

    full = _values(pool, None, labels, chosen, rng(seed, "scrubbing"))
    random = value(nothing, labels, "random", max(draws, 4))
    scrubbed = value(resolved, labels, "scrubbed", draws)
    itself = value(resolved, pool.own_labels(), "same item", draws)
    null = []
    for number in range(relabelings):
        shuffled = pool.relabeled(labels, rng(seed, "relabeling", str(number)))
        null.append(_share(value(resolved, shuffled, f"null {number}", draws), full, random))
        progress.step(number + 1, relabelings, "relabelings")
    clusters = examples.clusters
    recovered = cluster_ratio_bootstrap(scrubbed - random, full - random, clusters, seed=seed)
    return Scrubbing(
        hypothesis=hypothesis.name,
        recovered=recovered,
        same_item=cluster_ratio_bootstrap(itself - random, full - random, clusters, seed=seed),
        null=np.array(null),
        p=permutation_p(recovered.value, null) if null else 1.0,
        alone=pool.alone(labels),
        metric=chosen.name,
        full=full,
        random=random,
        scrubbed=scrubbed,
        clusters=recovered.clusters,
        draws=draws,
        provenance=collect(model, {"metric": chosen.name, "draws": draws}, seed=seed),
    )


def _values(
    pool: Pool,
    hypothesis: Hypothesis | None,
    labels: Labels,
    chosen: LastTokenMetric,
    random: np.random.Generator,
) -> np.ndarray:
    """Return the metric of every example, scrubbed once; None leaves the model as it is."""
    values = np.zeros(len(pool.examples))
    for group in pool.groups:
        items = group.clean
        if not len(items):
            continue
        if hypothesis is None:
            logits = group.logits[torch.from_numpy(items)]
        else:
            logits = Tree(pool, group, hypothesis, labels, random).logits(items)
        places = [group.places[int(i)] for i in items]
        answers = pool.examples.take(places)
        lengths = torch.tensor([len(e.clean) for e in answers])
        found = chosen(logits.unsqueeze(1), lengths, answers)
        values[places] = found.detach().float().cpu().numpy()
    return values


def _share(scrubbed: np.ndarray, full: np.ndarray, random: np.ndarray) -> float:
    span = float(full.mean() - random.mean())
    return float(scrubbed.mean() - random.mean()) / span if span else 0.0


def _metric(name: str | Metric) -> LastTokenMetric:
    chosen = metric(name)
    if not isinstance(chosen, LastTokenMetric):
        raise MetricError(f"Scrubbing needs a metric of the prompt's end; {chosen.name} is not.")
    return chosen
