"""Running circuits of edges between latents: every node reads what its own edges bring.

The value of a node is computed in a pass in which each node before it gives its value if the edge
between the two is in the circuit, and its ablated value if not; so do the logits. What no codec
reads is never ablated. Nodes that see the same are computed once, for all circuits: an edge more or
less costs the passes of what lies behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.behaviors.evaluate import batches
from microtome.circuits.graph import LOGITS
from microtome.circuits.latent_edges.nodes import ARROW, LatentNodes, Place
from microtome.circuits.latents import ENTRIES
from microtome.circuits.nodes import check_nodes
from microtome.circuits.references import ROWS, Ablation, References
from microtome.circuits.running import last_token
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.behaviors.metrics import Metric
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model

Seen = frozenset[tuple[str, int]]
"""What a node sees: the nodes whose edges lead to it, with the number of each one's value."""

TOGETHER = 64
"""Circuits whose values are held at a time."""


class LatentEdgeAblator:
    """Runs circuits of edges between latents and errors under one ablation.

    Args:
        model: A model with codecs attached.
        examples: The examples whose clean prompts are run.
        universe: All edges, as ``LatentNodes.edges`` names them.
        ablation: What a node gives along an edge outside the circuit.
        reference: Examples over whose clean and corrupt prompts means are taken; ``examples`` by
            default.

    Attributes:
        nodes: The nodes.
        universe: All edges.

    Raises:
        ConfigError: If the ablation is unknown, or nothing is attached.
        UnknownNameError: If a node does not exist.
    """

    level = "latent-edge"

    def __init__(
        self,
        model: Model,
        examples: Examples,
        *,
        universe: Iterable[str],
        ablation: Ablation = "resample",
        reference: Examples | None = None,
    ) -> None:
        self.model, self.examples = model, examples
        self.nodes = LatentNodes.named(model, universe)
        self.universe = self.nodes.edges
        self._references = References(
            model, examples, self.nodes.sites, ablation=ablation, reference=reference
        )
        width = max(len(e.clean) for e in examples) * sum(o.codec.d_sae for o in model.codecs)
        self._rows = max(1, min(ROWS, ENTRIES // width))

    def run(
        self,
        circuits: Sequence[frozenset[str]],
        metrics: Sequence[str | Metric] = ("logit_difference",),
    ) -> dict[str, np.ndarray]:
        """Return metrics of every circuit and example, ``[circuit, example]`` for each metric.

        Args:
            circuits: Sets of edges to keep.
            metrics: Metrics that read the prompt's end, or their names.

        Raises:
            UnknownNameError: If an edge does not exist.
        """
        chosen = [last_token(name) for name in metrics]
        cuts = [_by_target(check_nodes(circuit, self.universe)) for circuit in circuits]
        values = {m.name: np.zeros((len(cuts), len(self.examples))) for m in chosen}
        for places in batches(self.examples, max(1, self._rows // 8), model=self.model):
            chunk = self.examples.take(places)
            lengths = torch.tensor([len(e.clean) for e in chunk])
            instead = self._references.of(chunk)
            for start in range(0, len(cuts), TOGETHER):
                run = _Run(self.model, self.nodes, chunk, instead, self._rows)
                for row, logits in enumerate(run.logits(cuts[start : start + TOGETHER]), start):
                    for m in chosen:
                        found = m(logits, lengths, chunk).detach().float().cpu().numpy()
                        values[m.name][row, places] = found
        return values


def _by_target(circuit: frozenset[str]) -> dict[str, list[str]]:
    """Return the sources of each target of a circuit."""
    found: dict[str, list[str]] = {}
    for edge in circuit:
        source, _, target = edge.partition(ARROW)
        found.setdefault(target, []).append(source)
    return found


@dataclass(eq=False)
class _Run:
    """Some circuits on some examples of one batch.

    Attributes:
        model: The model.
        nodes: The nodes.
        chunk: The examples.
        instead: What ablated nodes give, by site; nothing where a site is missing.
        rows: Rows of a pass at most.
        values: Values of nodes so far, by number ``[example, pos, ...]``.
    """

    model: Model
    nodes: LatentNodes
    chunk: Examples
    instead: dict[str, torch.Tensor]
    rows: int
    values: list[torch.Tensor] = field(default_factory=list)

    def logits(self, cuts: Sequence[dict[str, list[str]]]) -> Iterator[torch.Tensor]:
        """Yield the logits of each circuit at the prompts' ends ``[example, 1, vocab]``."""
        known: list[dict[str, int]] = [{} for _ in cuts]
        for place in self.nodes.places:
            self._reach(place, cuts, known)
        wanted = [self._seen(cut, now, LOGITS) for cut, now in zip(cuts, known, strict=True)]
        places = self.nodes.places
        ends = dict(zip(set(wanted), self._passes(list(set(wanted)), places, None), strict=True))
        for seen in wanted:
            yield ends[seen]

    def _seen(self, cut: dict[str, list[str]], known: dict[str, int], target: str) -> Seen:
        return frozenset((source, known[source]) for source in cut.get(target, ()))

    def _reach(
        self, place: Place, cuts: Sequence[dict[str, list[str]]], known: list[dict[str, int]]
    ) -> None:
        """Compute the values of the nodes of a place in every circuit that uses them."""
        used = [{source for sources in cut.values() for source in sources} for cut in cuts]
        wanted: dict[tuple[str, Seen], list[int]] = {}
        for number, cut in enumerate(cuts):
            for node in place.nodes:
                if node in used[number]:
                    seen = self._seen(cut, known[number], node)
                    wanted.setdefault((node, seen), []).append(number)
        every = list(dict.fromkeys(seen for _, seen in wanted))
        found = self._passes(every, self.nodes.before(place), place.site)
        for seen, value in zip(every, found, strict=True):
            for (node, its), numbers in wanted.items():
                if its != seen:
                    continue
                self.values.append(_part(place, node, value))
                for number in numbers:
                    known[number][node] = len(self.values) - 1

    def _passes(
        self, every: Sequence[Seen], before: Sequence[Place], site: str | None
    ) -> Iterator[torch.Tensor]:
        """Yield the value of a site, or the logits, where nodes see this or that."""
        count = len(self.chunk)
        size = max(1, self.rows // count)
        for start in range(0, len(every), size):
            some = every[start : start + size]
            prompts = self.chunk.take(list(range(count)) * len(some)).clean
            changes = [change for place in before for change in self._given(place, some)]
            trace = self.model.trace(
                prompts,
                capture=[] if site is None else [site],
                interventions=changes,
                logits="last" if site is None else None,
            )
            whole = trace.value(site) if site is not None else trace.logits
            if whole is not None:
                yield from whole.split(count)

    def _given(self, place: Place, every: Sequence[Seen]) -> list[Intervention]:
        """Return what makes the nodes of a place give their values or ablated ones."""
        seen = [dict(one) for one in every]
        if not place.nodes:
            return []

        def put(value: torch.Tensor) -> torch.Tensor:
            parts = []
            for number, old in enumerate(value.split(len(self.chunk))):
                instead = self.instead.get(place.site)
                new = torch.zeros_like(old) if instead is None else instead.expand_as(old).clone()
                for node, latents in zip(place.nodes, place.latents or (None,), strict=True):
                    if node not in seen[number]:
                        continue
                    own = self.values[seen[number][node]]
                    if latents is None:
                        new = own
                    else:
                        new[..., torch.as_tensor(latents, device=new.device)] = own
                parts.append(new)
            return torch.cat(parts).to(value.dtype)

        return [at(place.site).apply(put)]


def _part(place: Place, node: str, value: torch.Tensor) -> torch.Tensor:
    """Return a node's part of the value of its site."""
    if place.latents is None:
        return value
    latents = place.latents[place.nodes.index(node)]
    return value[..., torch.as_tensor(latents, device=value.device)]
