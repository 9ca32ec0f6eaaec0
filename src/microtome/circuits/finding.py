"""Finding a circuit: scores of every node or edge by one of the methods of a table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np

from microtome.attribution import ComponentScores, component_names, support_at_both_ends
from microtome.attribution.patching import single_row
from microtome.circuits.ablation import Ablation, Ablator
from microtome.circuits.edges.activation_gradients import activation_gradients
from microtome.circuits.edges.attribution import (
    clean_corrupted,
    edge_attribution,
    integrated_edge_attribution,
)
from microtome.circuits.edges.exact import exact_edges
from microtome.circuits.edges.information_flow import information_flow
from microtome.circuits.edges.mask_gradients import mask_gradients
from microtome.circuits.latent_edges.scoring import (
    NODES,
    Nodes,
    exact_latent_edges,
    latent_edge_support,
)
from microtome.circuits.latents import exact_latents, latent_support
from microtome.circuits.neurons import NeuronAblator, neuron_support
from microtome.circuits.places import split_of
from microtome.circuits.references import check_ablation
from microtome.circuits.results import Level
from microtome.circuits.search.acdc import acdc
from microtome.circuits.search.contextual import contextual_decomposition
from microtome.circuits.search.ensembles import rank_ensemble
from microtome.circuits.search.masks import edge_pruning, uniform_gradients
from microtome.circuits.search.relevance import relevance_propagation
from microtome.core.provenance import collect
from microtome.errors import ConfigError, UnknownNameError, nearest

if TYPE_CHECKING:
    from microtome.behaviors.behavior import Behavior
    from microtome.behaviors.examples import Examples
    from microtome.behaviors.metrics import Metric
    from microtome.circuits.edges.scores import EdgeScores
    from microtome.tracing.model import Model

Method = Literal["attribution", "exact", "contextual-decomposition"]
METHODS: tuple[Method, ...] = get_args(Method)

EdgeMethod = Literal[
    "eap",
    "eap-ig",
    "clean-corrupted",
    "eap-ig-activations",
    "mask-ig",
    "information-flow",
    "exact-edges",
    "acdc",
    "edge-pruning",
    "ugs",
    "rank-ensemble",
    "relp",
]

MEANING = {
    "attribution": "Estimated support for the behavior: how much of the metric is lost when the "
    "node is patched out of the clean run, averaged with how much returns when it is patched into "
    "the corrupt one.",
    "exact": "Support for the behavior: how much of the metric is lost when this node alone is "
    "ablated.",
}


@dataclass(frozen=True)
class Finder:
    """One way to score the parts of a model.

    Attributes:
        name: The name it is asked for by.
        level: Whether it scores nodes or edges.
        run: ``(model, examples, **options)`` to scores.
        needs: What it computes, in a few words.
        per_example: Whether every example is scored on its own, so that scores of several are
            their means; otherwise the examples are scored as a whole.
        unasked: Whether a comparison of all methods runs it without being asked to: not where it
            takes many passes, is trained for many steps, or its use is restricted.
        linear: Whether the scores of an example are linear in the metric, so that turning the
            metric's sign turns theirs.
    """

    name: str
    level: Level
    run: Callable[..., ComponentScores | EdgeScores]
    needs: str
    per_example: bool = True
    unasked: bool = True
    linear: bool = False


@overload
def find(
    model: Model, examples: Examples | Behavior, *, method: Method = ..., **options: Any
) -> ComponentScores: ...


@overload
def find(
    model: Model, examples: Examples | Behavior, *, method: EdgeMethod, **options: Any
) -> EdgeScores: ...


@overload
def find(model: Model, examples: Examples | Behavior, *, method: str, **options: Any) -> Any: ...


def find(
    model: Model,
    examples: Examples | Behavior,
    *,
    method: str = "attribution",
    level: Level | None = None,
    **options: Any,
) -> Any:
    """Score every node, latent or edge by its support for a behavior.

    Args:
        model: A transformer.
        examples: Where to look: the train split; a behavior is prepared and its train split taken.
        method: A name of ``FINDERS``: ``attribution``, ``exact`` or ``contextual-decomposition``
            for nodes; ``eap``, ``eap-ig``, ``clean-corrupted``, ``eap-ig-activations``,
            ``mask-ig``, ``information-flow``, ``exact-edges``, ``acdc``, ``edge-pruning``, ``ugs``,
            ``rank-ensemble`` or (patented, it writes a notice) ``relp`` for edges.
        level: What is scored: ``node`` (heads and MLPs), ``neuron`` (heads and neurons), ``latent``
            (latents and errors of attached codecs), ``latent-edge`` (edges between them, of the
            latents that ``nodes=`` keeps apart), ``edge``, ``role-edge`` or ``position-edge``
            (edges told apart by role or position, the same as ``split="role"`` or
            ``split="position"``); by default what the method scores.
        options: Of the method: ``metric``, ``ablation``, and where it has them ``split``,
            ``reference``, ``steps``, ``nodes``, ``seed`` and others.

    Returns:
        :class:`microtome.attribution.ComponentScores` of nodes or latents, or
        :class:`microtome.circuits.EdgeScores`.

    Raises:
        UnknownNameError: If the method or the level is unknown.
        ConfigError: If the method takes no such option, or scores parts of another level.
    """
    from microtome.behaviors.behavior import Behavior as _Behavior

    if method not in FINDERS:
        raise UnknownNameError(f"No method {method!r}{nearest(method, FINDERS)}.")
    finder = FINDERS[method]
    if level is not None:
        options |= options_for(finder, level)
    allowed = list(inspect.signature(finder.run).parameters)[2:]
    wrong = [name for name in options if name not in allowed]
    if wrong:
        raise ConfigError(
            f"{method} takes no {wrong[0]}; expected some of {', '.join(allowed) or 'nothing'}."
        )
    if isinstance(examples, _Behavior):
        examples = examples.prepare(model).split("train")
    return finder.run(model, examples, **options)


def options_for(finder: Finder, level: Level) -> dict[str, Any]:
    """Return what a finder has to be told to score parts of a level.

    Raises:
        UnknownNameError: If the level is unknown.
        ConfigError: If it scores no such parts.
    """
    if level not in get_args(Level):
        raise UnknownNameError(f"No level {level!r}{nearest(level, get_args(Level))}.")
    if level == "neuron-edge":
        raise ConfigError(
            "Edges that leave neurons are scored by microtome.circuits.neuron_edges, which has to "
            "be told how many neurons to keep apart."
        )
    taken = inspect.signature(finder.run).parameters
    wanted: dict[str, Any] = {}
    if split_of(level) is not None:
        wanted = {"split": split_of(level)}
    elif level in ("neuron", "latent", "latent-edge"):
        wanted = {"level": level}
    same = _of_edges(level) == (finder.level == "edge")
    if not same or any(name not in taken for name in wanted):
        able = [
            other.name
            for other in FINDERS.values()
            if _of_edges(level) == (other.level == "edge")
            and all(name in inspect.signature(other.run).parameters for name in wanted)
        ]
        raise ConfigError(
            f"method={finder.name!r} scores no {level}s; those that do are {', '.join(able)}."
        )
    return wanted


def _require_latents(level: Level, nodes: Nodes | None, steps: int = 1) -> None:
    """Refuse options that only latents have."""
    if nodes is not None and level != "latent-edge":
        raise ConfigError(f"nodes={nodes!r} with level={level!r}; only latent-edge has them.")
    if steps != 1 and level not in ("latent", "latent-edge"):
        raise ConfigError(f"steps={steps} with level={level!r}; only latents and their edges do.")


def _of_edges(level: Level) -> bool:
    """Return whether the finders of edges of the component graph score parts of a level."""
    return level.endswith("edge") and level != "latent-edge"


def _attribution(
    model: Model,
    examples: Examples,
    *,
    metric: str | Metric = "logit_difference",
    ablation: Ablation = "resample",
    level: Level = "node",
    nodes: Nodes | None = None,
    steps: int = 1,
) -> ComponentScores:
    # both ends are runs of prompts, whatever ablated nodes give elsewhere
    check_ablation(ablation)
    chosen = single_row(metric, "Attribution")
    _require_latents(level, nodes, steps)
    if level == "latent-edge":
        return latent_edge_support(
            model, examples, nodes=nodes or NODES, metric=chosen, ablation=ablation, steps=steps
        )
    if level == "latent":
        return latent_support(model, examples, metric=chosen, ablation=ablation, steps=steps)
    if level == "neuron":
        names, found = neuron_support(model, examples, metric=chosen)
        return _scores(model, names, found, "attribution", chosen.name)
    values = support_at_both_ends(model, examples, metric=chosen)
    return _scores(model, component_names(model), values, "attribution", chosen.name)


def _exact(
    model: Model,
    examples: Examples,
    *,
    metric: str | Metric = "logit_difference",
    ablation: Ablation = "resample",
    level: Level = "node",
    nodes: Nodes | None = None,
) -> ComponentScores:
    name = single_row(metric, "Exact node patching").name
    _require_latents(level, nodes)
    if level == "latent-edge":
        return exact_latent_edges(
            model, examples, nodes=nodes or NODES, metric=metric, ablation=ablation
        )
    if level == "latent":
        return exact_latents(model, examples, metric=metric, ablation=ablation)
    if level == "neuron":
        neurons = NeuronAblator(model, examples, ablation=ablation)
        alone = [np.array([], dtype=int), *np.arange(len(neurons.universe))[:, None]]
        lost = neurons.run_cuts(alone, [metric])[name]
        return _scores(model, neurons.universe, (lost[0] - lost[1:]).T, "exact", name)
    ablator = Ablator(model, examples, ablation=ablation)
    everything = frozenset(ablator.universe)
    circuits = [everything, *(everything - {n} for n in ablator.universe)]
    found = ablator.run(circuits, [metric])[name]
    return _scores(model, ablator.universe, (found[0] - found[1:]).T, "exact", name)


FINDERS: dict[str, Finder] = {
    finder.name: finder
    for finder in (
        Finder("attribution", "node", _attribution, "gradients at both ends", linear=True),
        Finder("exact", "node", _exact, "each node ablated alone", linear=True),
        Finder("eap", "edge", edge_attribution, "gradients in the clean run", linear=True),
        Finder(
            "eap-ig",
            "edge",
            integrated_edge_attribution,
            "gradients between both inputs",
            linear=True,
        ),
        Finder("clean-corrupted", "edge", clean_corrupted, "gradients at both ends", linear=True),
        Finder(
            "eap-ig-activations",
            "edge",
            activation_gradients,
            "gradients between both outputs",
            linear=True,
        ),
        Finder("mask-ig", "edge", mask_gradients, "gradients of the edges' masks", linear=True),
        Finder("information-flow", "edge", information_flow, "one pass of the clean prompts"),
        Finder("exact-edges", "edge", exact_edges, "each edge ablated alone", linear=True),
        Finder(
            "contextual-decomposition",
            "node",
            contextual_decomposition,
            "each node's relevance followed forward",
        ),
        Finder("acdc", "edge", acdc, "edges removed greedily", per_example=False, unasked=False),
        Finder(
            "edge-pruning",
            "edge",
            edge_pruning,
            "a trained hard-concrete mask",
            per_example=False,
            unasked=False,
        ),
        Finder(
            "ugs",
            "edge",
            uniform_gradients,
            "a mask trained by uniform gradient sampling",
            per_example=False,
            unasked=False,
        ),
        Finder("rank-ensemble", "edge", rank_ensemble, "mean ranks", per_example=False),
        Finder("relp", "edge", relevance_propagation, "relevance rules (patented)", unasked=False),
    )
}
"""The methods by name."""


def _scores(
    model: Model, names: tuple[str, ...], values: np.ndarray, method: str, metric: str
) -> ComponentScores:
    return ComponentScores(
        names=names,
        values=values,
        method=method,
        metric=metric,
        meaning=MEANING[method],
        provenance=collect(model, {"method": method, "metric": metric}),
    )


def sizes_up_to(count: int) -> tuple[int, ...]:
    """Return the sizes a curve is computed at: every size up to 12, then a logarithmic grid."""
    if count < 1:
        raise ConfigError(f"There are {count} nodes; expected at least 1.")
    grid = {*range(0, min(12, count) + 1), count}
    grid |= {int(round(s)) for s in np.geomspace(12, count, 12)} if count > 12 else set()
    return tuple(sorted(s for s in grid if s <= count))


def top(ranking: Sequence[str], size: int) -> frozenset[str]:
    """Return the first nodes of a ranking."""
    return frozenset(ranking[:size])


def by_layer(nodes: frozenset[str], universe: Sequence[str]) -> tuple[str, ...]:
    """Return nodes in the order of the universe."""
    return tuple(n for n in universe if n in nodes)
