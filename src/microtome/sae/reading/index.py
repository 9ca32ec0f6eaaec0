"""The index of active latents: one pass over a text, stored by token and by latent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from microtome.errors import EmptyDataError, FormatError, SelectorError
from microtome.store.arrays import load_arrays, save_arrays
from microtome.store.atomic import atomic_folder, write_json

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FORMAT, VERSION = "microtome.latent-index", 1
MANIFEST, TOKENS, BY_TOKEN, BY_LATENT = (
    "index.json",
    "tokens.safetensors",
    "by-token.safetensors",
    "by-latent.safetensors",
)


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
    """

    ids: NDArray[np.int32]
    contexts: NDArray[np.int64]
    documents: NDArray[np.int32]
    special: NDArray[np.bool_]
    by_token: Sparse
    by_latent: Sparse
    d_sae: int
    details: dict[str, Any]
    vocabulary: dict[int, str]

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
        with atomic_folder(folder) as place:
            save_arrays(
                place / TOKENS,
                {
                    "ids": self.ids,
                    "contexts": self.contexts,
                    "documents": self.documents,
                    "special": self.special,
                },
            )
            for name, rows in ((BY_TOKEN, self.by_token), (BY_LATENT, self.by_latent)):
                arrays = {"offsets": rows.offsets, "numbers": rows.numbers, "values": rows.values}
                save_arrays(place / name, arrays)
            write_json(
                place / MANIFEST,
                {
                    "format": FORMAT,
                    "version": VERSION,
                    "d_sae": self.d_sae,
                    "details": self.details,
                    "vocabulary": {str(i): text for i, text in self.vocabulary.items()},
                },
            )
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read an index.

        Raises:
            FormatError: A file is missing, damaged, newer, or does not fit the others.
        """
        from microtome.sae.formats.parts import read_json, want

        place = Path(folder)
        manifest = read_json(place / MANIFEST)
        if (
            manifest.get("format") != FORMAT
            or want(manifest, "version", int, place / MANIFEST) > VERSION
        ):
            raise FormatError(
                f"{place / MANIFEST} is {manifest.get('format')!r} version "
                f"{manifest.get('version')!r}; expected {FORMAT!r} up to version {VERSION}"
            )
        d_sae = want(manifest, "d_sae", int, place / MANIFEST)
        tokens = _arrays(place / TOKENS, ("ids", "contexts", "documents", "special"))
        size = len(tokens["ids"])
        sparse = [
            Sparse(**_arrays(place / name, ("offsets", "numbers", "values")))
            for name in (BY_TOKEN, BY_LATENT)
        ]
        whole = (
            len(tokens["special"]) == size
            and len(tokens["documents"]) + 1 == len(tokens["contexts"])
            and _bounds(tokens["contexts"], size)
            and _fits(sparse[0], size, d_sae)
            and _fits(sparse[1], d_sae, size)
            and len(sparse[0].values) == len(sparse[1].values)
        )
        if not whole:
            raise FormatError(
                f"the files in {place} do not fit together: {size} tokens, {d_sae} latents, "
                f"{len(sparse[0].values)} and {len(sparse[1].values)} entries; build the index "
                "again"
            )
        names = want(manifest, "vocabulary", dict, place / MANIFEST)
        if not all(i.isdecimal() and isinstance(text, str) for i, text in names.items()):
            raise FormatError(f"vocabulary in {place / MANIFEST} maps other than ids to texts")
        return cls(
            **tokens,
            by_token=sparse[0],
            by_latent=sparse[1],
            d_sae=d_sae,
            details=want(manifest, "details", dict, place / MANIFEST),
            vocabulary={int(i): text for i, text in names.items()},
        )

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


def _arrays(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Read the arrays of a file, which must have these names and one axis each."""
    found = load_arrays(path)
    if set(found) != set(names) or any(array.ndim != 1 for array in found.values()):
        raise FormatError(
            f"{path} holds {', '.join(found) or 'nothing'}; expected rows of {', '.join(names)}"
        )
    return found


def _bounds(offsets: NDArray[Any], total: int) -> bool:
    """Return whether offsets grow from 0 to a total."""
    ends = len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == total
    return bool(ends and (np.diff(offsets) >= 0).all())


def _fits(rows: Sparse, n_rows: int, columns: int) -> bool:
    """Return whether offsets and columns are within their bounds."""
    fits = len(rows.offsets) == n_rows + 1 and len(rows.numbers) == len(rows.values)
    if not fits or not _bounds(rows.offsets, len(rows.values)):
        return False
    return not len(rows.numbers) or bool(rows.numbers.min() >= 0 and rows.numbers.max() < columns)
