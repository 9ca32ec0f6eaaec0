"""The index of active latents: one pass over a text, stored by token and by latent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from microtome.errors import EmptyDataError, SelectorError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from microtome.sae.reading.neurons import Neurons
    from microtome.sae.reconstruction import Reconstruction


Activity = tuple[NDArray[np.int32], NDArray[np.float32]]
"""Positions at which something is active, growing, and how strongly."""


@dataclass(frozen=True, eq=False)
class Sparse:
    """Rows of numbered values, most of them 0.

    Attributes:
        offsets: Where each row begins, and the total ``[row + 1]``, int64.
        numbers: Column of each entry, int32.
        values: Value of each entry, float32.
    """

    offsets: NDArray[np.int64]
    numbers: NDArray[np.int32]
    values: NDArray[np.float32]

    def row(self, number: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return the columns and values of one row."""
        entries = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
        return self.numbers[entries], self.values[entries]

    def transposed(self, columns: int) -> Sparse:
        """Return the same entries by column, rows growing within each."""
        order = np.argsort(self.numbers, kind="stable")
        rows = np.repeat(np.arange(len(self.offsets) - 1, dtype=np.int32), np.diff(self.offsets))
        counts = np.bincount(self.numbers, minlength=columns)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Sparse(offsets, rows[order], self.values[order])


@dataclass(frozen=True, eq=False)
class LatentIndex:
    """Where in a text each latent of a coder is active, and how strongly.

    Positions number the tokens of all contexts, one context after the other; special tokens are in
    ``ids`` and carry no latents.

    Attributes:
        ids: Token ids ``[position]``, int32.
        contexts: First position of each context, and the total ``[context + 1]``.
        documents: Number of the document of each context ``[context]``.
        special: Whether a position holds a special token, which is not encoded ``[position]``.
        by_token: Latents of each position.
        by_latent: Positions of each latent.
        d_sae: Number of latents.
        details: Model, coder, text and settings.
        vocabulary: Text of each token id that occurs, by id.
        reconstruction: How well the coder rebuilds the encoded positions; None if unknown.
        neurons: Neurons that go with the latents; None if they were not read.
    """

    ids: NDArray[np.int32]
    contexts: NDArray[np.int64]
    documents: NDArray[np.int32]
    special: np.ndarray
    by_token: Sparse
    by_latent: Sparse
    d_sae: int
    details: dict[str, Any]
    vocabulary: dict[int, str]
    reconstruction: Reconstruction | None = None
    neurons: Neurons | None = None

    @property
    def n_tokens(self) -> int:
        """Positions that were encoded."""
        return int(len(self.ids) - self.special.sum())

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Number of positions at which each latent is active ``[latent]``."""
        return np.diff(self.by_latent.offsets)

    @cached_property
    def density(self) -> NDArray[np.float64]:
        """Share of the encoded positions at which each latent is active ``[latent]``."""
        return self.counts / max(1, self.n_tokens)

    @cached_property
    def largest(self) -> NDArray[np.float32]:
        """Largest activation of each latent ``[latent]``, 0 where it never is active."""
        found = np.zeros(self.d_sae, dtype=np.float32)
        alive = self.counts > 0
        starts = self.by_latent.offsets[:-1][alive]
        if len(starts):
            found[alive] = np.maximum.reduceat(np.abs(self.by_latent.values), starts)
        return found

    @cached_property
    def sums(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sum of each latent's activations, and of their squares ``[latent]``."""
        numbers, values = self.by_token.numbers, self.by_token.values.astype(np.float64)
        sums = [np.bincount(numbers, part, minlength=self.d_sae) for part in (values, values**2)]
        return sums[0].astype(np.float64), sums[1].astype(np.float64)

    def positions(self, latent: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return where a latent is active and how strongly, positions growing.

        Raises:
            SelectorError: There is no such latent.
        """
        if not 0 <= latent < self.d_sae:
            raise SelectorError(f"there is no latent {latent}; there are {self.d_sae} from 0")
        return self.by_latent.row(latent)

    @cached_property
    def context_ids(self) -> NDArray[np.int64]:
        """The context in which each position lies ``[position]``."""
        return np.repeat(np.arange(len(self.contexts) - 1), np.diff(self.contexts))

    def context_of(self, positions: NDArray[Any]) -> NDArray[np.int64]:
        """Return the context in which each of some positions lies."""
        found: NDArray[np.int64] = self.context_ids[positions]
        return found

    def text_of(self, position: int) -> str:
        """Return the text of the token at a position."""
        return self.vocabulary.get(int(self.ids[position]), "")

    def matrix(self) -> csr_matrix:
        """Return the activations as a SciPy matrix ``[position, latent]`` that shares memory."""
        from scipy.sparse import csr_matrix

        rows = self.by_token
        return csr_matrix(
            (rows.values, rows.numbers, rows.offsets), shape=(len(self.ids), self.d_sae)
        )

    def save(self, folder: str | Path) -> Path:
        """Write the index as a folder of safetensors files and a manifest.

        Raises:
            OutputError: The folder could not be written.
        """
        from microtome.sae.reading.index_files import write_index

        return write_index(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read an index.

        Raises:
            FormatError: A file is missing, damaged, newer, or does not fit the others.
        """
        from microtome.sae.reading.index_files import read_index

        return cls(**read_index(Path(folder)))

    def require_active(self, latent: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return where a latent is active.

        Raises:
            EmptyDataError: It is active nowhere in this text.
            SelectorError: There is no such latent.
        """
        positions, values = self.positions(latent)
        if not len(positions):
            raise EmptyDataError(
                f"latent {latent} is active at none of the {self.n_tokens:,} tokens of the index; "
                "choose another latent or index more text"
            )
        return positions, values
