"""The attribution graph of one prompt: nodes, direct effects, influence, scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from microtome.circuits.latent_graphs.influence import Floats, influences, shares, smallest_set
from microtome.core.provenance import Provenance
from microtome.errors import ConfigError, UnknownNameError, nearest
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from microtome.views import CircuitDiagram

Kind = Literal["embedding", "error", "latent", "logit"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, eq=False)
class LatentGraph(Result):
    """The direct effects between the latents that are active on a prompt.

    Nodes are token embeddings, errors of transcoders, latents and logits. All but the logits are
    sources; latents that were followed and logits are targets. With attention patterns and norm
    divisors held, a target's value is the sum of the effects on it and its bias.

    Attributes:
        prompt: The prompt.
        tokens: Text of the token at each position.
        kinds: Kind of each node ``[node]``, as a number of ``KINDS``.
        blocks: Its block ``[node]``; -1 for embeddings, the number of blocks for logits.
        positions: Its position ``[node]``.
        numbers: Its latent, or token id ``[node]``; -1 for errors.
        activations: Value of a latent, logit less the mean of all for logits, NaN else ``[node]``.
        probabilities: Probability of a logit's token, 0 for other nodes ``[node]``.
        influence: Share of the logits that passes through each node, over all paths ``[node]``.
        targets: Number of the node that each row of effects enters ``[target]``.
        effects: Direct effects of the nodes on the targets ``[target, node]``.
        bias: What each target's value is without any source ``[target]``.
        unsummed: Largest difference between a target's value and effects plus bias, as a share of
            the largest value: rounding.
        replacement: Share of the influence that ends in tokens rather than errors.
        completeness: Share of what enters the nodes that is no error, weighted by their influence.
        n_blocks: Blocks of the model.
        active: Latents that were active on the prompt.
        followed: How many of them are targets.
        model: Name of the model.
        transcoders: Fingerprint of each transcoder by its site.
        names: The name they were attached under.
        texts: Text of each logit's token, in the order of nodes; empty where it is not known.
        pruned_nodes: Share of influence by which nodes were kept; None for all.
        pruned_edges: The same for edges.
        labels: What latents stand for, by ``"block/latent"``.
        provenance: Model, versions.
    """

    prompt: str
    tokens: tuple[str, ...]
    kinds: NDArray[np.int8]
    blocks: NDArray[np.int32]
    positions: NDArray[np.int32]
    numbers: NDArray[np.int32]
    activations: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    influence: NDArray[np.float64]
    targets: NDArray[np.int64]
    effects: NDArray[np.float32]
    bias: NDArray[np.float32]
    unsummed: float
    replacement: float
    completeness: float
    n_blocks: int
    active: int
    followed: int
    model: str = ""
    transcoders: Mapping[str, str] = field(default_factory=dict)
    names: str = ""
    texts: tuple[str, ...] = ()
    pruned_nodes: float | None = None
    pruned_edges: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    provenance: Provenance | None = None

    def __len__(self) -> int:
        """Return the number of nodes."""
        return len(self.kinds)

    def of_kind(self, kind: Kind) -> NDArray[np.bool_]:
        """Return which nodes are of a kind ``[node]``."""
        found: NDArray[np.bool_] = self.kinds == KINDS.index(kind)
        return found

    @cached_property
    def node_names(self) -> tuple[str, ...]:
        """Names of the nodes: ``L2.17@5``, ``error2@5``, ``embed@5``, ``logit 48``."""
        found = []
        for kind, block, number, place in zip(
            self.kinds, self.blocks, self.numbers, self.positions, strict=True
        ):
            found.append(
                (f"embed@{place}", f"error{block}@{place}", f"L{block}.{number}@{place}",
                 f"logit {number}")[kind]
            )  # fmt: skip
        return tuple(found)

    def node(self, name: str) -> int:
        """Return the number of a node by its name.

        Raises:
            UnknownNameError: If there is none of this name.
        """
        if name not in self.node_names:
            raise UnknownNameError(f"No node {name!r}{nearest(name, self.node_names)}.")
        return self.node_names.index(name)

    def prune(self, *, nodes: float = 0.8, edges: float = 0.98) -> LatentGraph:
        """Return the graph of the nodes and edges through which most of the influence passes.

        First the fewest nodes that reach the share of the influence are kept, then the fewest edges
        among them; then latents without an edge in or out and errors without one out are removed
        until none is left. Embeddings and logits stay. Influence and scores are those of the whole
        graph.

        Args:
            nodes: Share of the influence of the nodes.
            edges: Share of the influence of the edges between them.

        Raises:
            ConfigError: If a share is not above 0 and at most 1.
        """
        for name, share in (("nodes", nodes), ("edges", edges)):
            if not 0 < share <= 1:
                raise ConfigError(f"{name}={share}; expected a share above 0, 1 for all.")
        ends = self.of_kind("embedding") | self.of_kind("logit")
        kept = smallest_set(self.influence, nodes) | ends
        effects = np.where(kept[self.targets][:, None] & kept, self.effects, 0.0)
        effects = np.where(smallest_set(self._weighed(effects), edges), effects, 0.0)
        kept = self._connected(kept, effects)
        rows = kept[self.targets]
        numbers = np.cumsum(kept) - 1
        pick = {
            name: getattr(self, name)[kept]
            for name in ("kinds", "blocks", "positions", "numbers", "activations",
                         "probabilities", "influence")
        }  # fmt: skip
        return replace(
            self,
            **pick,
            targets=numbers[self.targets[rows]],
            effects=effects[rows][:, kept].astype(np.float32),
            bias=self.bias[rows],
            pruned_nodes=nodes,
            pruned_edges=edges,
        )

    def _weighed(self, effects: NDArray[np.floating]) -> Floats:
        """Return the influence that passes through each edge ``[target, node]``."""
        shared = shares(effects)
        places = np.where(self.of_kind("logit")[self.targets], -1, self.targets)
        weights = self.probabilities[self.targets].astype(np.float64)
        output = influences(shared, places, weights)[self.targets] + weights
        found: Floats = shared * output[:, None]
        return found

    def _connected(
        self, kept: NDArray[np.bool_], effects: NDArray[np.floating]
    ) -> NDArray[np.bool_]:
        """Remove latents without edges in or out, and errors without edges out, until none is."""
        latent, error = self.of_kind("latent"), self.of_kind("error")
        while True:
            there = (effects != 0) & kept & kept[self.targets][:, None]
            entered = np.zeros(len(self), dtype=bool)
            entered[self.targets] = there.any(1)
            left = there.any(0)
            loose = kept & ((latent & ~(entered & left)) | (error & ~left))
            if not loose.any():
                return kept
            kept = kept & ~loose

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each edge: source, target, effect; the strongest first."""
        import pandas as pd

        rows, columns = np.nonzero(self.effects)
        values = self.effects[rows, columns]
        order = np.argsort(-np.abs(values), kind="stable")
        names = np.array(self.node_names, dtype=object)
        return pd.DataFrame(
            {
                "source": names[columns[order]],
                "target": names[self.targets[rows[order]]],
                "effect": values[order],
            }
        )

    def nodes_frame(self) -> pd.DataFrame:
        """Return one row for each node, the most influential first."""
        import pandas as pd

        table = pd.DataFrame(
            {
                "node": self.node_names,
                "kind": [KINDS[k] for k in self.kinds],
                "block": self.blocks,
                "position": self.positions,
                "token": [self.tokens[p] for p in self.positions],
                "number": self.numbers,
                "activation": self.activations,
                "probability": self.probabilities,
                "influence": self.influence,
                "label": [self.label(n) for n in range(len(self))],
            }
        )
        return table.sort_values("influence", ascending=False, kind="stable", ignore_index=True)

    def label(self, node: int) -> str:
        """Return what a latent stands for, empty where that is not known."""
        return self.labels.get(f"{self.blocks[node]}/{self.numbers[node]}", "")

    def logit_text(self, node: int) -> str:
        """Return the text of a logit's token, its number where that is not known."""
        place = int(self.of_kind("logit")[:node].sum())
        return self.texts[place] if self.texts else str(self.numbers[node])

    def diagram(self, *, max_edges: int = 200) -> CircuitDiagram:
        """Return the graph as a layered diagram of the edges through which most influence passes.

        An edge is as wide as the influence that passes through it, with the sign of its effect.

        Args:
            max_edges: How many edges are drawn.
        """
        from microtome.circuits.exchange.circuit_tracer_drawing import diagram_of
        from microtome.circuits.exchange.circuit_tracer_latents import latents_as_graph

        named = replace(self, labels={**self._numbers(), **self.labels})
        document = latents_as_graph(named)
        passed = self._weighed(self.effects)
        if passed.any():
            sizes = passed[np.nonzero(self.effects)]
            signed = np.sign(self.effects[np.nonzero(self.effects)]) * sizes
            links = zip(document.links, signed.tolist(), strict=True)
            drawn = tuple(replace(link, weight=weight) for link, weight in links)
            document = replace(document, links=drawn)
        return diagram_of(document, max_edges=max_edges)

    def _numbers(self) -> dict[str, str]:
        """Return the number of every latent as its label."""
        latents = np.flatnonzero(self.of_kind("latent")).tolist()
        return {f"{self.blocks[n]}/{self.numbers[n]}": f"latent {self.numbers[n]}" for n in latents}
