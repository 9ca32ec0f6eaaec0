"""The activation store: harvested shards, opened for training."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from microtome.errors import DataError, EmptyDataError, FormatError
from microtome.sae.harvesting.manifest import Manifest
from microtome.sae.harvesting.moments import Moments
from microtome.sae.harvesting.order import OPEN_SHARDS
from microtome.sae.harvesting.shards import open_shard
from microtome.sae.harvesting.streaming import Streamed
from microtome.sae.harvesting.tensors import TensorActivations

if TYPE_CHECKING:
    from microtome.tracing.model import Model


class ActivationStore(Streamed):
    """Activations that were harvested into a folder; see :mod:`microtome.sae.activations`.

    Shards are mapped from their files, so that a store may be larger than memory. Each is checked
    when it is first read: its size, its tensors and its hash.

    Args:
        folder: What :func:`microtome.sae.harvest` wrote.
        model: The model that the activations must be of; not compared if None.
        hashes: Whether to compare each shard's hash when it is first read.

    Attributes:
        folder: The folder.
        manifest: What the activations were made of.

    Raises:
        FormatError: If the manifest is missing or damaged, or the harvest not finished.
        EmptyDataError: If every row was masked.
        DataError: If the activations are of another model.
    """

    def __init__(
        self, folder: str | Path, *, model: Model | None = None, hashes: bool = True
    ) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        settings, shards = self.manifest.settings, self.manifest.shards
        if not self.manifest.complete:
            raise FormatError(
                f"The harvest in {folder} was stopped after {len(shards)} of {settings.shards} "
                "shards; finish it by the same harvest with resume."
            )
        if not self.manifest.rows:
            raise EmptyDataError(
                f"All {settings.tokens} tokens of {folder} were masked ({self.manifest.masked}); "
                "harvest other text or mask less."
            )
        super().__init__([s.rows for s in shards], settings.sites)
        if model is not None:
            self.require_model(model)
        self._hashes = hashes
        self._checked: set[int] = set()
        # two streams, of training and of evaluation, may each have their shards open
        self._open = lru_cache(maxsize=2 * OPEN_SHARDS)(self._opened)

    @staticmethod
    def of(values: Tensor | Mapping[str, Tensor]) -> TensorActivations:
        """Return activations in memory with the interface of a store.

        Args:
            values: ``[rows, width]``, or site to such a tensor with the same rows; floating point,
                of any type, on any device. They are not copied.

        Raises:
            ShapeError: If a tensor has another shape or type, or holds NaN or infinities.
            EmptyDataError: If there are no rows.

        Example:
            >>> import torch
            >>> from microtome.sae import ActivationStore
            >>> data = ActivationStore.of(torch.eye(4))
            >>> next(data.batches(6, seed=0))["activations"].shape
            torch.Size([6, 4])
        """
        return TensorActivations(values)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the settings of the harvest and the hashes of its shards."""
        return self.manifest.fingerprint

    def require_model(self, model: Model) -> None:
        """Refuse a model other than the one that the activations are of.

        Raises:
            DataError: If its weights or its beginning-of-sequence rule differ.
        """
        settings = self.manifest.settings
        if model.fingerprint != settings.model:
            raise DataError(
                f"The activations in {self.folder} are of another model: "
                f"{self.manifest.origin.get('model')!r} with fingerprint {settings.model[:12]}, "
                f"not {model.name!r} with {model.fingerprint[:12]}. Harvest them from this model, "
                "or open that one."
            )
        if model.bos != settings.bos:
            raise DataError(
                f"The activations in {self.folder} were harvested with bos={settings.bos}, the "
                f"model is opened with bos={model.bos}; open it with the same rule."
            )

    def verify(self) -> None:
        """Check every shard: its size, its tensors and its hash.

        Raises:
            FormatError: If one is missing, truncated or changed.
        """
        for number, record in enumerate(self.manifest.shards):
            open_shard(self.folder, record, self.manifest.settings, hashed=True)
            self._checked.add(number)

    def shard(self, number: int) -> dict[str, Tensor]:
        """Return the tensors of a shard, mapped from its file: the sites and three columns.

        Args:
            number: 0 or more, below ``len(store.manifest.shards)``.

        Returns:
            Each site ``[rows, width]`` in the stored type; ``token_id``, ``doc`` (the document's
            number in the text) and ``pos`` (the token's place in the document, -1 for a
            beginning-of-sequence token), int32 ``[rows]``. They must not be changed.

        Raises:
            FormatError: If it is missing, truncated or changed.
        """
        return self._open(number)

    def _opened(self, number: int) -> dict[str, Tensor]:
        hashed = self._hashes and number not in self._checked
        record = self.manifest.shards[number]
        tensors = open_shard(self.folder, record, self.manifest.settings, hashed=hashed)
        self._checked.add(number)
        return tensors

    def _sums(self, site: str) -> Moments:
        return self.manifest.moments[site]

    def _values(self, shard: int, site: str) -> Tensor:
        return self._open(shard)[site]

    def __repr__(self) -> str:
        return (
            f"ActivationStore({str(self.folder)!r}: {self.rows:,} rows of "
            f"{', '.join(f'{s} [{self.width(s)}]' for s in self.sites)})"
        )
