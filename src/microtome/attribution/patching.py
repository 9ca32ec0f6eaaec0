"""Attribution patching: a first-order estimate for every head and MLP, in one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from microtome.attribution.results import ComponentScores
from microtome.behaviors.evaluate import batches
from microtome.behaviors.metrics import LastTokenMetric, Metric, metric
from microtome.core.provenance import collect
from microtome.errors import ConfigError, MetricError, PairError
from microtome.tracing.components import component_names
from microtome.tracing.narrowing import last_mlp_narrow
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.tracing.gradients import Gradients
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model

Split = Literal["role", "position"]
"""How effects are also kept apart."""

MEANING = (
    "Estimated change of the metric when the component's value in the {base} run is replaced by "
    "that of the {other} run (first order; Nanda 2023)."
)


def attribution_patching(
    model: Model,
    examples: Examples,
    *,
    metric: str | Metric = "logit_difference",
    base: Literal["clean", "corrupt"] = "clean",
    split: Split | None = None,
    steps: int = 1,
    batch_size: int = 64,
) -> ComponentScores:
    """Estimate the effect of patching every head (z) and every MLP (output), per example.

    The estimate is (value in the other run - value in the base run) . gradient in the base run,
    summed over positions. Two forward passes and one backward pass; weights are frozen.

    Args:
        model: A transformer.
        examples: Examples prepared for it.
        metric: A metric that reads the prompt's end.
        base: The run that is patched; the other one is the source.
        split: Also keep the effect by ``position`` (for examples of one length), or summed over
            each ``role`` and over the rest.
        steps: With more than 1, the gradient is averaged over as many midpoints of the straight
            line between the token embeddings of both runs (integrated gradients; Hanna et al.,
            2024), which saturation misleads less.
        batch_size: Examples per pass; it does not change the values beyond rounding.

    Raises:
        ConfigError: If ``steps`` is not positive, or there is no such split.
        PairError: If positions are asked for and the examples differ in length.
        MetricError: If the metric needs several rows for an example.
        ModelSupportError: If the model is not a transformer.
    """
    if steps < 1:
        raise ConfigError(f"steps={steps}; expected at least 1.")
    chosen = single_row(metric, "Attribution patching")
    names = component_names(model)
    parts = _parts(examples, split)
    values = np.zeros((len(examples), len(names)))
    divided = np.zeros((len(examples), len(names), len(parts)))
    for places in batches(examples, batch_size, model=model):
        chunk = examples.take(places)
        here, there = (
            (chunk.clean, chunk.corrupt) if base == "clean" else (chunk.corrupt, chunk.clean)
        )
        sites = _sites(model)
        with last_mlp_narrow(model, [len(tokens) for tokens in here]):
            slopes = slopes_of(model, chosen, chunk, sites, here)
            if steps > 1:
                slopes = integrated(model, chosen, chunk, slopes, here, there, steps)
            other = model.trace(there, capture=sites, logits=None)
        effects = _effects(model, slopes, other.value)
        values[places] = effects.sum(2).numpy()
        if split == "position":
            divided[places] = effects.numpy()
            continue
        for number, role in enumerate(parts):
            divided[places, :, number] = (
                (effects * _mask(chunk, role, effects.shape[2]).unsqueeze(1)).sum(2).numpy()
            )
    return ComponentScores(
        names=names,
        values=values,
        method="attribution patching" if steps == 1 else f"integrated gradients, {steps} steps",
        metric=chosen.name,
        meaning=MEANING.format(base=base, other="corrupt" if base == "clean" else "clean"),
        by_part=divided if parts else None,
        parts=parts,
        provenance=collect(
            model,
            {"method": "attribution patching", "base": base, "steps": steps, "metric": chosen.name},
        ),
    )


def support_at_both_ends(
    model: Model, examples: Examples, *, metric: str | Metric = "logit_difference"
) -> np.ndarray:
    """Return what every head and MLP contributes, from the gradients of both runs, averaged.

    (value in the clean run - value in the corrupt run) . mean of both gradients, summed over
    positions: half of :func:`attribution_patching` into the corrupt run minus that out of the clean
    run, by two passes and two backward passes in all.

    Args:
        model: A transformer.
        examples: Examples prepared for it.
        metric: A metric that reads the prompt's end.

    Returns:
        ``[example, component]`` in the order of
        :func:`microtome.tracing.components.component_names`.

    Raises:
        MetricError: If the metric needs several rows for an example.
        ModelSupportError: If the model is not a transformer.
    """
    chosen = single_row(metric, "Attribution patching")
    values = np.zeros((len(examples), len(component_names(model))))
    sites = _sites(model)
    for places in batches(examples, 64, model=model):
        chunk = examples.take(places)
        with last_mlp_narrow(model, [len(tokens) for tokens in chunk.clean]):
            clean = slopes_of(model, chosen, chunk, sites, chunk.clean)
            corrupt = slopes_of(model, chosen, chunk, sites, chunk.corrupt)
        out = _effects(model, clean, corrupt.value).sum(2)
        into = _effects(model, corrupt, clean.value).sum(2)
        values[places] = ((into - out) / 2).numpy()
    return values


def slopes_of(
    model: Model,
    chosen: LastTokenMetric,
    chunk: Examples,
    sites: Sequence[str],
    prompts: Sequence[tuple[int, ...]],
    changes: Sequence[Intervention] = (),
) -> Gradients:
    """Return the metric's gradients at sites of a run."""
    return model.gradients(
        lambda logits, lengths: chosen(logits, lengths, chunk),
        list(sites),
        prompts,
        interventions=changes,
        logits="last",
    )


