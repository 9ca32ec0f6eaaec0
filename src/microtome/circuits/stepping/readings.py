"""Readings: numbers that are linear in the residual stream while norms and the like are frozen.

A logit, a neuron's pre-activation, an attention score seen from its query or its key, what a head
moves along a direction: each is ``sum over positions of stream @ direction + constant``. So every
part's share in it is its own write along the direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from microtome.circuits.stepping.recorded import Recorded


@dataclass(frozen=True, eq=False)
class Reading:
    """A number that is linear in the stream.

    Attributes:
        place: What reads: ``logits``, ``a1.h0<q>``, ``m0.n5``, ...
        pos: Position it is read at.
        label: What the number is, in words.
        order: When it is read; parts that write before are its sources.
        positions: Positions of the stream that it reads.
        directions: What it reads there ``[position, d_model]``.
        value: The number, from the model's own pass.
        constant: The part that no source writes.
        held: What is held fixed.
        other: The key of a query, or the query of a key.
    """

    place: str
    pos: int
    label: str
    order: int
    positions: tuple[int, ...]
    directions: torch.Tensor
    value: float
    constant: float
    held: str
    other: int | None = None


def logit_reading(
    recorded: Recorded, pos: int, tokens: list[int], weights: list[float], label: str
) -> Reading:
    """Return the reading of a weighted sum of logits, such as a token's against another's."""
    matrix, constant = recorded.unembedding(tokens)
    factors = torch.tensor(weights, dtype=torch.float64)
    last = recorded.anatomy.n_layers
    logits = recorded.trace.logits
    if logits is None:
        raise ValueError("the pass was recorded without logits")
    value = float(logits[0, pos, tokens].double().cpu() @ factors)
    return Reading(
        "logits", pos, label, 2 * last, (pos,),
        (matrix @ factors / recorded.scale(last, "logits")[pos])[None],
        value, float(constant @ factors), "norm scale",
    )  # fmt: skip


def neuron_reading(recorded: Recorded, layer: int, neuron: int, pos: int, branch: str) -> Reading:
    """Return the reading of a neuron's ``pre`` or ``gate``."""
    matrix, constant = recorded.neuron_reader(layer, branch)
    value = recorded.value(f"blocks.{layer}.mlp.{branch}")[pos, neuron]
    gated = recorded.mlp(layer).gate is not None
    place = f"m{layer}.n{neuron}" + (f"<{'gate' if branch == 'gate' else 'up'}>" if gated else "")
    held = "norm scale" + (", other branch of the gate" if gated else "")
    return Reading(
        place, pos, "input of the gate" if branch == "gate" else "pre-activation",
        recorded.order(layer, "mlp"), (pos,),
        (matrix[:, neuron] / recorded.scale(layer, "mlp")[pos])[None],
        float(value), float(constant[neuron]), held,
    )  # fmt: skip


def score_reading(
    recorded: Recorded, layer: int, head: int, pair: tuple[int, int], port: str
) -> Reading:
    """Return the score of a query on a key, as what the query's or the key's position wrote.

    Args:
        recorded: The pass.
        layer: The block.
        head: The query head.
        pair: Positions of query and key.
        port: ``q`` (the key is frozen) or ``k`` (the query is frozen).
    """
    query, key = pair
    factor = recorded.score_scale(layer)
    q = recorded.value(f"blocks.{layer}.attn.q")[query, head]
    k = recorded.value(f"blocks.{layer}.attn.k")[key, recorded.group(layer, head)]
    pos, fixed = (query, k) if port == "q" else (key, q)
    matrix, constant = recorded.port(layer, port, head)
    seen = recorded.turn(layer, port, head)[pos] @ fixed * factor
    value = float(recorded.value(f"blocks.{layer}.attn.scores")[head, query, key])
    # what stands beside the product: a bias of the distance, as in ALiBi
    beside = value - factor * float(q @ k)
    held = f"norm scale, {'key' if port == 'q' else 'query'}"
    return Reading(
        f"a{layer}.h{head}<{port}>", pos, "attention score", recorded.order(layer, "attn"), (pos,),
        (matrix @ seen / recorded.scale(layer, "attn")[pos])[None],
        value, float(constant @ seen) + (beside if abs(beside) > 1e-4 * abs(value) else 0.0),
        held, key if port == "q" else query,
    )  # fmt: skip


def value_reading(
    recorded: Recorded, layer: int, head: int, pos: int, direction: torch.Tensor, label: str
) -> Reading:
    """Return what a head writes at a position along a direction, as what it read everywhere.

    The pattern is frozen.
    """
    output = recorded.written(layer, head) @ direction
    matrix, constant = recorded.port(layer, "v", head)
    weights = recorded.value(f"blocks.{layer}.attn.pattern")[head, pos]
    places = torch.nonzero(weights)[:, 0]
    read = matrix @ output
    scales = recorded.scale(layer, "attn")[places]
    value = float(recorded.value(f"blocks.{layer}.attn.z")[pos, head] @ output)
    return Reading(
        f"a{layer}.h{head}<v>", pos, label, recorded.order(layer, "attn"),
        tuple(int(p) for p in places), read * (weights[places] / scales)[:, None],
        value, float(weights.sum() * (constant @ output)), "norm scale, pattern",
    )  # fmt: skip


def stream_reading(
    recorded: Recorded, place: str, layer: int, kind: str, pos: int, direction: torch.Tensor
) -> Reading:
    """Return the projection of the stream before a part on a direction."""
    stream = recorded.stream(layer, kind)[pos]
    order = 2 * layer if layer == recorded.anatomy.n_layers else recorded.order(layer, kind)
    return Reading(
        place, pos, "length along the direction", order, (pos,), direction[None],
        float(stream @ direction), 0.0, "",
    )  # fmt: skip
