"""The nodes of the attribution graph of one prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from microtome.circuits.latent_graphs.results import KINDS, Kind

if TYPE_CHECKING:
    from microtome.circuits.latent_graphs.frozen import FrozenModel


@dataclass(frozen=True, eq=False)
class Nodes:
    """The nodes of a prompt's graph: embeddings, errors, latents, logits, in this order.

    Attributes:
        kinds: Number of the kind ``[node]``.
        blocks: Block ``[node]``.
        positions: Position ``[node]``.
        numbers: Latent or token ``[node]``.
        values: Value of latents and logits ``[node]``.
        probabilities: Probability of logits ``[node]``.
        errors: What transcoders leave over of each block's MLP ``[pos, d_model]``.
        directions: What one unit of each active latent of a block adds at all that its transcoder
            writes ``[latent, d_out]``.
        places: Row of ``directions`` of each latent of a block, by node in the order of nodes.
    """

    kinds: NDArray[np.int8]
    blocks: NDArray[np.int32]
    positions: NDArray[np.int32]
    numbers: NDArray[np.int32]
    values: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    errors: Mapping[int, torch.Tensor]
    directions: Mapping[int, torch.Tensor]
    places: Mapping[int, torch.Tensor]

    @staticmethod
    def of(frozen: FrozenModel, probability: float, max_logits: int) -> Nodes:
        """Find the nodes of a prompt."""
        width = frozen.tokens.shape[1]
        ids = frozen.tokens[0].cpu().numpy()
        found = [_block_of_nodes("embedding", -1, np.arange(width), ids)]
        latents, errors, directions, places, made = [], {}, {}, {}, {}
        for block, one in frozen.transcoders.items():
            with torch.no_grad():
                dense = one.encode(frozen.recorded(block))[0]
                made[block] = one.decode(dense)
            where = dense.nonzero()
            used, places[block] = where[:, 1].unique(return_inverse=True)
            directions[block] = one.directions(used)
            at, number = where.cpu().numpy().T
            values = dense[where[:, 0], where[:, 1]].float().cpu().numpy()
            latents.append(_block_of_nodes("latent", block, at, number, values))
        for block in frozen.writers:
            given = frozen.written(block)
            for number, part in frozen.written_by(block).items():
                given = given - made[number][:, part]
            errors[block] = given
            none = np.full(width, -1)
            found.append(_block_of_nodes("error", block, np.arange(width), none))
        found += [*latents, _logits(frozen, probability, max_logits)]
        kinds, blocks, positions, numbers, values, chances = (
            np.concatenate(column) for column in zip(*found, strict=True)
        )
        return Nodes(kinds, blocks, positions, numbers, values, chances, errors, directions, places)

    def which(self, kind: Kind, block: int | None = None) -> NDArray[np.int64]:
        """Return the numbers of the nodes of a kind, of one block if given."""
        mask = self.kinds == KINDS.index(kind)
        return np.flatnonzero(mask if block is None else mask & (self.blocks == block))

    @property
    def logits(self) -> NDArray[np.int64]:
        """Numbers of the logits."""
        return self.which("logit")


Columns = tuple[
    NDArray[np.int8],
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.float32],
    NDArray[np.float32],
]


def _block_of_nodes(
    kind: Kind,
    block: int,
    positions: NDArray[np.integer],
    numbers: NDArray[np.integer],
    values: NDArray[np.float32] | None = None,
    probabilities: NDArray[np.float32] | None = None,
) -> Columns:
    size = len(positions)
    return (
        np.full(size, KINDS.index(kind), dtype=np.int8),
        np.full(size, block, dtype=np.int32),
        positions.astype(np.int32),
        numbers.astype(np.int32),
        np.full(size, np.nan, dtype=np.float32) if values is None else values,
        np.zeros(size, dtype=np.float32) if probabilities is None else probabilities,
    )


def _logits(frozen: FrozenModel, probability: float, most: int) -> Columns:
    """Return the fewest logits that reach a probability; their values less the mean of all."""
    logits = frozen.trace.last()[0].double()
    chance, order = logits.softmax(-1).sort(descending=True, stable=True)
    count = min(most, int((chance.cumsum(0) < probability).sum()) + 1)
    ids, chance = order[:count], chance[:count]
    raw = frozen.unembed(frozen.final[0, -1]).double()
    values = (raw[ids] - raw.mean()).float().cpu().numpy()
    place = np.full(len(ids), frozen.tokens.shape[1] - 1)
    return _block_of_nodes(
        "logit", frozen.anatomy.n_layers, place, ids.cpu().numpy(), values,
        chance.float().cpu().numpy(),
    )  # fmt: skip