def integrated(
    model: Model,
    chosen: LastTokenMetric,
    chunk: Examples,
    base: Gradients,
    here: Sequence[tuple[int, ...]],
    there: Sequence[tuple[int, ...]],
    steps: int,
) -> Gradients:
    """Return the values of the base run with gradients averaged on the way to the other run."""
    embedding = "embed.token"
    start, end = (model.trace(p, capture=embedding, logits=None)[embedding] for p in (here, there))
    total = {site: torch.zeros_like(slope) for site, slope in base.slopes.items()}
    for step in range(steps):
        share = (step + 0.5) / steps
        change = at(embedding).add(share * (end - start))
        found = slopes_of(model, chosen, chunk, base.sites, here, [change])
        for site in total:
            total[site] += found.slopes[site] / steps
    return replace(base, slopes=total)


def single_row(name: str | Metric, method: str) -> LastTokenMetric:
    """Return a metric that reads the logits behind the prompt, or refuse with what needs it.

    Raises:
        MetricError: If the metric needs several rows for an example.
    """
    chosen = metric(name)
    if not isinstance(chosen, LastTokenMetric):
        raise MetricError(
            f"{method} needs a metric that reads the prompt's end; {chosen.name} does not. Take "
            "logit_difference, probability_difference or loss."
        )
    return chosen


def _sites(model: Model) -> list[str]:
    blocks = () if model.anatomy is None else model.anatomy.blocks
    sites = [f"blocks.{n}.attn.z" for n, b in enumerate(blocks) if b.attention is not None]
    return sites + [f"blocks.{n}.mlp.out" for n, b in enumerate(blocks) if b.mlp is not None]


def _effects(model: Model, slopes: Gradients, other: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """Return the effects ``[batch, component, pos]`` in the order of the names."""
    rows: list[torch.Tensor] = []
    blocks = () if model.anatomy is None else model.anatomy.blocks
    for layer, block in enumerate(blocks):
        if block.attention is not None:
            site = f"blocks.{layer}.attn.z"
            effect = ((other(site) - slopes.value(site)) * slopes[site]).float().sum(-1)
            rows += list(effect.permute(2, 0, 1))
        if block.mlp is not None:
            site = f"blocks.{layer}.mlp.out"
            rows.append(((other(site) - slopes.value(site)) * slopes[site]).float().sum(-1))
    return torch.stack(rows, 1).detach().cpu()


def _parts(examples: Examples, split: Split | None) -> tuple[str, ...]:
    """Return the positions, or the roles that every example has, in order.

    Raises:
        ConfigError: If there is no such split.
        PairError: If positions are asked for and the examples differ in length.
    """
    if split is None:
        return ()
    if split not in get_args(Split):
        raise ConfigError(f"split={split!r}; expected one of {', '.join(get_args(Split))}.")
    if split == "position":
        lengths = sorted({len(e.clean) for e in examples})
        if len(lengths) > 1:
            raise PairError(
                f"The examples have {lengths[0]} to {lengths[-1]} tokens, so a position means "
                "different things in them. Take split='role', or examples of one length."
            )
        return tuple(map(str, range(lengths[0])))
    common = [r for r in examples[0].roles if all(r in e.roles for e in examples)]
    return (*common, "rest")


def _mask(chunk: Examples, role: str, width: int) -> torch.Tensor:
    """Return where a role lies ``[batch, pos]``; ``rest`` is everything that no role covers."""
    mask = torch.zeros(len(chunk), width)
    for row, example in enumerate(chunk):
        if role == "rest":
            mask[row, : len(example.clean)] = 1
            for start, stop in example.roles.values():
                mask[row, start:stop] = 0
        else:
            start, stop = example.roles[role]
            mask[row, start:stop] = 1
    return mask
