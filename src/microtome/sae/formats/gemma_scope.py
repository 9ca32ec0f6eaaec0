"""The format of Gemma Scope's raw weights: one ``params.npz`` of a JumpReLU coder."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from microtome.errors import FormatError
from microtome.sae.architecture import Architecture
from microtome.sae.coder import SAE
from microtome.sae.formats.parts import Tensors, fitting
from microtome.store.atomic import atomic_file

NAME = "gemma-scope"
WEIGHTS = "params.npz"

_DAMAGES = (
    *(OSError, ValueError, TypeError, EOFError, KeyError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What numpy and zipfile raise on files that are damaged or none of theirs."""


def recognizes(place: Path) -> bool:
    """Return whether a place holds this format; the file itself may be given, too."""
    return place.suffix == ".npz" or (place / WEIGHTS).is_file()


def objection(coder: SAE) -> str:
    """Return why a coder cannot be written in this format, empty if it can."""
    make = coder.architecture
    if make.activation not in ("jumprelu", "batchtopk"):
        return f"Gemma Scope's files hold JumpReLU coders, and this one is {make.activation!r}"
    if make.encoder == "kronecker" or make.reach != "all" or make.skip or len(make.sources) > 1:
        return "Gemma Scope's files hold dense coders from one site to one site, without a skip"
    return ""


def write(coder: SAE, folder: Path, dtype: torch.dtype) -> None:
    """Write a coder into an empty folder; a subtracted bias is folded into the encoder's."""
    weights = {name: value.detach() for name, value in coder.weights.items()}
    encoder = weights["W_dec" if coder.architecture.encoder == "tied" else "W_enc"]
    bias = weights["b_enc"]
    if coder.architecture.center:
        bias = bias - encoder @ weights["b_dec"]
    arrays = {
        "W_enc": encoder.T,
        "W_dec": weights["W_dec"],
        "b_enc": bias,
        "b_dec": weights["b_dec"],
        "threshold": weights["threshold"],
    }
    if dtype == torch.bfloat16:
        raise FormatError("numpy files hold no bfloat16; write float32 or float16")
    plain = {
        name: value.to(value.dtype if name == "threshold" else dtype).cpu().contiguous().numpy()
        for name, value in arrays.items()
    }
    with atomic_file(folder / WEIGHTS) as temporary, temporary.open("wb") as handle:
        np.savez(handle, allow_pickle=False, **plain)


def read(place: Path) -> SAE:
    """Read a coder; Python objects in the file are refused.

    Raises:
        FormatError: The file is missing, damaged, holds objects, or an array does not fit.
    """
    path = place if place.suffix == ".npz" else place / WEIGHTS
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(np.ascontiguousarray(file[name])) for name in file}
    except _DAMAGES as error:
        raise FormatError(
            f"cannot read {path}: {error}; expected an .npz of plain arrays, whole"
        ) from error
    tensors = Tensors(path, arrays)
    d_in, d_sae = tensors.shape("W_enc", 2)
    _, d_out = tensors.shape("W_dec", 2)
    make = fitting(
        path,
        lambda: Architecture(d_in, d_sae, d_out=d_out, activation="jumprelu", center=False),
    )
    weights = {
        "W_enc": tensors.take("W_enc", d_in, d_sae).T.contiguous(),
        "W_dec": tensors.take("W_dec", d_sae, d_out),
        "b_enc": tensors.take("b_enc", d_sae),
        "b_dec": tensors.take("b_dec", d_out),
        "threshold": tensors.take("threshold", d_sae),
    }
    return SAE(make, weights=weights)
