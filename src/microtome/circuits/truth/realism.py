"""What makes a compiled program look like a trained model while its circuit stays known.

Decoys read from the whole residual stream and write, loudly, to a sub-space that only decoys read;
dead heads write where nothing reads at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from microtome.circuits.truth.heads import HeadWeights
from microtome.circuits.truth.neurons import Neurons
from microtome.circuits.truth.rasp import Correction, Operation, Vote
from microtome.errors import ConfigError

Copies = Literal["none", "either", "vote", "backup"]
COPIES: tuple[Copies, ...] = get_args(Copies)


@dataclass(frozen=True)
class Realism:
    """How a program is hidden.

    Attributes:
        rotate: Turn the residual stream, and the inside of every head, by random rotations.
        decoy_heads: Decoy heads of every block.
        dead_heads: Dead heads of every block.
        decoy_neurons: Decoy neurons of every MLP.
        spare_blocks: Blocks of nothing but decoys, behind the program.
        loudness: How much larger decoys write than the program does.
        copies: ``none``; ``either``: a second copy of the whole program in parallel, one of which
            is enough (OR); ``vote``: three copies, two of which decide; ``backup``: a second copy
            that writes only where the first is wrong.
    """

    rotate: bool = True
    decoy_heads: int = 1
    dead_heads: int = 1
    decoy_neurons: int = 8
    spare_blocks: int = 1
    loudness: float = 3.0
    copies: Copies = "none"

    def __post_init__(self) -> None:
        if self.copies not in COPIES:
            raise ConfigError(f"copies={self.copies!r}; expected one of {', '.join(COPIES)}.")
        counts = (self.decoy_heads, self.dead_heads, self.decoy_neurons, self.spare_blocks)
        if min(counts) < 0:
            raise ConfigError(f"The numbers of decoys are {counts}; expected at least 0 each.")


PLAIN = Realism(rotate=False, decoy_heads=0, dead_heads=0, decoy_neurons=0, spare_blocks=0)
"""Nothing is hidden; a dead head in every block, and what else the shape leaves over, fill it."""

DECOY_WIDTH, DEAD_WIDTH = 6, 2
"""Coordinates that only decoys read, and coordinates that nothing reads."""


def copied(first: Operation, second: Operation, third: Operation, copies: Copies) -> Operation:
    """Return a program made of as many of three equal, separate programs as are asked for."""
    if copies == "either":
        return Vote((first, second), 1)
    if copies == "vote":
        return Vote((first, second, third), 2)
    if copies == "backup":
        return Correction(first, second)
    return first


@dataclass(frozen=True, eq=False)
class Decoys:
    """Draws decoy and dead parts.

    Attributes:
        used: Coordinates of the program, from 0.
        width: Width of the residual stream.
        loudness: How much larger decoys write than the program does.
        random: Source of chance.
    """

    used: int
    width: int
    loudness: float
    random: np.random.Generator

    @property
    def own(self) -> slice:
        """The coordinates that only decoys read."""
        return slice(self.used, self.width - DEAD_WIDTH)

    @property
    def dead(self) -> slice:
        """The coordinates that nothing reads."""
        return slice(self.width - DEAD_WIDTH, self.width)

    def head(self, size: int, *, dead: bool) -> HeadWeights:
        """Return a decoy head, or a dead one."""
        query, key, value = (self._reads(size) for _ in range(3))
        output = np.zeros((size, self.width))
        target = self.dead if dead else self.own
        output[:, target] = self._noise(size, len(range(self.width)[target]))
        return HeadWeights(
            query, key, value, self.loudness * output, self.random.standard_normal(size)
        )

    def add_neurons(self, neurons: Neurons, count: int) -> None:
        """Add decoy neurons."""
        writes = np.zeros((count, self.width))
        writes[:, self.own] = self._noise(count, len(range(self.width)[self.own]))
        reads = self._reads(count).T
        neurons.extend(reads, self.random.standard_normal(count), self.loudness * writes)

    def embedding(self, rows: int) -> np.ndarray:
        """Return what an embedding table writes to the decoys' sub-space ``[row, d_model]``."""
        table = np.zeros((rows, self.width))
        target = self.own
        table[:, target] = self.random.standard_normal((rows, len(range(self.width)[target])))
        return table

    def _reads(self, size: int) -> np.ndarray:
        """Return weights ``[d_model, size]`` that read all but the dead coordinates."""
        weights = self._noise(self.width, size) * np.sqrt(self.width)
        weights[: self.used] *= 1.5
        weights[self.own] /= self.loudness * np.sqrt(self.width)
        weights[self.dead] = 0.0
        return np.asarray(weights / np.sqrt(size))

    def _noise(self, rows: int, columns: int) -> np.ndarray:
        noise = self.random.standard_normal((rows, columns))
        return np.asarray(noise / np.sqrt(max(rows, 1)))


def rotation(size: int, random: np.random.Generator) -> np.ndarray:
    """Return a random rotation ``[size, size]`` (Haar measure; Mezzadri 2007)."""
    q, r = np.linalg.qr(random.standard_normal((size, size)))
    return np.asarray(q * np.sign(np.diag(r)))
