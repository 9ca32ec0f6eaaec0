"""microtome's own format: every make of coder, ``sae.json`` and ``sae.safetensors``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from microtome.errors import FormatError
from microtome.sae.architecture import Architecture
from microtome.sae.coder import SAE, Origin, weight_shapes
from microtome.sae.formats.parts import Tensors, fitting, read_json, want
from microtome.store.arrays import save_arrays
from microtome.store.atomic import write_json

NAME = "microtome"
CONFIG, WEIGHTS = "sae.json", "sae.safetensors"
FORMAT, VERSION = "microtome.sae", 1


def recognizes(place: Path) -> bool:
    """Return whether a place holds this format."""
    return (place / CONFIG).is_file()


def objection(coder: SAE) -> str:
    """Return why a coder cannot be written; every one can."""
    return ""


def write(coder: SAE, folder: Path, dtype: torch.dtype) -> None:
    """Write a coder into an empty folder."""
    tensors = {
        name: value.detach().to(value.dtype if name == "threshold" else dtype)
        for name, value in coder.weights.items()
    }
    save_arrays(folder / WEIGHTS, tensors)
    write_json(
        folder / CONFIG,
        {
            "format": FORMAT,
            "version": VERSION,
            "architecture": coder.architecture.to_dict(),
            "origin": asdict(coder.origin),
        },
    )


def read(place: Path) -> SAE:
    """Read a coder.

    Raises:
        FormatError: A file is missing, damaged, newer, or does not fit the other.
    """
    path = place / CONFIG
    config = read_json(path)
    if config.get("format") != FORMAT:
        raise FormatError(f"{path} has format {config.get('format')!r}; expected {FORMAT!r}")
    version = want(config, "version", int, path)
    if version > VERSION:
        raise FormatError(
            f"{path} is of version {version}; this microtome reads up to {VERSION}: update it"
        )
    described = want(config, "architecture", dict, path)
    make = fitting(path, lambda: Architecture.of(described))
    known = _origin(want(config, "origin", dict, path), path)
    tensors = Tensors.read(place / WEIGHTS)
    weights = {name: tensors.take(name, *shape) for name, shape in weight_shapes(make).items()}
    return SAE(make, origin=known, weights=weights)


def _origin(values: dict[str, Any], path: Path) -> Origin:
    """Return the origin that a file states."""
    for name in ("sources", "targets"):
        if not all(isinstance(site, str) for site in want(values, name, list, path)):
            raise FormatError(f"{name} of the origin in {path} are {values[name]}; expected sites")
    for name, kind in (("model", str), ("fingerprint", str), ("details", dict)):
        want(values, name, kind, path)
    return Origin(
        tuple(values["sources"]),
        tuple(values["targets"]),
        values["model"],
        values["fingerprint"],
        values["details"],
    )
