"""Neurons that go with latents: correlations, added up in the pass that builds an index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microtome.errors import ConfigError, ShapeError, SiteError
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from microtome.sae.coder import SAE
    from microtome.sae.latents import SparseLatents
    from microtome.tracing.model import Model

MOST_ENTRIES = 2**28
"""Products of a latent and a neuron that are kept at most (2 GiB of float64)."""

KEPT = 10
"""Neurons kept of each latent."""


@dataclass(frozen=True, eq=False)
class Neurons:
    """The neurons of a site that correlate most with each latent of an index, in either direction.

    Attributes:
        site: Where the neurons are.
        numbers: Their numbers, the strongest first ``[latent, place]``, int32.
        pearson: Pearson's correlations with the latent over all encoded tokens, float32.
        cosine: Cosines with it, float32.
    """

    site: str
    numbers: NDArray[np.int32]
    pearson: NDArray[np.float32]
    cosine: NDArray[np.float32]


def neuron_site(model: Model, coder: SAE) -> str | None:
    """Return the neurons of the block that a coder reads last.

    None where there are none, or too many to be correlated with as many latents.
    """
    sources = coder.origin.sources
    if model.anatomy is None or coder.d_sae * model.anatomy.d_mlp > MOST_ENTRIES:
        return None
    layers = at(sources[-1]).layer if sources else None
    if not isinstance(layers, tuple) or len(layers) != 1:
        return None
    site = f"blocks.{layers[0]}.mlp.act"
    try:
        model.catalog.resolve(at(site))
    except SiteError:
        return None
    return site


class NeuronTally:
    """Adds up what correlations need, batch after batch, in float64.

    Args:
        site: Where the neurons are.
        d_sae: Number of latents.
        width: Number of neurons.

    Raises:
        ConfigError: There are too many pairs.
    """

    def __init__(self, site: str, d_sae: int, width: int) -> None:
        if d_sae * width > MOST_ENTRIES:
            raise ConfigError(
                f"{d_sae:,} latents and {width:,} neurons of {site} make too many pairs (at most "
                f"{MOST_ENTRIES:,}); index without neurons"
            )
        self.site = site
        self._n = 0
        self._latents = np.zeros((2, d_sae))
        self._neurons = np.zeros((2, width))
        self._both = np.zeros((d_sae, width))

    def add(self, latents: SparseLatents, neurons: Tensor) -> None:
        """Count rows: their latents, and their neurons ``[row, neuron]``.

        Raises:
            ShapeError: The rows do not match, or a neuron is not finite.
        """
        from scipy.sparse import csr_matrix

        if neurons.shape != (latents.n_rows, self._neurons.shape[1]):
            raise ShapeError(
                f"neurons of shape {tuple(neurons.shape)}; expected {latents.n_rows} rows, "
                f"{self._neurons.shape[1]} wide"
            )
        if not bool(torch.isfinite(neurons).all()):
            raise ShapeError(f"a neuron of {self.site} is NaN or infinite; check the model")
        dense = neurons.detach().double().cpu().numpy()
        values = latents.values.detach().double().cpu().numpy()
        numbers, offsets = latents.indices.cpu().numpy(), latents.offsets.cpu().numpy()
        rows = csr_matrix((values, numbers, offsets), shape=(latents.n_rows, latents.d_sae))
        self._n += latents.n_rows
        for power in (1, 2):
            weights = values**power
            self._latents[power - 1] += np.bincount(numbers, weights, minlength=latents.d_sae)
            self._neurons[power - 1] += (dense**power).sum(0)
        self._both += rows.T @ dense

    def result(self, *, n: int = KEPT) -> Neurons:
        """Return the strongest neurons of each latent; 0 where one of the two does not vary."""
        rows = max(1, self._n)
        spread = [
            np.where(s[1] - s[0] ** 2 / rows > 1e-10 * s[1], s[1] - s[0] ** 2 / rows, 0)
            for s in (self._latents, self._neurons)
        ]
        shared = self._both - np.outer(self._latents[0], self._neurons[0]) / rows
        pearson = _ratio(shared, np.sqrt(np.outer(*spread)))
        cosine = _ratio(self._both, np.sqrt(np.outer(self._latents[1], self._neurons[1])))
        order = np.argsort(-np.abs(pearson), axis=1, kind="stable")[:, :n]
        return Neurons(
            self.site,
            order.astype(np.int32),
            np.take_along_axis(pearson, order, 1).astype(np.float32),
            np.take_along_axis(cosine, order, 1).astype(np.float32),
        )


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
