"""Batches from anything that can give rows of shards: gathered in order, one batch ahead."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from microtome.errors import ConfigError, UnknownNameError, nearest
from microtome.sae.activations import Batches
from microtome.sae.harvesting.moments import Moments
from microtome.sae.harvesting.order import Draw, RowOrder


class Streamed(ABC):
    """Activations whose rows lie in numbered shards; see :mod:`microtome.sae.activations`.

    Args:
        sizes: Rows of each shard.
        widths: Width of each site's rows, in the sites' order.
    """

    def __init__(self, sizes: Sequence[int], widths: Mapping[str, int]) -> None:
        self._sizes = tuple(sizes)
        self._widths = dict(widths)

    @abstractmethod
    def _values(self, shard: int, site: str) -> Tensor:
        """Return the rows of a site in a shard, ``[rows, width]``, without copying them."""

    @abstractmethod
    def _sums(self, site: str) -> Moments:
        """Return the sums over the rows of a site."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, in the order of a batch's keys."""
        return tuple(self._widths)

    @property
    def rows(self) -> int:
        """Rows of one epoch."""
        return sum(self._sizes)

    def width(self, site: str) -> int:
        """Return the width of the rows of a site.

        Raises:
            UnknownNameError: If there is no such site.
        """
        self._require(site)
        return self._widths[site]

    def mean(self, site: str) -> Tensor:
        """Return the mean row of a site, ``[width]`` in float64.

        Raises:
            UnknownNameError: If there is no such site.
        """
        return self.moments(site).mean

    def scale(self, site: str) -> float:
        """Return the factor that makes the mean squared norm of a site's rows their width.

        Raises:
            UnknownNameError: If there is no such site.
            DataError: If all rows are zero.
        """
        return self.moments(site).scale

    def moments(self, site: str) -> Moments:
        """Return the sums over the rows of a site.

        Raises:
            UnknownNameError: If there is no such site.
        """
        self._require(site)
        return self._sums(site)

    def batches(
        self,
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        sites: Sequence[str] | None = None,
    ) -> Batches:
        """Return the endless stream of batches from batch ``start`` on.

        Args:
            batch_size: Rows of a batch.
            seed: Decides the order of the rows.
            start: Number of the first batch, 0 or more.
            sites: Sites to read, all by default.

        Returns:
            Batches: site to ``[batch_size, width]`` float32.

        Raises:
            ConfigError: If a number is out of range.
            UnknownNameError: If there is no such site.
            FormatError: While reading, if a shard is missing or damaged.
        """
        chosen = self.sites if sites is None else tuple(sites)
        for name, value, least in (("batch_size", batch_size, 1), ("start", start, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name}={value!r}; expected an integer from {least}.")
        for site in chosen:
            self._require(site)
        return self._stream(RowOrder(self._sizes, seed), batch_size, start, chosen)

    def _require(self, site: str) -> None:
        if site not in self._widths:
            raise UnknownNameError(f"No activations of {site!r}{nearest(site, self._widths)}.")

    def _stream(
        self, order: RowOrder, batch_size: int, start: int, sites: tuple[str, ...]
    ) -> Batches:
        """Yield batches; a thread reads the next one while the reader works on this one."""
        with ThreadPoolExecutor(1, thread_name_prefix="microtome-batches") as pool:
            ahead = pool.submit(self._batch, order, start * batch_size, batch_size, sites)
            for number in itertools.count(start + 1):
                batch = ahead.result()
                ahead = pool.submit(self._batch, order, number * batch_size, batch_size, sites)
                yield batch

    def _batch(
        self, order: RowOrder, first: int, count: int, sites: tuple[str, ...]
    ) -> dict[str, Tensor]:
        """Return rows ``first`` to ``first + count - 1`` of the stream."""
        batch: dict[str, Tensor] = {}
        for draw in order.draws(first, count):
            for site in sites:
                values = self._values(draw.shard, site)
                if site not in batch:
                    batch[site] = torch.empty(
                        count, values.shape[1], dtype=torch.float32, device=values.device
                    )
                _put(batch[site], draw, values)
        return {site: batch[site] for site in sites}


def _put(batch: Tensor, draw: Draw, values: Tensor) -> None:
    """Copy drawn rows to their places."""
    rows = torch.from_numpy(draw.rows).to(values.device)
    if isinstance(draw.places, slice):
        if values.dtype == batch.dtype:
            torch.index_select(values, 0, rows, out=batch[draw.places])
        else:
            batch[draw.places] = values.index_select(0, rows)
        return
    places = torch.from_numpy(draw.places).to(values.device)
    batch.index_copy_(0, places, values.index_select(0, rows).float())
