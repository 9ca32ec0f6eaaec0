"""The order in which rows of several shards are read: random, endless, and known by position.

An epoch puts the shards in a random order and cuts that into groups of at most eight. The rows of a
group are mixed with one another evenly; so only a group's shards are open at a time, and a row's
neighbors in a batch come from all of them. As shards are themselves even samples of the documents,
the mixture is close to that of all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from microtome.core.seeds import rng

OPEN_SHARDS = 8
"""Shards that are mixed at a time."""


@dataclass(frozen=True)
class Draw:
    """Some rows of one shard and where they go in a batch.

    Attributes:
        shard: Number of the shard.
        rows: Rows of the shard; ascending where several shards are mixed, since those are files.
        places: Rows of the batch, one for each, or a slice of them.
    """

    shard: int
    rows: NDArray[np.int64]
    places: NDArray[np.int64] | slice


class RowOrder:
    """The endless order of the rows of shards under one seed.

    Args:
        sizes: Rows of each shard.
        seed: Decides the order.
        open_shards: Shards that are mixed at a time.

    Raises:
        ConfigError: If the seed is not an integer from 0.
    """

    def __init__(self, sizes: Sequence[int], seed: int, *, open_shards: int = OPEN_SHARDS) -> None:
        rng(seed, "order of shards")  # refuses a seed that is none here, not in a reader's thread
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._seed = seed
        self._n_groups = -(-len(self._sizes) // open_shards)
        self.rows = int(self._sizes.sum())
        # a batch may need the end of one group and the start of the next
        self._mixed = lru_cache(maxsize=2)(self._mix)
        self._groups = lru_cache(maxsize=2)(self._group)

    def draws(self, first: int, count: int) -> Iterator[Draw]:
        """Yield the draws that make up rows ``first`` to ``first + count - 1`` of the stream."""
        place = 0
        while place < count:
            epoch, inside = divmod(first + place, self.rows)
            groups = self._groups(epoch)
            ends = np.cumsum([int(self._sizes[g].sum()) for g in groups])
            number = int(np.searchsorted(ends, inside, side="right"))
            taken = min(count - place, int(ends[number]) - inside)
            order = self._mixed(epoch, number)
            begin = inside - (int(ends[number]) - len(order))
            yield from self._split(groups[number], order[begin : begin + taken], place)
            place += taken

    def _group(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the shards of each group of an epoch; groups differ by one shard at most."""
        shards = rng(self._seed, "order of shards", str(epoch)).permutation(len(self._sizes))
        return [g for g in np.array_split(shards, self._n_groups) if self._sizes[g].sum()]

    def _mix(self, epoch: int, number: int) -> NDArray[np.integer]:
        """Return the order of a group's rows, counted through its shards."""
        size = int(self._sizes[self._groups(epoch)[number]].sum())
        kind = np.int32 if size < 2**31 else np.int64
        stream = rng(self._seed, "order of rows", str(epoch), str(number))
        return stream.permutation(np.arange(size, dtype=kind))

    def _split(
        self, shards: NDArray[np.int64], chosen: NDArray[np.integer], place: int
    ) -> Iterator[Draw]:
        """Yield one draw for each shard that some rows of a group belong to."""
        if len(shards) == 1:
            rows = chosen.astype(np.int64)
            yield Draw(int(shards[0]), rows, slice(place, place + len(rows)))
            return
        ends = np.cumsum(self._sizes[shards])
        # ascending rows are read from a file almost twice as fast as scattered ones
        sorting = np.argsort(chosen, kind="stable")
        ordered = chosen[sorting].astype(np.int64)
        bounds = np.searchsorted(ordered, ends)
        start = 0
        for shard, end, bound in zip(shards, ends, bounds, strict=True):
            if bound > start:
                rows = ordered[start:bound] - (end - self._sizes[shard])
                yield Draw(int(shard), rows, sorting[start:bound] + place)
            start = bound
