"""Scores of edges between latents: first order (Marks et al., 2024), or each edge ablated alone.

The first-order effect of an edge is the change of its source, times the slope of its target along
it with all other nodes held, times the slope of the metric at the target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.attribution.patching import single_row, slopes_of
from microtome.attribution.results import ComponentScores
from microtome.behaviors.evaluate import batches
from microtome.circuits.graph import LOGITS
from microtome.circuits.latent_edges.nodes import ARROW, LatentNodes, Place
from microtome.circuits.latent_edges.running import LatentEdgeAblator
from microtome.circuits.latents import ENTRIES, latent_support
from microtome.circuits.references import ROWS, Ablation, References, check_ablation
from microtome.core.provenance import collect
from microtome.errors import ConfigError, MetricError
from microtome.tracing.attachments import fingerprints
from microtome.tracing.gradients import frozen, graph_started
from microtome.tracing.sites import at
from microtome.tracing.turns import turn

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.behaviors.metrics import LastTokenMetric, Metric
    from microtome.tracing.model import Model

NODES = 24
"""Latents that are nodes of their own unless a number or their names are given."""

MEANING = {
    "attribution": "Estimated support for the behavior: how much of the metric is lost when this "
    "edge alone carries its source's ablated value, first order: the source's change times the "
    "target's slope along the edge, with all other nodes held, times the metric's at the target.",
    "exact": "Support for the behavior: how much of the metric is lost when this edge alone "
    "carries its source's ablated value.",
}

Nodes = int | Sequence[str]
"""How many latents are kept apart, the most supportive, or their names."""


def latent_edge_support(
    model: Model,
    examples: Examples,
    *,
    nodes: Nodes = NODES,
    metric: str | Metric = "logit_difference",
    ablation: Ablation = "resample",
    reference: Examples | None = None,
    steps: int = 1,
) -> ComponentScores:
    """Score every edge between latents, errors and the logits, first order.

    Under ``resample`` slopes are the mean of those in both runs, otherwise those of the clean run.

    Args:
        model: A model with codecs attached.
        examples: Where to look: the train split.
        nodes: How many latents are nodes of their own, those with the largest support over all
            codecs, or the names of latents. The others of a codec are one node.
        metric: A metric that reads the prompt's end.
        ablation: What the ablated edge carries.
        reference: Examples over which means are taken; ``examples`` by default.
        steps: With more than 1, the slope of targets along edges is averaged over as many midpoints
            between the ablated and the actual values of all nodes before them.

    Returns:
        Scores of the edges ``SOURCE->TARGET`` for each example.

    Raises:
        ConfigError: If nothing is attached, the ablation is unknown, or a number is not positive.
        UnknownNameError: If a latent does not exist.
        MetricError: If the metric needs several rows for an example.
    """
    if not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"steps={steps}; expected a whole number, at least 1.")
    check_ablation(ablation)
    chosen = single_row(metric, "Attribution of edges between latents")
    found = _nodes(model, examples, nodes, metric, ablation, reference)
    instead = References(model, examples, found.sites, ablation=ablation, reference=reference)
    width = max(len(e.clean) for e in examples) * sum(o.codec.d_sae for o in model.codecs)
    size = max(1, min(ROWS, ENTRIES // width) // 8)
    values = np.zeros((len(examples), len(found.edges)))
    for places in batches(examples, size, model=model):
        chunk = examples.take(places)
        run = _Direct(model, found, chosen, chunk, instead.of(chunk), ablation, steps)
        values[places] = run.effects()
    method = "attribution" if steps == 1 else f"attribution, {steps} steps"
    return _scores(model, found, values, method, chosen.name, MEANING["attribution"])


def exact_latent_edges(
    model: Model,
    examples: Examples,
    *,
    nodes: Nodes = NODES,
    metric: str | Metric = "logit_difference",
    ablation: Ablation = "resample",
    reference: Examples | None = None,
) -> ComponentScores:
    """Score every edge between latents, errors and the logits by ablating it alone.

    Args:
        model: A model with codecs attached.
        examples: Where to look: the train split.
        nodes: How many latents are nodes of their own, or their names.
        metric: A metric that reads the prompt's end.
        ablation: What the ablated edge carries.
        reference: Examples over which means are taken; ``examples`` by default.

    Raises:
        ConfigError: If nothing is attached, the ablation is unknown, or ``nodes`` is not positive.
        UnknownNameError: If a latent does not exist.
        MetricError: If the metric needs several rows for an example.
    """
    chosen = single_row(metric, "Exact patching of edges between latents")
    found = _nodes(model, examples, nodes, metric, ablation, reference)
    ablator = LatentEdgeAblator(
        model, examples, universe=found.edges, ablation=ablation, reference=reference
    )
    everything = frozenset(found.edges)
    ran = ablator.run([everything, *(everything - {edge} for edge in found.edges)], [chosen])
    lost = ran[chosen.name]
    values = (lost[0] - lost[1:]).T
    return _scores(model, found, values, "exact", chosen.name, MEANING["exact"])


def _nodes(
    model: Model,
    examples: Examples,
    nodes: Nodes,
    metric: str | Metric,
    ablation: Ablation,
    reference: Examples | None,
) -> LatentNodes:
    """Return the nodes: latents by name, or the most supportive ones."""
    if isinstance(nodes, bool | str) or not isinstance(nodes, int | Iterable):
        raise ConfigError(f"nodes={nodes!r}; expected a number, or a list of latents' names.")
    if not isinstance(nodes, int):
        return LatentNodes.of(model, nodes)
    if nodes < 1:
        raise ConfigError(f"nodes={nodes}; expected at least 1.")
    scores = latent_support(model, examples, metric=metric, ablation=ablation, reference=reference)
    latents = [name for name in scores.ranking() if "[" in name]
    return LatentNodes.of(model, latents[:nodes])


@dataclass(eq=False)
class _Direct:
    """First-order effects of edges on one batch.

    Attributes:
        model: The model.
        nodes: The nodes.
        metric: The metric.
        chunk: The examples.
        instead: What ablated nodes give, by site; nothing where a site is missing.
        ablation: What that is.
        steps: Midpoints.
    """

    model: Model
    nodes: LatentNodes
    metric: LastTokenMetric
    chunk: Examples
    instead: Mapping[str, torch.Tensor]
    ablation: Ablation
    steps: int

    def __post_init__(self) -> None:
        self._number = {edge: column for column, edge in enumerate(self.nodes.edges)}

    def effects(self) -> np.ndarray:
        """Return the effect of every edge ``[example, edge]``."""
        sites, ends = self.nodes.sites, [self.chunk.clean]
        if self.ablation == "resample":
            ends.append(self.chunk.corrupt)
        runs = [slopes_of(self.model, self.metric, self.chunk, sites, prompts) for prompts in ends]
        moved = {s: runs[0].value(s) - self.instead.get(s, 0.0) for s in sites}
        found = np.zeros((len(self.chunk), len(self.nodes.edges)))
        if self.steps == 1:
            for prompts, run in zip(ends, runs, strict=True):
                self._add(found, prompts, moved, run.values, run.slopes)
            return found / len(runs)
        slopes = {s: torch.stack([run[s] for run in runs]).mean(0) for s in sites}
        for step in range(self.steps):
            left = 1 - (step + 0.5) / self.steps
            between = {s: runs[0].value(s) - left * moved[s] for s in sites}
            self._add(found, self.chunk.clean, moved, between, slopes)
        return found / self.steps

    def _add(
        self,
        found: np.ndarray,
        prompts: Sequence[tuple[int, ...]],
        moved: Mapping[str, torch.Tensor],
        values: Mapping[str, torch.Tensor],
        slopes: Mapping[str, torch.Tensor],
    ) -> None:
        """Add the effects on every target where nodes give some values, to those found so far."""
        leaves = {s: value.detach().clone().requires_grad_(True) for s, value in values.items()}
        fresh, logits = _held(self.model, prompts, leaves)
        for place in self.nodes.places:
            before = self.nodes.before(place)
            weighed = fresh[place.site] * slopes[place.site]
            for node, latents in zip(place.nodes, place.latents or (None,), strict=True):
                aim = weighed if latents is None else weighed[..., torch.as_tensor(latents)]
                self._add_on(found, moved, leaves, before, node, aim.sum())
        lengths = torch.tensor([len(e.clean) for e in self.chunk])
        aim = self.metric(logits, lengths, self.chunk).sum()
        self._add_on(found, moved, leaves, self.nodes.places, LOGITS, aim)

    def _add_on(
        self,
        found: np.ndarray,
        moved: Mapping[str, torch.Tensor],
        leaves: Mapping[str, torch.Tensor],
        before: Sequence[Place],
        target: str,
        aim: torch.Tensor,
    ) -> None:
        if not before or not aim.requires_grad:
            return
        inputs = [leaves[place.site] for place in before]
        slopes: tuple[torch.Tensor | None, ...] = torch.autograd.grad(
            aim, inputs, retain_graph=True, allow_unused=True
        )
        for place, slope in zip(before, slopes, strict=True):
            if slope is None:
                continue
            effect = (slope * moved[place.site]).double().sum(1).flatten(1)
            groups = place.latents or (np.arange(effect.shape[1]),)
            for source, latents in zip(place.nodes, groups, strict=True):
                column = effect[:, torch.as_tensor(latents, device=effect.device)].sum(1)
                found[:, self._number[f"{source}{ARROW}{target}"]] += column.cpu().numpy()


def _held(
    model: Model, prompts: Sequence[tuple[int, ...]], leaves: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Run a pass in which every site gives a constant; return what each would be, and the logits.

    Args:
        model: The model.
        prompts: The prompts.
        leaves: What sites give, differentiable.
    """
    fresh: dict[str, torch.Tensor] = {}

    def held(site: str, value: torch.Tensor) -> torch.Tensor:
        fresh[site] = value
        return leaves[site].to(value.dtype)

    changes = [at(s).apply(lambda value, s=s: held(s, value)) for s in leaves]  # type: ignore[misc]
    with turn(model.module), frozen(model.module), graph_started(model), torch.enable_grad():
        trace = model.trace(prompts, interventions=changes, logits="last", grad=True)
    if trace.logits is None:
        raise MetricError("The model returned no logits to measure.")
    return fresh, trace.logits


def _scores(
    model: Model,
    nodes: LatentNodes,
    values: np.ndarray,
    method: str,
    metric: str,
    meaning: str,
) -> ComponentScores:
    settings = {"method": method, "metric": metric, "codecs": fingerprints(model.codecs)}
    return ComponentScores(
        names=nodes.edges,
        values=values,
        method=method,
        metric=metric,
        meaning=meaning,
        provenance=collect(model, settings),
    )
