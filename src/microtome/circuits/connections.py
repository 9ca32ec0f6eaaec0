"""How nodes of a circuit act on one another: one node's support when another is ablated.

The weight of ``u -> v`` is what v supports the metric with (first order, in the clean run) minus
what is left of it when u alone gives its corrupt value. It counts all ways from u to v, not only
the direct one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from microtome.attribution import direct_logit_attribution
from microtome.behaviors.metrics import LastTokenMetric, metric
from microtome.circuits.results import Circuit
from microtome.errors import MetricError, ModelSupportError
from microtome.tracing.components import head_of, layer_of
from microtome.tracing.sites import Site, at

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model

LOGITS = "logits"


def connections(
    model: Model, examples: Examples, circuit: Circuit, *, name: str = "logit_difference"
) -> dict[tuple[str, str], float]:
    """Return the weight of every pair of nodes, and of every node on the logits directly.

    Args:
        model: The model.
        examples: Examples of one length, or few enough to be padded together.
        circuit: The circuit.
        name: A metric that reads the prompt's end.

    Returns:
        ``{(source, target): mean weight}``; the direct weights on ``logits`` are left out where
        contributions do not add up in this model.
    """
    chosen = metric(name)
    if not isinstance(chosen, LastTokenMetric):
        raise MetricError(f"{chosen.name} does not read the prompt's end.")
    sites = sorted({str(_whole(node)) for node in circuit.parts})
    slopes = model.gradients(
        lambda lo, le: chosen(lo, le, examples), sites, examples.clean, logits="last"
    )
    other = model.trace(examples.corrupt, capture=sites, logits=None)
    weights: dict[tuple[str, str], float] = {}
    for source in circuit.parts:
        later = [t for t in circuit.parts if _before(source, t)]
        if not later:
            continue
        ablated = model.trace(
            examples.clean, capture=sites, interventions=[_site(source).patch(other)], logits=None
        )
        for target in later:
            site = str(_whole(target))
            change = (slopes.value(site) - ablated[site]) * slopes[site]
            weights[source, target] = float(_of(change, target).sum()) / len(examples)
    return {**weights, **_direct(model, examples, circuit, name)}


def _whole(node: str) -> Site:
    return at("attn.z" if head_of(node) is not None else "mlp.out", layer=layer_of(node))


def _site(node: str) -> Site:
    head = head_of(node)
    return _whole(node) if head is None else at("attn.z", layer=layer_of(node), head=head)


def _of(value: torch.Tensor, node: str) -> torch.Tensor:
    head = head_of(node)
    return value if head is None else value[:, :, head]


def _before(source: str, target: str) -> bool:
    """Return whether a node can act on another: from an earlier block, or attention on MLP."""
    a, b = layer_of(source), layer_of(target)
    return a < b or (a == b and head_of(source) is not None and head_of(target) is None)


def _direct(
    model: Model, examples: Examples, circuit: Circuit, name: str
) -> dict[tuple[str, str], float]:
    try:
        found = direct_logit_attribution(model, examples, metric=name)
    except (ModelSupportError, MetricError):
        return {}
    weights = {}
    for node in circuit.parts:
        head, layer = head_of(node), layer_of(node)
        part = found.mlps[:, layer] if head is None else found.heads[:, layer, head]
        weights[node, LOGITS] = float(part.mean())
    return weights
