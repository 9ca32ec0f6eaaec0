"""The activation store: harvested shards, opened for training."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from microtome.sae.harvesting.tensors import TensorActivations


class ActivationStore:
    """A folder of harvested activations."""

    @staticmethod
    def of(values: Tensor | Mapping[str, Tensor]) -> TensorActivations:
        """Return activations in memory with the interface of a store.

        Args:
            values: ``[rows, width]``, or site to such a tensor with the same rows.

        Raises:
            ShapeError: If a tensor has another shape or type, or holds NaN or infinities.
            EmptyDataError: If there are no rows.
        """
        return TensorActivations(values)
