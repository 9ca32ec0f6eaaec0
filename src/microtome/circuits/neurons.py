"""Circuits of heads and neurons: scoring every neuron, and running circuits of them.

Parts are the heads ``a0.h1`` and, in place of an MLP, its neurons ``m2.n17``: what the projection
back to the stream reads. That projection's bias belongs to no neuron and stays, so with every
neuron ablated to zero an MLP still writes its bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.attribution.patching import single_row, slopes_of
from microtome.behaviors.evaluate import batches
from microtome.circuits.ablation import mixed
from microtome.circuits.nodes import check_nodes
from microtome.circuits.running import CircuitRunner, Group
from microtome.errors import ConfigError, ModelSupportError
from microtome.tracing.catalog import require_anatomy
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.behaviors.metrics import Metric
    from microtome.circuits.references import Ablation
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model

HELD = 2 * 2**30
"""Bytes of corrupt activations that are held, and of scores, at most."""

PASS = 256 * 2**20
"""Bytes of activations of one pass with gradients at most."""


class NeuronParts:
    """The heads and neurons of a model, in the order of computation.

    Args:
        model: A transformer.

    Attributes:
        names: ``a0.h0``, ..., ``m0.n0``, ``m0.n1``, ..., ``a1.h0``, ...
        sites: Where they can be seen: ``attn.z`` and ``mlp.act`` of every block that has them.
        spans: Their places among the names, by site.
        blocks: The block of each ``[part]``.
        neurons: How many are neurons.

    Raises:
        ModelSupportError: If the activations of some MLP's neurons cannot be seen and written, as
            where tokens are routed to experts.
    """

    def __init__(self, model: Model) -> None:
        anatomy = require_anatomy(model.anatomy, "A circuit of neurons")
        names: list[str] = []
        blocks: list[int] = []
        self.spans: dict[str, slice] = {}
        self.neurons = 0
        for layer, block in enumerate(anatomy.blocks):
            if block.attention is not None:
                found = [f"a{layer}.h{head}" for head in range(block.attention.n_heads)]
                self.spans[f"blocks.{layer}.attn.z"] = slice(len(names), len(names) + len(found))
                names += found
            if block.mlp is not None:
                info = model.catalog.info("mlp.act", layer)
                if not (info.readable and info.writable) or not block.mlp.d_mlp:
                    raise ModelSupportError(
                        f"The neurons of block {layer} cannot be written "
                        f"({info.reason or 'they are those of experts'}); use circuits of nodes."
                    )
                found = [f"m{layer}.n{neuron}" for neuron in range(block.mlp.d_mlp)]
                self.spans[f"blocks.{layer}.mlp.act"] = slice(len(names), len(names) + len(found))
                names += found
                self.neurons += len(found)
            blocks += [layer] * (len(names) - len(blocks))
        self.names = tuple(names)
        self.blocks = np.array(blocks)

    @property
    def sites(self) -> list[str]:
        """Where the parts can be seen."""
        return list(self.spans)


class NeuronAblator(CircuitRunner[np.ndarray]):
    """Runs circuits of heads and neurons of one model on one set of examples under one ablation.

    A circuit in the form it is run in is the array of the numbers of its ablated parts.

    Args:
        model: The model.
        examples: The examples whose clean prompts are run.
        ablation: What ablated parts give.
        reference: Examples over whose clean and corrupt prompts means are taken; ``examples`` by
            default.

    Raises:
        ConfigError: If the ablation is unknown, or the corrupt activations of so many examples
            cannot be held.
        ModelSupportError: If the neurons of some MLP cannot be written.
    """

    level = "neuron"

    def __init__(
        self,
        model: Model,
        examples: Examples,
        *,
        ablation: Ablation = "resample",
        reference: Examples | None = None,
    ) -> None:
        self._parts = NeuronParts(model)
        if ablation == "resample":
            _check_held(model, examples, self._parts)
        super().__init__(
            model,
            examples,
            universe=self._parts.names,
            sites=self._parts.sites,
            ablation=ablation,
            reference=reference,
        )

    def run_without(
        self, ablated: Sequence[np.ndarray], metrics: Sequence[str] = ("logit_difference",)
    ) -> dict[str, np.ndarray]:
        """Return metrics ``[circuit, example]`` of circuits given by the numbers of what they lack.

        Args:
            ablated: For each circuit the numbers of its ablated parts in ``universe``.
            metrics: Names of metrics that read the prompt's end.
        """
        return self.run_cuts([np.asarray(a, dtype=int) for a in ablated], metrics)

    def _cut(self, circuit: frozenset[str]) -> np.ndarray:
        check_nodes(circuit, self.universe)
        return np.flatnonzero([name not in circuit for name in self.universe])

    def _first_block(self, cuts: Sequence[np.ndarray]) -> int:
        layers = require_anatomy(self.model.anatomy, "A circuit of neurons").n_layers
        return min((int(self._parts.blocks[cut].min()) for cut in cuts if len(cut)), default=layers)

    def _changes(self, group: Group, cuts: Sequence[np.ndarray], start: int) -> list[Intervention]:
        keep = np.ones((len(cuts), len(self.universe)), dtype=bool)
        for row, cut in enumerate(cuts):
            keep[row, cut] = False
        count = len(group.places)
        found = []
        for site, span in self._parts.spans.items():
            mask = keep[:, span]
            if not mask.all():
                rows = torch.as_tensor(mask).repeat_interleave(count, 0)[:, None]
                rows = rows.unsqueeze(-1) if site.endswith("attn.z") else rows
                found.append(at(site).apply(mixed(rows, group.instead.get(site), len(cuts))))
        return found


def neuron_support(
    model: Model, examples: Examples, *, metric: str | Metric = "logit_difference"
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of all heads and neurons and what each contributes ``[example, part]``.

    (value in the clean run - value in the corrupt run) . mean of the gradients in both runs, summed
    over positions. Where neurons add up to what their MLP writes, so do their scores.

    Args:
        model: A transformer.
        examples: Examples prepared for it.
        metric: A metric that reads the prompt's end.

    Raises:
        ConfigError: If scores of so many parts cannot be held for each example.
        MetricError: If the metric needs several rows for an example.
        ModelSupportError: If the neurons of some MLP cannot be seen.
    """
    chosen = single_row(metric, "Attribution patching")
    parts = NeuronParts(model)
    size = 8 * len(examples) * len(parts.names)
    if size > HELD:
        raise ConfigError(
            f"Scores of {len(parts.names)} parts for each of {len(examples)} examples take "
            f"{size / 2**30:.1f} GiB, more than the {HELD / 2**30:.0f} GiB that are held; take "
            "fewer examples, or level='node'."
        )
    values = np.zeros((len(examples), len(parts.names)))
    for places in batches(examples, max(1, PASS // _row(examples, parts)), model=model):
        chunk = examples.take(places)
        clean = slopes_of(model, chosen, chunk, parts.sites, chunk.clean)
        corrupt = slopes_of(model, chosen, chunk, parts.sites, chunk.corrupt)
        for site, span in parts.spans.items():
            moved = clean.value(site) - corrupt.value(site)
            effect = moved * (clean[site] + corrupt[site]) / 2
            effect = effect.sum(-1) if site.endswith("attn.z") else effect
            values[places, span] = effect.detach().float().sum(1).cpu().numpy()
    return parts.names, values


def _row(examples: Examples, parts: NeuronParts) -> int:
    """Return the bytes that the activations of one example's neurons take."""
    return 4 * max(1, parts.neurons) * max(len(e.clean) for e in examples)


def _check_held(model: Model, examples: Examples, parts: NeuronParts) -> None:
    size = len(examples) * _row(examples, parts)
    if size > HELD:
        raise ConfigError(
            f"The corrupt activations of {parts.neurons} neurons of {model.name} for "
            f"{len(examples)} examples take {size / 2**30:.1f} GiB, more than the "
            f"{HELD / 2**30:.0f} GiB that are held; take fewer examples, ablation='mean', or "
            "circuits of nodes."
        )
