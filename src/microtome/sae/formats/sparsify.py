"""The format of sparsify 1.3: ``cfg.json`` and ``sae.safetensors``, one folder for each site."""

from __future__ import annotations

from pathlib import Path

import torch

from microtome.errors import FormatError
from microtome.sae.architecture import Architecture
from microtome.sae.coder import SAE, Origin
from microtome.sae.formats.parts import Tensors, fitting, read_json, want, whole
from microtome.store.arrays import save_arrays
from microtome.store.atomic import write_json

NAME = "sparsify"
CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def recognizes(place: Path) -> bool:
    """Return whether a place holds this format."""
    return (place / CONFIG).is_file() and (place / WEIGHTS).is_file()


def objection(coder: SAE) -> str:
    """Return why a coder cannot be written in this format, empty if it can."""
    make = coder.architecture
    if make.activation != "topk":
        return f"sparsify has no activation {make.activation!r}, only topk"
    if make.encoder == "kronecker" or make.reach != "all" or len(make.sources) > 1:
        return "sparsify has dense encoders from one site to one site only"
    if make.d_in != make.d_out:
        return f"sparsify's output is as wide as its input; here {make.d_in} and {make.d_out}"
    if make.skip and make.center:
        return "sparsify has skip connections in transcoders only, which subtract no bias"
    return ""


def write(coder: SAE, folder: Path, dtype: torch.dtype) -> None:
    """Write a coder into an empty folder."""
    make, weights = coder.architecture, coder.weights
    tensors = {
        "encoder.weight": weights["W_dec" if make.encoder == "tied" else "W_enc"],
        "encoder.bias": weights["b_enc"],
        "W_dec": weights["W_dec"],
        "b_dec": weights["b_dec"],
    }
    if make.skip:
        tensors["W_skip"] = weights["W_skip"]
    save_arrays(folder / WEIGHTS, {k: v.detach().to(dtype) for k, v in tensors.items()})
    write_json(
        folder / CONFIG,
        {
            "activation": "topk",
            "expansion_factor": max(1, make.d_sae // make.d_in),
            "normalize_decoder": True,
            "num_latents": make.d_sae,
            "k": make.k,
            "multi_topk": False,
            "skip_connection": make.skip,
            "transcode": not make.center,
            "d_in": make.d_in,
        },
    )


def read(place: Path) -> SAE:
    """Read a coder.

    Raises:
        FormatError: A file is missing or damaged, or the activation is the inexact ``groupmax``.
    """
    path = place / CONFIG
    config = read_json(path)
    if config.get("activation", "topk") != "topk":
        raise FormatError(
            f"activation in {path} is {config['activation']!r}; expected 'topk': groupmax keeps "
            "one latent of each group and has no counterpart here"
        )
    tensors = Tensors.read(place / WEIGHTS)
    d_in = want(config, "d_in", int, path)
    d_sae, _ = tensors.shape("encoder.weight", 2)
    if config.get("num_latents") not in (None, 0, d_sae):  # 0: by the expansion factor
        raise FormatError(
            f"num_latents in {path} is {config['num_latents']!r}, and encoder.weight has {d_sae}"
        )
    skip = bool(config.get("skip_connection", False))
    k = whole(want(config, "k", int, path), "k", path)
    center = not config.get("transcode", False)
    make = fitting(
        path,
        lambda: Architecture(d_in, d_sae, activation="topk", k=k, skip=skip, center=center),
    )
    weights = {
        "W_enc": tensors.take("encoder.weight", d_sae, d_in),
        "b_enc": tensors.take("encoder.bias", d_sae),
        "W_dec": tensors.take("W_dec", d_sae, d_in),
        "b_dec": tensors.take("b_dec", d_in),
    }
    if skip:
        weights["W_skip"] = tensors.take("W_skip", d_in, d_in)
    return SAE(make, origin=Origin(details={"sparsify": config}), weights=weights)
