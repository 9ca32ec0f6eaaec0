"""An index of active latents on disk: safetensors files and a manifest, whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.errors import FormatError
from microtome.sae.formats.parts import read_json, want
from microtome.sae.reading.index import LatentIndex, Sparse
from microtome.sae.reading.neurons import Neurons
from microtome.sae.reconstruction import Reconstruction
from microtome.store.arrays import load_arrays, save_arrays
from microtome.store.atomic import atomic_folder, write_json

FORMAT, VERSION = "microtome.latent-index", 1
MANIFEST, TOKENS, BY_TOKEN, BY_LATENT, NEURONS, RECONSTRUCTION = (
    "index.json",
    "tokens.safetensors",
    "by-token.safetensors",
    "by-latent.safetensors",
    "neurons.safetensors",
    "reconstruction.json",
)


def write_index(index: LatentIndex, folder: Path) -> Path:
    """Write an index.

    Raises:
        OutputError: The folder could not be written.
    """
    with atomic_folder(folder) as place:
        names = ("ids", "contexts", "documents", "special")
        save_arrays(place / TOKENS, {name: getattr(index, name) for name in names})
        for name, rows in ((BY_TOKEN, index.by_token), (BY_LATENT, index.by_latent)):
            arrays = {"offsets": rows.offsets, "numbers": rows.numbers, "values": rows.values}
            save_arrays(place / name, arrays)
        neurons = index.neurons
        if neurons is not None:
            arrays = {k: getattr(neurons, k) for k in ("numbers", "pearson", "cosine")}
            save_arrays(place / NEURONS, arrays)
        if index.reconstruction is not None:
            index.reconstruction.save(place / RECONSTRUCTION)
        write_json(
            place / MANIFEST,
            {
                "format": FORMAT,
                "version": VERSION,
                "d_sae": index.d_sae,
                "details": index.details,
                "neurons": neurons.site if neurons is not None else None,
                "reconstruction": index.reconstruction is not None,
                "vocabulary": {str(i): text for i, text in index.vocabulary.items()},
            },
        )
    return folder


def read_index(place: Path) -> dict[str, Any]:
    """Read the fields of an index.

    Raises:
        FormatError: A file is missing, damaged, newer, or does not fit the others.
    """
    file = place / MANIFEST
    manifest = read_json(file)
    if manifest.get("format") != FORMAT or want(manifest, "version", int, file) > VERSION:
        raise FormatError(
            f"{file} is {manifest.get('format')!r} version {manifest.get('version')!r}; expected "
            f"{FORMAT!r} up to version {VERSION}"
        )
    d_sae = want(manifest, "d_sae", int, file)
    tokens, sparse = _positions(place, d_sae)
    names = want(manifest, "vocabulary", dict, file)
    if not all(i.isdecimal() and isinstance(text, str) for i, text in names.items()):
        raise FormatError(f"vocabulary in {file} maps other than ids to texts")
    site = manifest.get("neurons")
    measured = manifest.get("reconstruction") is True
    return {
        **tokens,
        "by_token": sparse[0],
        "by_latent": sparse[1],
        "d_sae": d_sae,
        "details": want(manifest, "details", dict, file),
        "vocabulary": {int(i): text for i, text in names.items()},
        "neurons": _neurons(place, site, d_sae) if isinstance(site, str) else None,
        "reconstruction": Reconstruction.load(place / RECONSTRUCTION) if measured else None,
    }


def _positions(place: Path, d_sae: int) -> tuple[dict[str, Any], list[Sparse]]:
    """Read tokens and entries, which must fit one another."""
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
            f"{len(sparse[0].values)} and {len(sparse[1].values)} entries; build the index again"
        )
    return tokens, sparse


def _neurons(place: Path, site: str, d_sae: int) -> Neurons:
    found = _arrays(place / NEURONS, ("numbers", "pearson", "cosine"), axes=2)
    if len({a.shape for a in found.values()}) > 1 or len(found["numbers"]) != d_sae:
        raise FormatError(f"{place / NEURONS} does not hold the neurons of {d_sae} latents")
    return Neurons(site, **found)


def _arrays(path: Path, names: tuple[str, ...], *, axes: int = 1) -> dict[str, Any]:
    """Read the arrays of a file, which must have these names, and so many axes."""
    found = load_arrays(path)
    if set(found) != set(names) or any(array.ndim != axes for array in found.values()):
        raise FormatError(
            f"{path} holds {', '.join(found) or 'nothing'}; expected {', '.join(names)} of {axes} "
            f"ax{'i' if axes == 1 else 'e'}s"
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
