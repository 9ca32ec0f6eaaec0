"""Building the attribution graph of one prompt by backward passes through the frozen model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from microtome.circuits.latent_graphs.frozen import FrozenModel
from microtome.circuits.latent_graphs.influence import (
    completeness_score,
    influences,
    replacement_score,
    shares,
)
from microtome.circuits.latent_graphs.nodes import Nodes
from microtome.circuits.latent_graphs.results import KINDS, LatentGraph
from microtome.circuits.latent_graphs.rows import Rows
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.errors import ConfigError, ModelSupportError
from microtome.tracing.attachments import fingerprints

if TYPE_CHECKING:
    from microtome.tracing.model import Model

SAME = 1e-3
"""Share of the largest value by which effects and bias may miss a target's value (float32)."""

RERANK = 4
"""Batches of targets after which the latents still to follow are ranked anew."""


def latent_graph(
    model: Model,
    prompt: str | list[int] | tuple[int, ...],
    *,
    name: str,
    probability: float = 0.95,
    max_logits: int = 10,
    max_latents: int = 7500,
    batch_size: int = 32,
    labels: Mapping[str, str] | None = None,
    progress: Progress = quiet,
) -> LatentGraph:
    """Return the attribution graph of a prompt over the transcoders of a model.

    Every MLP is what its transcoder gives and an error. With attention patterns and norm divisors
    held, values of latents and logits are sums of direct effects of embeddings, latents and errors
    and a bias (Ameisen et al., 2025); each row of effects is one row of a backward pass. That sums
    and values agree is checked by a forward pass without any source.

    The embedding of a token is all that the stream starts with, added positions included. A logit
    counts less the mean of all logits, at the last position. A latent reads by the slope of its
    encoder where it is, which is exact for encoders that are linear where a latent is active, all
    but Kronecker ones; for these effects are first order.

    Args:
        model: A model with transcoders attached from MLP inputs to MLP outputs, one for each
            block, or a cross-layer one whose latents write later blocks, too.
        prompt: A text, or token ids.
        name: The name they are attached under.
        probability: Logits are the fewest tokens whose probabilities add up to this.
        max_logits: How many of them at most.
        max_latents: How many latents are followed back at most, the most influential; the others
            count as errors.
        batch_size: Rows of a backward pass.
        labels: What latents stand for, by ``"block/latent"``.
        progress: Told how many latents were followed.

    Raises:
        ConfigError: If nothing fitting is attached under the name, or a number is out of range.
        ModelSupportError: If the frozen model is not linear, or its effects do not add up.
        SiteError: If attention patterns cannot be seen or written.
    """
    counts = (max_logits, batch_size, max_latents)
    whole = all(isinstance(count, int) for count in counts)
    if not 0 < probability <= 1 or not whole or min(max_logits, batch_size) < 1 or max_latents < 0:
        raise ConfigError(
            f"probability={probability}, max_logits={max_logits}, max_latents={max_latents}, "
            f"batch_size={batch_size}; expected a share above 0, and whole numbers: 1 or more, 0 "
            "or more, 1 or more."
        )
    frozen = FrozenModel.of(model, prompt, name)
    nodes = Nodes.of(frozen, probability, max_logits)
    rows = Rows(frozen, nodes, batch_size)
    rows.follow(nodes.logits)
    _follow_latents(nodes, rows, max_latents, batch_size, progress)
    return _graph(model, frozen, nodes, rows, name, labels or {})


def _follow_latents(
    nodes: Nodes, rows: Rows, most: int, batch_size: int, progress: Progress
) -> None:
    """Follow latents back, those with most influence so far first, until none is left."""
    latent = np.zeros(len(nodes.kinds), dtype=bool)
    latent[nodes.which("latent")] = True
    total = min(most, int(latent.sum()))
    done = 0
    while done < total:
        _, influence = _weighed(nodes, rows)
        left = np.flatnonzero(latent & (influence > 0))
        left = left[~np.isin(left, rows.targets)]
        if not len(left):
            return
        order = left[np.argsort(-influence[left], kind="stable")]
        some = order[: min(total - done, RERANK * batch_size)]
        rows.follow(some)
        done += len(some)
        progress.step(done, total, "latents")


def _weighed(nodes: Nodes, rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the shares ``[target, node]`` and the influence ``[node]`` of the rows so far."""
    shared = shares(np.stack(rows.effects))
    targets = np.array(rows.targets)
    inner = np.where(nodes.blocks[targets] == rows.frozen.anatomy.n_layers, -1, targets)
    weights = nodes.probabilities[targets].astype(np.float64)
    return shared, influences(shared, inner, weights)


def _graph(
    model: Model,
    frozen: FrozenModel,
    nodes: Nodes,
    rows: Rows,
    name: str,
    labels: Mapping[str, str],
) -> LatentGraph:
    targets = np.array(rows.targets, dtype=np.int64)
    effects, bias = np.stack(rows.effects), rows.without_sources()
    values = nodes.values[targets].astype(np.float64)
    unsummed = _unsummed(model, values, effects.astype(np.float64).sum(1) + bias)
    shared, influence = _weighed(nodes, rows)
    loose = np.zeros(len(nodes.kinds), dtype=bool)
    loose[nodes.which("latent")] = True
    loose[targets] = False
    lost = loose | (nodes.kinds == KINDS.index("error"))
    output = influence[targets] + nodes.probabilities[targets]
    ids = frozen.tokens[0].tolist()
    return LatentGraph(
        prompt=model.decode(ids) if model.tokenizer is not None else "",
        tokens=tuple(model.tokens(ids)),
        kinds=nodes.kinds,
        blocks=nodes.blocks,
        positions=nodes.positions,
        numbers=nodes.numbers,
        activations=nodes.values,
        probabilities=nodes.probabilities,
        influence=influence,
        targets=targets,
        effects=effects,
        bias=bias.astype(np.float32),
        unsummed=unsummed,
        replacement=replacement_score(influence, nodes.kinds == KINDS.index("embedding"), lost),
        completeness=completeness_score(shared, output, lost),
        n_blocks=frozen.anatomy.n_layers,
        active=len(nodes.which("latent")),
        followed=len(targets) - len(nodes.logits),
        model=model.name,
        transcoders=fingerprints(frozen.transcoders.values()),
        names=name,
        texts=tuple(model.tokens(nodes.numbers[nodes.logits].tolist())),
        labels=dict(labels),
        provenance=collect(model, {"name": name, "prompt": ids}),
    )


def _unsummed(model: Model, values: NDArray[np.float64], sums: NDArray[np.float64]) -> float:
    """Return by how much sums miss values, as a share of the largest.

    Raises:
        ModelSupportError: If it is more than rounding.
    """
    largest = float(np.abs(values).max())
    found = float(np.abs(values - sums).max()) / largest if largest else 0.0
    slack = max(SAME, 64 * torch.finfo(model.dtype).eps)
    if not found <= slack:
        raise ModelSupportError(
            f"Direct effects and bias miss the values of latents by up to {found:.3g} of the "
            f"largest; expected at most {slack:.1g}. Something between the transcoders is not "
            "linear with attention patterns and norm divisors held."
        )
    return found
