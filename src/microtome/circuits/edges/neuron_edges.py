"""Edge attribution with MLPs told apart into neurons: the strongest by name, the others as one.

A neuron writes its activation times its row of the projection back to the stream, so an MLP's edge
is the sum of its neurons' edges, and of its bias where ablation gives nothing. A first run over the
examples ranks the neurons, a second one scores those that are kept apart; what is left of the MLP,
its bias included, is ``m3.rest``, and sums stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.attribution.patching import single_row
from microtome.behaviors.evaluate import batches
from microtome.circuits.edges.attribution import MEANING
from microtome.circuits.edges.port_gradients import (
    TABLE,
    batch_size,
    edge_products,
    on_edges,
    port_gradients,
    target_gradients,
)
from microtome.circuits.edges.reading import Reading
from microtome.circuits.edges.tally import Tally
from microtome.circuits.edges.writing import differences, write_sites
from microtome.circuits.references import References
from microtome.errors import ConfigError, ModelSupportError
from microtome.models import hf

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.behaviors.metrics import Metric
    from microtome.circuits.edges.scores import EdgeScores
    from microtome.circuits.graph import ComponentGraph
    from microtome.circuits.references import Ablation
    from microtome.tracing.gradients import Gradients
    from microtome.tracing.model import Model

RANKED = 2**30
"""Bytes of the scores by which neurons are ranked, neurons times targets, at most."""


@dataclass(frozen=True, eq=False)
class _Batch:
    """One batch, run forward and backward.

    Attributes:
        chunk: The examples.
        found: Gradients and values of the clean run.
        moved: By how much neurons are more active than ablated, by block ``[b, p, neuron]``.
        instead: What ablated parts give, by site.
    """

    chunk: Examples
    found: Gradients
    moved: dict[int, torch.Tensor]
    instead: Mapping[str, torch.Tensor]


def neuron_edges(
    model: Model,
    examples: Examples,
    *,
    top: int = 32,
    layers: Sequence[int] | None = None,
    metric: str | Metric = "logit_difference",
    ablation: Ablation = "resample",
    reference: Examples | None = None,
) -> EdgeScores:
    """Score every edge by its gradient in the clean run, the strongest neurons told apart.

    The strength of a neuron is the sum of the magnitudes of its edges' mean scores.

    Args:
        model: A transformer whose parts write to one residual stream.
        examples: Where to look: the train split.
        top: How many neurons are kept apart, over all chosen blocks.
        layers: Blocks whose MLPs are told apart; all by default.
        metric: A metric that reads the prompt's end.
        ablation: What an ablated edge carries.
        reference: Examples over which means are taken; ``examples`` by default.

    Returns:
        Scores of the edges that leave ``embed``, heads, ``m3.n17``, ``m3.rest`` (the block's other
        neurons) and the MLPs of which no neuron is kept apart.

    Raises:
        ConfigError: If ``top`` is not positive, a block has no MLP, or ranking so many neurons
            takes more memory than is allowed.
        MetricError: If the metric needs several rows for an example.
        ModelSupportError: If edges are not defined in this model, or an MLP's neurons do not add up
            to what it writes.
    """
    chosen = single_row(metric, "Edge attribution")
    reading = Reading.of(model)
    weights = _weights(reading, layers)
    if top < 1:
        raise ConfigError(f"top={top}; expected at least 1.")
    _check_size(reading, weights)
    sites = [*write_sites(reading), *(_act(layer) for layer in weights)]
    references = References(model, examples, sites, ablation=ablation, reference=reference)
    widest = max(len(w) for w in weights.values())
    size = max(
        1, min(batch_size(reading, examples), TABLE // (4 * _row(reading, examples, widest)))
    )

    def runs() -> Iterator[_Batch]:
        for places in batches(examples, size, model=model):
            chunk = examples.take(places)
            instead = references.of(chunk)
            acts = [_act(layer) for layer in weights]
            trace = model.trace(chunk.clean, capture=acts, logits=None)
            moved = {layer: _moved(trace.value(_act(layer)), instead.get(_act(layer)))
                     for layer in weights}  # fmt: skip
            yield _Batch(chunk, port_gradients(reading, chosen, chunk), moved, instead)

    kept = _strongest(reading, weights, runs, top)
    graph = _told_apart(reading.graph, kept)
    tally = Tally(graph, examples.clusters.tolist())
    for batch in runs():
        values = _values(reading, graph, weights, kept, batch)
        tally.add(values, batch.chunk.clusters.tolist())
    return tally.scores(
        model,
        method=f"eap, {sum(map(len, kept.values()))} neurons apart",
        metric=chosen.name,
        ablation=ablation,
        meaning=MEANING,
        config={"top": top, "layers": list(weights)},
        gradient=False,
        level="neuron-edge",
    )


def _act(layer: int) -> str:
    return f"blocks.{layer}.mlp.act"


def _row(reading: Reading, examples: Examples, neurons: int) -> int:
    """Return how many numbers one example takes: the most targets of a block, at every neuron."""
    ports = [stage.ports[-1].targets.stop - stage.ports[0].targets.start
             for stage in reading.stages if stage.ports]  # fmt: skip
    return max(ports, default=1) * neurons * max(len(e.clean) for e in examples)


def _weights(reading: Reading, layers: Sequence[int] | None) -> dict[int, torch.Tensor]:
    """Return what neurons write for an activation of 1, by block ``[neuron, d_model]``."""
    blocks = reading.anatomy.blocks
    have = [n for n, block in enumerate(blocks) if block.mlp is not None]
    found = {}
    for layer in have if layers is None else dict.fromkeys(layers):
        if layer not in have:
            raise ConfigError(f"Block {layer} has no MLP; expected some of {have}.")
        mlp = blocks[layer].mlp
        info = reading.model.catalog.info("mlp.act", layer)
        if mlp is None or mlp.down is None or not mlp.neurons_add_up or not info.readable:
            reason = info.reason or "something acts on their sum"
            raise ModelSupportError(
                f"The neurons of block {layer} do not add up to what its MLP writes ({reason}); "
                "leave it out of layers, or use edges of whole MLPs."
            )
        weight = hf.projection_weight(reading.module(mlp.down)).detach()
        found[layer] = weight if mlp.scale == 1.0 else weight * mlp.scale
    if not found:
        raise ConfigError("No MLP is to be told apart; expected at least one block in layers.")
    return found


def _check_size(reading: Reading, weights: Mapping[int, torch.Tensor]) -> None:
    neurons = sum(len(weight) for weight in weights.values())
    size = 8 * neurons * len(reading.graph.targets)
    if size > RANKED:
        raise ConfigError(
            f"Ranking {neurons} neurons by their edges to {len(reading.graph.targets)} targets "
            f"takes {size / 2**30:.1f} GiB, more than the {RANKED / 2**30:.0f} GiB allowed; choose "
            "fewer blocks with layers=..."
        )


def _moved(now: torch.Tensor, instead: torch.Tensor | None) -> torch.Tensor:
    return now if instead is None else now - instead.to(now)


def _products(
    reading: Reading,
    batch: _Batch,
    weights: Mapping[int, torch.Tensor],
    neurons: Callable[[int], torch.Tensor | slice],
) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """Yield block, targets and products ``[b, neuron, t]`` of some neurons of every block."""
    for gradient, targets, seen in target_gradients(reading, batch.found):
        for layer, weight in weights.items():
            source = reading.stages[layer].mlp_source
            if source is not None and source < seen:
                some = neurons(layer)
                slopes = gradient.float() @ weight[some].float().T
                moved = batch.moved[layer][..., some].float()
                yield layer, targets, torch.einsum("tbpn,bpn->bnt", slopes, moved)


def _strongest(
    reading: Reading,
    weights: Mapping[int, torch.Tensor],
    runs: Callable[[], Iterator[_Batch]],
    top: int,
) -> dict[int, torch.Tensor]:
    """Return the numbers of the strongest neurons by block, ascending."""
    count = len(reading.graph.targets)
    sums = {layer: np.zeros((len(weight), count)) for layer, weight in weights.items()}
    for batch in runs():
        for layer, targets, products in _products(reading, batch, weights, lambda _: slice(None)):
            sums[layer][:, targets] += products.double().sum(0).cpu().numpy()
    strength = np.concatenate([np.abs(found).sum(1) for found in sums.values()])
    owner = np.concatenate([np.full(len(w), layer) for layer, w in weights.items()])
    number = np.concatenate([np.arange(len(w)) for w in weights.values()])
    chosen = np.argsort(-strength, kind="stable")[:top]
    return {
        layer: torch.as_tensor(np.sort(number[chosen][owner[chosen] == layer])) for layer in weights
    }


def _told_apart(graph: ComponentGraph, kept: Mapping[int, torch.Tensor]) -> ComponentGraph:
    """Return the graph with neurons and a remainder in place of MLPs."""
    sources: list[str] = []
    order: list[int] = []
    for source, when in zip(graph.sources, graph.source_order.tolist(), strict=True):
        names = [source]
        apart = kept.get(int(source[1:])) if source[0] == "m" else None
        if apart is not None and len(apart):
            names = [f"{source}.n{n}" for n in apart.tolist()] + [f"{source}.rest"]
        sources += names
        order += [when] * len(names)
    return replace(graph, sources=tuple(sources), source_order=np.array(order))


def _values(
    reading: Reading,
    graph: ComponentGraph,
    weights: Mapping[int, torch.Tensor],
    kept: Mapping[int, torch.Tensor],
    batch: _Batch,
) -> np.ndarray:
    """Return the scores of a batch's examples ``[b, edge]``."""
    now = {site: batch.found.value(site) for site in write_sites(reading)}
    table = differences(reading, now, batch.instead, stop=len(reading.stages))
    whole = edge_products(reading, batch.found, table)
    row = {name: i for i, name in enumerate(graph.sources)}
    found = whole.new_zeros(len(batch.chunk), len(graph.sources), whole.shape[2])
    for number, source in enumerate(reading.graph.sources):
        found[:, row.get(source, row.get(f"{source}.rest", 0))] = whole[:, number]
    some = {layer: numbers for layer, numbers in kept.items() if len(numbers)}
    chosen = {layer: weights[layer] for layer in some}
    for layer, targets, products in _products(reading, batch, chosen, lambda at: some[at]):
        rest = row[f"m{layer}.rest"]
        found[:, rest - products.shape[1] : rest, targets] = products
        found[:, rest, targets] -= products.sum(1)
    return on_edges(reading, found, graph)
