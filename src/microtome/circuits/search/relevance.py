"""Relevance propagation (RelP): edge attribution with the rules of LRP instead of the derivatives.

Jafari et al. (2025, arXiv 2508.21258): norms are linear with a fixed divisor, an activation f(x) is
x times the fixed ratio f(x)/x, a product of gate and value gives half to each, attention patterns
are fixed, linear layers are what they are. The forward pass is the model's own; only what flows
back differs, so that one backward pass gives the coefficients of every port.

Layer-wise relevance propagation is patented, and the method runs only where it is asked for by its
name; it writes a notice then.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch

from microtome.attribution.patching import single_row
from microtome.behaviors.evaluate import batches
from microtome.circuits.edges.port_gradients import (
    batch_size,
    edge_products,
    moved,
    on_edges,
    port_gradients,
)
from microtome.circuits.edges.reading import Reading, Stage
from microtome.circuits.edges.tally import Tally
from microtome.circuits.edges.writing import differences, write_sites
from microtome.circuits.references import References
from microtome.circuits.search.held import HeldNorm, HeldReading
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.behaviors.metrics import Metric
    from microtome.circuits.edges.scores import EdgeScores
    from microtome.circuits.references import Ablation
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model

PATENT_NOTICE = (
    "Notice: layer-wise relevance propagation (LRP) is described by its authors as a patented "
    "technology that is free for personal and scientific use only. Clear the rights before any "
    "other use, or choose another method, such as eap-ig."
)
"""What is written to standard error each time the method runs."""

MEANING = (
    "Estimated support for the behavior: what the source writes beyond its ablated value, times "
    "the relevance coefficient (LRP rules) at the target. LRP is patented; see PATENT_NOTICE."
)


def relevance_propagation(
    model: Model,
    examples: Examples,
    *,
    metric: str | Metric = "logit_difference",
    ablation: Ablation = "resample",
    reference: Examples | None = None,
) -> EdgeScores:
    """Score every edge by relevance coefficients in the clean run (RelP).

    Attention patterns are fixed, so that edges into queries and keys score 0.

    Args:
        model: A transformer whose parts write to one residual stream.
        examples: Where to look.
        metric: A metric that reads the prompt's end.
        ablation: What an ablated edge carries.
        reference: Examples over which means are taken.

    Raises:
        MetricError: If the metric needs several rows for an example.
        SiteError: If an MLP's neurons cannot be seen (experts).
    """
    sys.stderr.write(PATENT_NOTICE + "\n")
    chosen = single_row(metric, "Relevance propagation")
    reading = HeldReading.like(Reading.of(model))
    references = References(
        model, examples, write_sites(reading), ablation=ablation, reference=reference
    )
    tally = Tally(reading.graph, examples.clusters.tolist())
    for places in batches(examples, batch_size(reading, examples), model=model):
        chunk = examples.take(places)
        found = port_gradients(reading, chosen, chunk, changes=rules(reading))
        instead = references.of(chunk)
        table = differences(reading, found.values, instead, stop=len(reading.stages))
        values = on_edges(reading, edge_products(reading, found, table))
        tally.add(values, chunk.clusters.tolist(), moved(table))
    return tally.scores(
        model,
        method="relp",
        metric=chosen.name,
        ablation=ablation,
        meaning=MEANING,
        gradient=False,
    )


def rules(reading: Reading) -> list[Intervention]:
    """Return the rules as changes that leave every value of the forward pass as it is."""
    found: list[Intervention] = []
    for stage in reading.stages:
        if len(stage.heads):
            found += _norm_rule(reading, stage.attn_norm)
            found += [at(f"blocks.{stage.layer}.attn.{s}").apply(torch.detach) for s in "qk"]
        if stage.mlp_target is not None:
            found += _norm_rule(reading, stage.mlp_norm)
            found += _neuron_rules(reading, stage)
    return found + _norm_rule(reading, reading.anatomy.final_norm or "")


def _norm_rule(reading: Reading, path: str) -> list[Intervention]:
    if not path:
        return []
    linear, kept = HeldNorm(reading.module(path)), _Kept()

    def held(value: torch.Tensor) -> torch.Tensor:
        return linear.at(kept.value, value)

    return [at(f"module:{path}:in").apply(kept), at(f"module:{path}:out").apply(held)]


def _neuron_rules(reading: Reading, stage: Stage) -> list[Intervention]:
    """Return the identity rule of an activation, or the half rule of a gated one."""
    block = f"blocks.{stage.layer}.mlp"
    mlp = reading.anatomy.blocks[stage.layer].mlp
    gated = mlp is not None and (mlp.gate is not None or mlp.fused is not None)
    kept = [_Kept(), _Kept()] if gated else [_Kept()]

    def ruled(value: torch.Tensor) -> torch.Tensor:
        whole = value.detach()
        for factor in kept:
            part = _ratio(whole, factor.value.detach()) * factor.value / len(kept)
            value = part if factor is kept[0] else value + part
        return whole + value - value.detach()

    names = ("pre", "gate")[: len(kept)]
    found = [at(f"{block}.{n}").apply(k) for n, k in zip(names, kept, strict=True)]
    return [*found, at(f"{block}.act").apply(ruled)]


def _ratio(value: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Return a quotient, 0 where the divisor is 0."""
    return torch.where(by == 0, 0.0, value / torch.where(by == 0, 1.0, by))


class _Kept:
    """A change that changes nothing and keeps the value."""

    value: torch.Tensor

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        self.value = value
        return value
