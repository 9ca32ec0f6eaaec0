"""Rows of direct effects: backward passes through the frozen model, one target in each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from microtome.circuits.latent_graphs.frozen import FrozenModel, Read
    from microtome.circuits.latent_graphs.nodes import Nodes


@dataclass(eq=False)
class Rows:
    """The rows of effects that were computed so far.

    Attributes:
        frozen: The frozen model.
        nodes: The nodes.
        batch_size: Rows of a backward pass.
        targets: Nodes that the rows enter.
        effects: One row of effects ``[source]`` for each.
        readers: What each target reads ``[d_in]``, and its own constant: one of each.
    """

    frozen: FrozenModel
    nodes: Nodes
    batch_size: int
    targets: list[int] = field(default_factory=list)
    effects: list[NDArray[np.float32]] = field(default_factory=list)
    readers: list[tuple[torch.Tensor, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._leaves = [self._leaf(self.frozen.embedding)]
        self._leaves += [self._leaf(self.frozen.written(b)) for b in self.frozen.writers]
        added = dict(zip(self.frozen.writers, self._leaves[1:], strict=True))
        self._read = self.frozen.run(self._leaves[0], added)

    def _leaf(self, value: torch.Tensor) -> torch.Tensor:
        return value.detach().repeat(self.batch_size, 1, 1).requires_grad_(True)

    def follow(self, targets: NDArray[np.int64]) -> None:
        """Compute the effects on some more targets."""
        for start in range(0, len(targets), self.batch_size):
            some = targets[start : start + self.batch_size]
            read = self._readers(some)
            aims = [
                (self.reading(self._read, int(n))[row].to(vector.dtype) * vector).sum()
                for row, (n, (vector, _)) in enumerate(zip(some, read, strict=True))
            ]
            slopes = torch.autograd.grad(
                torch.stack(aims).sum(), self._leaves, retain_graph=True, allow_unused=True
            )
            found = self._products(
                [None if s is None else s[: len(some)] for s in slopes], len(some)
            )
            self.targets += some.tolist()
            self.effects += list(found)
            self.readers += read

    def reading(self, read: Read, target: int) -> torch.Tensor:
        """Return what a target reads in a pass ``[row, d_in]``."""
        if self.nodes.blocks[target] == self.frozen.anatomy.n_layers:
            return read.final[:, -1]
        place = int(self.nodes.positions[target])
        return read.inputs[int(self.nodes.blocks[target])][:, place]

    def _readers(self, targets: NDArray[np.int64]) -> list[tuple[torch.Tensor, float]]:
        """Return by which direction each target reads, and what it has beside that."""
        nodes = self.nodes
        found: dict[int, tuple[torch.Tensor, float]] = {}
        for block in {int(b) for b in nodes.blocks[targets]}:
            some = [int(n) for n in targets if nodes.blocks[n] == block]
            numbers = torch.as_tensor(nodes.numbers[some], device=self.frozen.tokens.device).long()
            if block == self.frozen.anatomy.n_layers:
                rows = self.frozen.final[0, -1:].expand(len(some), -1)
                vectors = self.frozen.unembedding(numbers).to(rows.dtype)
            else:
                rows, vectors = self._encoder_rows(block, nodes.positions[some], numbers)
            values = torch.as_tensor(nodes.values[some]).double()
            own = values - (rows.double() * vectors.double()).sum(1).cpu()
            found |= {n: (v, float(c)) for n, v, c in zip(some, vectors, own, strict=True)}
        return [found[int(n)] for n in targets]

    def _encoder_rows(
        self, block: int, positions: NDArray[np.int32], numbers: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what active latents read and the slope of each there ``[latent, d_in]``."""
        value = self.frozen.recorded(block)
        rows = value[:, torch.as_tensor(positions, device=value.device).long()].flatten(2)
        leaf = rows.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            latents = self.frozen.transcoders[block].encode(leaf)
            picked = latents[0, torch.arange(len(numbers)), numbers].sum()
        slope = torch.autograd.grad(picked, leaf)[0]
        return rows[0], slope[0]

    def _products(self, slopes: list[torch.Tensor | None], count: int) -> NDArray[np.float32]:
        """Return slopes times what each source adds ``[target, source]``."""
        nodes = self.nodes
        found = np.zeros((count, len(nodes.kinds)), dtype=np.float32)
        first = slopes[0]
        if first is not None:
            found[:, nodes.which("embedding")] = _dot(first, self.frozen.embedding)
        reached = dict(zip(self.frozen.writers, slopes[1:], strict=True))
        for block, slope in reached.items():
            if slope is not None:
                found[:, nodes.which("error", block)] = _dot(slope, nodes.errors[block])
        for block in self.frozen.transcoders:
            latents = nodes.which("latent", block)
            for position in np.unique(nodes.positions[latents]):
                here = np.flatnonzero(nodes.positions[latents] == position)
                unit = self._units(block, torch.as_tensor(here), int(position), reached)
                if unit is not None:
                    found[:, latents[here]] = unit * nodes.values[latents[here]]
        return found

    def _units(
        self,
        block: int,
        here: torch.Tensor,
        position: int,
        slopes: Mapping[int, torch.Tensor | None],
    ) -> NDArray[np.float32] | None:
        """Return the effect of one unit of latents at a position, by all MLPs they write.

        Args:
            block: Their block.
            here: Their numbers among the latent nodes of the block.
            position: The position.
            slopes: Slopes at each MLP's output ``[target, pos, d_model]``, by block.
        """
        rows = self.nodes.directions[block][self.nodes.places[block][here]]
        found: torch.Tensor | None = None
        for target, part in self.frozen.targets_of(block).items():
            slope = slopes[target]
            if slope is not None:
                unit = slope[:, position].to(rows.dtype) @ rows[:, part].T
                found = unit if found is None else found + unit
        return None if found is None else found.float().cpu().numpy()

    def without_sources(self) -> NDArray[np.float64]:
        """Return what each target is where nothing but biases is added ``[target]``."""
        frozen = self.frozen
        added = {}
        for block in frozen.writers:
            given = torch.zeros_like(frozen.written(block))
            for number, part in frozen.written_by(block).items():
                one = frozen.transcoders[number]
                nothing = torch.zeros(1, one.codec.d_sae, dtype=one.dtype, device=given.device)
                with torch.no_grad():
                    given = given + one.decode(nothing)[:, part]
            added[block] = given.unsqueeze(0)
        read = frozen.run(torch.zeros_like(frozen.embedding).unsqueeze(0), added)
        found = [
            float((self.reading(read, n)[0].detach().double() * vector.double()).sum()) + own
            for n, (vector, own) in zip(self.targets, self.readers, strict=True)
        ]
        return np.array(found)


def _dot(slope: torch.Tensor, value: torch.Tensor) -> NDArray[np.float32]:
    """Return slopes ``[target, pos, d]`` times values ``[pos, d]`` as ``[target, pos]``."""
    found: NDArray[np.float32] = (slope * value).sum(-1).detach().float().cpu().numpy()
    return found
