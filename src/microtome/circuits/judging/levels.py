"""Whatever runs circuits, of nodes or of edges, behind one interface.

A circuit is a set of names of parts. Evaluation, nulls, stability, tests and the verdict ask a
runner for the metric of many such sets and do not know what a part is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, get_args

import numpy as np
import torch

from microtome.behaviors.evaluate import batches
from microtome.behaviors.metrics import LastTokenMetric, Metric, custom_metric
from microtome.circuits.ablation import Ablation, Ablator
from microtome.circuits.edges.ablation import EdgeAblator
from microtome.circuits.finding import FINDERS, find, options_for
from microtome.circuits.graph import ComponentGraph, split_edge
from microtome.circuits.latent_edges.nodes import LatentNodes
from microtome.circuits.latent_edges.running import LatentEdgeAblator
from microtome.circuits.latents import LatentAblator, LatentParts
from microtome.circuits.neurons import NeuronAblator, NeuronParts
from microtome.circuits.places import Places, level_by_name, split_of
from microtome.circuits.results import Circuit, Level
from microtome.errors import ConfigError, MetricError, UnknownNameError, nearest
from microtome.tracing.components import component_names

if TYPE_CHECKING:
    from microtome.behaviors.examples import Example, Examples
    from microtome.tracing.model import Model

KL, AGREEMENT = "kl", "agreement"


class Runner(Protocol):
    """Runs circuits of one model on one set of examples under one ablation."""

    @property
    def universe(self) -> tuple[str, ...]:
        """All parts of the model."""

    def run(
        self, circuits: Sequence[frozenset[str]], metrics: Sequence[str | Metric]
    ) -> dict[str, np.ndarray]:
        """Return each metric ``[circuit, example]`` with all else ablated."""


class Ranked(Protocol):
    """Scores that put parts in an order."""

    def ranking(self, *, signed: bool = False) -> tuple[str, ...]:
        """Return the parts, strongest first, by magnitude or (``signed``) by value."""


Search: TypeAlias = "Callable[[Model, Examples], Ranked]"
"""From a model and train examples to scores of its parts."""

RUNNERS: Mapping[Level, Callable[..., Runner]] = {
    "node": Ablator,
    "neuron": NeuronAblator,
    "latent": LatentAblator,
    "edge": EdgeAblator,
    "role-edge": partial(EdgeAblator, split="role"),
    "position-edge": partial(EdgeAblator, split="position"),
    "latent-edge": LatentEdgeAblator,
}
"""What runs the circuits of each level."""


def runner(
    model: Model,
    examples: Examples,
    level: Level = "node",
    *,
    ablation: Ablation = "resample",
    reference: Examples | None = None,
    universe: Sequence[str] = (),
) -> Runner:
    """Return what runs circuits of a level.

    Args:
        model: The model.
        examples: The examples whose clean prompts are run.
        level: ``node``, ``neuron``, ``edge``, ``role-edge``, ``position-edge``, or ``latent`` and
            ``latent-edge`` for a model with codecs attached.
        ablation: What ablated parts give.
        reference: Examples over which means are taken; ``examples`` by default.
        universe: All parts, in any order, for ``latent-edge``, where they say which latents are
            nodes; other levels know theirs.

    Raises:
        UnknownNameError: If the level is unknown.
        ConfigError: If the ablation is unknown, there are more parts than can be held, or parts of
            the level cannot be run.
        PairError: If edges are told apart by role or position and the prompts do not share them.
    """
    check_level(level)
    if level not in RUNNERS:
        raise ConfigError(
            "Edges that leave single neurons are scored, not run; run the edges of whole MLPs that "
            "microtome.circuits.coarsen(circuit) gives, or a circuit of neurons."
        )
    if level == "latent-edge":
        return LatentEdgeAblator(
            model, examples, universe=_given(universe), ablation=ablation, reference=reference
        )
    return RUNNERS[level](model, examples, ablation=ablation, reference=reference)


EXACT_NODES, EXACT_EDGES = 64, 512
"""Parts of a model up to which the default finder ablates each alone."""


def default_finder(model: Model, level: Level, *, examples: Examples | None = None) -> str:
    """Return the finder that is used where none is named.

    Where a model has few parts each is ablated alone: that is affordable there, and gradients say
    nothing where a part is saturated, as the parts of compiled programs are.

    Args:
        model: The model.
        level: What is scored.
        examples: Prompts whose roles or positions tell edges apart, for the levels where they do.

    Raises:
        UnknownNameError: If the level is unknown.
        ConfigError: If edges are to be told apart and no examples are given.
    """
    if level == "latent-edge":
        return "attribution"
    count = len(universe_of(model, check_level(level), examples=examples))
    if level.endswith("edge"):
        return "exact-edges" if count <= EXACT_EDGES else "eap-ig"
    return "exact" if count <= EXACT_NODES else "attribution"


def check_level(level: str) -> Level:
    """Return a level.

    Raises:
        UnknownNameError: If it is unknown.
    """
    known: tuple[Level, ...] = get_args(Level)
    for one in known:
        if one == level:
            return one
    raise UnknownNameError(f"No level {level!r}{nearest(level, known)}.")


def universe_of(
    model: Model,
    level: Level,
    *,
    examples: Examples | None = None,
    universe: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return all parts of a model at a level.

    Args:
        model: The model.
        level: The level.
        examples: Prompts whose roles or positions tell edges apart, for the levels where they do.
        universe: Edges between the nodes that are meant, for ``latent-edge``.

    Raises:
        ConfigError: If edges are to be told apart and no examples are given.
    """
    if level == "latent-edge":
        return LatentNodes.named(model, _given(universe)).edges
    if level == "node":
        return component_names(model)
    if level == "neuron":
        return NeuronParts(model).names
    if level == "latent":
        return LatentParts(model).names
    graph = graph_at(model, level, examples=examples)
    return () if graph is None else graph.edges


