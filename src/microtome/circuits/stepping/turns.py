"""What stands between a head's projections and its scores: rotary embeddings and the scale.

Both are found from the model's own values. Unit vectors are put in place of the projections'
outputs, one in each row of a batch, and what arrives at ``attn.q`` and ``attn.k`` is the matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from microtome.errors import ModelSupportError
from microtome.models.compare import relative_error, tolerance
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from microtome.circuits.stepping.recorded import Recorded
    from microtome.models.anatomy import HeadColumns
    from microtome.tracing.interventions import Intervention

AGREEMENT = 1e-3
"""Largest relative error of queries and keys that the matrices give."""

MASKED = -1e4
"""Scores below this are those of masked keys."""


AMPLITUDE = 1e3
"""Length of the vectors that are sent, so large that the epsilon of a norm does not matter."""


def find_turns(recorded: Recorded) -> dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]]:
    """Return the matrices ``[pos, d_head, d_head]`` of every block's queries and keys.

    Beside each stands a factor ``[pos, head]``: 1, or that of a frozen norm of queries and keys.

    Raises:
        ModelSupportError: If what stands between is not linear.
    """
    ports = [(n, name) for n in range(recorded.anatomy.n_layers) for name in ("q", "k")]
    plain = {port: _projected(recorded, *port) for port in ports}
    arrived = {p: recorded.value(f"blocks.{p[0]}.attn.{p[1]}") for p in ports}
    if all(relative_error(plain[p], arrived[p]) < 1e-5 for p in ports):
        found = {
            p: torch.eye(plain[p].shape[-1]).double().expand(recorded.length, -1, -1) for p in ports
        }
    else:
        found = _probed(recorded, ports)
    turns = {}
    for port in ports:
        given = torch.einsum("phd,pde->phe", plain[port], found[port])
        factor = (given * arrived[port]).sum(-1) / given.pow(2).sum(-1).clamp(min=1e-30)
        if float((factor - 1).abs().max()) < 1e-3:
            factor = torch.ones_like(factor)
        error = relative_error(given * factor[..., None], arrived[port])
        if error > max(AGREEMENT, tolerance(recorded.model.dtype)):
            raise ModelSupportError(
                f"Block {port[0]}: what stands between the {port[1]} projection and the scores is "
                f"not linear (relative error {error:.1e}), such as clipping. Scores cannot be "
                "split in this model; step into v, MLPs or logits."
            )
        turns[port] = (found[port], factor)
    return turns


def _projected(recorded: Recorded, layer: int, name: str) -> torch.Tensor:
    """Return the projection's output for every head ``[pos, head, d_head]``."""
    attention = recorded.attention(layer)
    heads = attention.n_heads if name == "q" else attention.n_kv_heads
    size = attention.n_heads // attention.n_kv_heads
    stream = recorded.stream(layer, "attn") / recorded.scale(layer, "attn")[:, None]
    rows = []
    for head in range(heads):
        matrix, constant = recorded.port(layer, name, head if name == "q" else head * size)
        rows.append(stream @ matrix + constant)
    return torch.stack(rows, 1)


def _probed(
    recorded: Recorded, ports: list[tuple[int, str]]
) -> dict[tuple[int, str], torch.Tensor]:
    """Send unit vectors through every block at once, one in each row of a batch."""
    size = recorded.attention(0).d_head
    writes: dict[str, list[HeadColumns]] = {}
    for layer, name in ports:
        found = recorded.attention(layer).projections[name]
        writes.setdefault(found.path, []).append(found)
    trace = recorded.model.trace(
        recorded.tokens.repeat(size, 1),
        capture=[f"blocks.{layer}.attn.{name}[head=0]" for layer, name in ports],
        interventions=[_unit_vectors(path, columns, size) for path, columns in writes.items()],
        logits=None,
    )
    return {
        (layer, name): trace[f"blocks.{layer}.attn.{name}[head=0]"][:, :, 0]
        .double().cpu().transpose(0, 1) / AMPLITUDE
        for layer, name in ports
    }  # fmt: skip


def _unit_vectors(path: str, columns: list[HeadColumns], size: int) -> Intervention:
    """Return what replaces a projection's output: row r holds a multiple of unit vector r."""

    def write(value: torch.Tensor) -> torch.Tensor:
        new = torch.zeros_like(value).reshape(size, -1, value.shape[-1])
        for found in columns:
            chosen = torch.as_tensor(found.columns, device=value.device)
            for row in range(size):
                new[row, :, chosen[:, row]] = AMPLITUDE / found.scale
        return new.reshape(value.shape)

    return at(f"module:{path}:out").apply(write)


def find_score_scale(recorded: Recorded, layer: int) -> float:
    """Return the factor between query times key and the score of a block.

    A second prompt of other tokens gives other queries and keys under the same masks and position
    biases; the scores' change over the products' change is the factor.

    Raises:
        ModelSupportError: If the change is not proportional (a soft cap).
    """
    sites = [f"blocks.{layer}.attn.{name}" for name in ("q", "k", "scores")]
    places = torch.arange(1, recorded.length + 1, device=recorded.tokens.device)
    others = (recorded.tokens + places) % recorded.anatomy.vocab
    other = recorded.model.trace(others, capture=sites, logits=None)
    values = [[recorded.value(s) for s in sites], [other.value(s)[0].double().cpu() for s in sites]]
    size = recorded.attention(layer).n_heads // recorded.attention(layer).n_kv_heads
    products = [torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(size, 1)) for q, k, _ in values]
    seen = (values[0][2] > MASKED) & (values[1][2] > MASKED)
    change = (products[1] - products[0])[seen]
    moved = (values[1][2] - values[0][2])[seen]
    square = float(change @ change)
    scale = float(change @ moved) / max(square, 1e-30)
    error = float((moved - scale * change).abs().max()) / max(float(moved.abs().max()), 1e-12)
    if error > max(AGREEMENT, tolerance(recorded.model.dtype)):
        raise ModelSupportError(
            f"Block {layer}: scores are not proportional to query times key (relative error "
            f"{error:.1e}): a soft cap bends them. They cannot be split in this model."
        )
    return scale
