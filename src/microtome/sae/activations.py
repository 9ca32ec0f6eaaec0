"""Activations as training data: rows of one or several sites, in one shuffled, endless stream.

This is the one interface between what holds activations (a folder of shards that ``harvest`` wrote,
or tensors in memory) and what reads them (training, evaluation, the index of latents).

    data = ActivationStore("folder")                     # harvested; or, in memory:
    data = ActivationStore.of(tensor)                    # one site, called "activations"
    data = ActivationStore.of({"blocks.0.mlp.in": x, "blocks.0.mlp.out": y})

    data.sites           ("blocks.0.mlp.in", "blocks.0.mlp.out")
    data.rows            rows of one epoch, masked ones left out; the sites' rows belong together
    data.width(site)     d
    data.mean(site)      [d] float64
    data.scale(site)     c such that E ||c x||^2 = d, about zero
    data.fingerprint     a hash of the rows: what a checkpoint notes, and compares on resume

    with contextlib.closing(data.batches(2048, seed=0, start=step)) as stream:
        for batch in stream:                             # {site: [batch_size, d] float32}
            ...

**The stream.** All rows in a random order, then all in another order, and so on without end.
Batch ``n`` holds rows ``n * batch_size`` to ``(n + 1) * batch_size - 1`` of that stream, so every
batch is full and one may lie across two epochs. The stream is a function of the data and the seed
alone; it depends neither on the batch size nor on the sites asked for. Batch ``n`` is therefore the
same, bit for bit, whether it was reached from batch 0 or with ``start=n`` in another process: **the
cursor of a checkpoint is the number of batches read**, one integer.

**The tensors** of a batch are fresh: the reader may change them in place. They are float32, on the
processor for shards and on the tensors' own device for tensors in memory. They are not scaled or
centered.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Batches = Generator["dict[str, Tensor]", None, None]
"""An endless stream of batches; closing it stops the thread that reads ahead."""


class Activations(Protocol):
    """Rows of one or several sites that can be read in shuffled batches; see the module's text."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, in the order of a batch's keys."""

    @property
    def rows(self) -> int:
        """Rows of one epoch."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 that tells these rows from others."""

    def width(self, site: str) -> int:
        """Return the width of the rows of a site.

        Raises:
            UnknownNameError: If there is no such site.
        """

    def mean(self, site: str) -> Tensor:
        """Return the mean row of a site, ``[width]`` in float64.

        Raises:
            UnknownNameError: If there is no such site.
        """

    def scale(self, site: str) -> float:
        """Return the factor that makes the mean squared norm of a site's rows their width.

        Raises:
            UnknownNameError: If there is no such site.
            DataError: If all rows are zero.
        """

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


def sites_named(activations: Activations, names: Sequence[str]) -> tuple[str, ...]:
    """Return sites of activations by name; one without a block means that of every block.

    Args:
        activations: The data.
        names: Names such as ``"blocks.3.mlp.in"``, or ``"mlp.in"``. Unknown ones stay as they are.
    """
    found: list[str] = []
    for name in names:
        everywhere = [
            s for s in activations.sites if re.fullmatch(rf"blocks\.\d+\.{re.escape(name)}", s)
        ]
        found += [name] if name in activations.sites or not everywhere else everywhere
    return tuple(found)