def _given(universe: Sequence[str]) -> Sequence[str]:
    if not universe:
        raise ConfigError(
            "Which edges between latents there are depends on the latents that are kept apart; "
            "give all edges (the scores' names) by universe=..."
        )
    return universe


def graph_at(
    model: Model, level: Level, *, examples: Examples | None = None
) -> ComponentGraph | None:
    """Return the component graph of a level of its edges; None for other levels.

    Args:
        model: The model.
        level: The level.
        examples: Prompts whose roles or positions tell edges apart, for the levels where they do.

    Raises:
        ConfigError: If edges are to be told apart and no examples are given.
    """
    if not level.endswith("edge") or level == "latent-edge":
        return None
    split = split_of(level)
    if split is None:
        return ComponentGraph.of(model)
    if examples is None:
        raise ConfigError(f"Which {level}s there are depends on the prompts; give examples=...")
    return Places.of(examples, split).graph(model)


def level_of(found: Ranked | Sequence[str] | Circuit) -> Level:
    """Return of what level scores, a ranking or a circuit are, by their names if need be."""
    known = getattr(found, "level", None)
    if known is not None:
        return known  # type: ignore[no-any-return]
    ranking = getattr(found, "ranking", None)
    names: Sequence[str] = ranking() if ranking is not None else found  # type: ignore[assignment]
    return level_by_name(names)


def search_by_name(
    method: str, metric: str, ablation: Ablation, *, level: Level | None = None
) -> NamedSearch:
    """Return the search that a finder of ``FINDERS`` makes.

    Args:
        method: Its name.
        metric: The metric that it explains.
        ablation: What ablated parts give, for the finders to which it matters.
        level: What it scores, if it can score several kinds of parts.

    Raises:
        UnknownNameError: If there is none of this name.
        ConfigError: If it scores no parts of this level.
    """
    if method not in FINDERS:
        raise UnknownNameError(f"No method {method!r}{nearest(method, FINDERS)}.")
    search = NamedSearch(method, metric, ablation, level)
    search.options()
    return search


@dataclass(frozen=True)
class NamedSearch:
    """A finder of ``FINDERS`` as a search.

    Attributes:
        method: Its name.
        metric: The metric that it explains.
        ablation: What ablated parts give, for the finders to which it matters.
        level: What it scores, if it can score several kinds of parts.
        nodes: Latents between which edges are scored, where they are no longer to be chosen.
    """

    method: str
    metric: str
    ablation: Ablation
    level: Level | None = None
    nodes: tuple[str, ...] = ()

    def __call__(self, model: Model, train: Examples) -> Ranked:
        """Return the scores that it gives."""
        found: Ranked = find(model, train, method=self.method, **self.options())
        return found

    def options(self) -> dict[str, Any]:
        """Return what the finder is told.

        Raises:
            ConfigError: If it scores no parts of this level.
        """
        finder = FINDERS[self.method]
        known = inspect.signature(finder.run).parameters
        options = {"metric": self.metric, "ablation": self.ablation}
        taken: dict[str, Any] = {name: value for name, value in options.items() if name in known}
        if self.nodes:
            taken["nodes"] = self.nodes
        return taken if self.level is None else taken | options_for(finder, self.level)

    def among(self, universe: Sequence[str]) -> NamedSearch:
        """Return the search that scores these parts again, where it would choose others."""
        if self.level != "latent-edge":
            return self
        ends = {end for edge in universe for end in split_edge(edge) if "[" in end}
        return replace(self, nodes=tuple(sorted(ends)))


def distances(model: Model, examples: Examples) -> tuple[LastTokenMetric, LastTokenMetric]:
    """Return two metrics of how far a changed model is from the unchanged one at the prompt's end.

    Returns:
        The Kullback-Leibler divergence from the unchanged to the changed distribution in nats, and
        whether both give the same token the highest logit.
    """
    unchanged: dict[int, torch.Tensor] = {}
    for places in batches(examples, 64, model=model):
        chunk = examples.take(places)
        logits = model.trace(chunk.clean, logits="last").logits
        if logits is None:
            raise MetricError("The model returned no logits.")
        rows = torch.log_softmax(logits[:, 0].detach().float(), dim=-1)
        unchanged |= {e.index: row for e, row in zip(chunk, rows, strict=True)}

    def divergence(row: torch.Tensor, example: Example) -> torch.Tensor:
        p = unchanged[example.index]
        return (p.exp() * (p - torch.log_softmax(row, dim=-1))).sum()

    def same(row: torch.Tensor, example: Example) -> torch.Tensor:
        return (row.argmax() == unchanged[example.index].argmax()).float()

    return (
        custom_metric(KL, divergence, unit="nats", higher_is_better=False),
        custom_metric(AGREEMENT, same, unit="share"),
    )


def check_parts(parts: Iterable[str], universe: Sequence[str]) -> tuple[str, ...]:
    """Return parts as they come.

    Raises:
        UnknownNameError: If one does not exist.
    """
    found, known = tuple(parts), set(universe)
    for name in found:
        if name not in known:
            raise UnknownNameError(f"No part {name!r}{nearest(name, universe)}.")
    return found
