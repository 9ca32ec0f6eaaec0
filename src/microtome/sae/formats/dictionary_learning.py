"""The format of dictionary_learning: ``ae.pt`` and ``config.json`` of one trainer.

``ae.pt`` is a PyTorch archive. It is the only one microtome reads, and through the reader that
builds tensors and nothing else (``weights_only``), so that it cannot run code.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microtome.errors import FormatError
from microtome.sae.architecture import Activation, Architecture
from microtome.sae.coder import SAE, Origin
from microtome.sae.formats.parts import Tensors, fitting, read_json, want, whole
from microtome.store.atomic import write_bytes, write_json

NAME = "dictionary-learning"
CONFIG, WEIGHTS = "config.json", "ae.pt"

_ACTIVATIONS: dict[str, Activation] = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batchtopk",
    "MatryoshkaBatchTopKSAE": "batchtopk",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
}

_CLASSES: dict[Activation, tuple[str, str]] = {
    "relu": ("AutoEncoder", "StandardTrainer"),
    "topk": ("AutoEncoderTopK", "TopKTrainer"),
    "batchtopk": ("BatchTopKSAE", "BatchTopKTrainer"),
    "gated": ("GatedAutoEncoder", "GatedSAETrainer"),
    "jumprelu": ("JumpReluAutoEncoder", "JumpReluTrainer"),
}


def recognizes(place: Path) -> bool:
    """Return whether a place holds this format."""
    return (place / CONFIG).is_file() and (place / WEIGHTS).is_file()


def objection(coder: SAE) -> str:
    """Return why a coder cannot be written in this format, empty if it can."""
    make = coder.architecture
    if make.activation not in _CLASSES:
        return f"dictionary_learning has no activation {make.activation!r}"
    if make.encoder == "kronecker" or make.reach != "all" or make.skip or len(make.sources) > 1:
        return "dictionary_learning has dense coders of one site only, without a skip connection"
    if make.d_in != make.d_out:
        return f"dictionary_learning reads and writes one width; here {make.d_in} and {make.d_out}"
    if make.activation == "batchtopk" and len(coder.weights["threshold"].unique()) > 1:
        return "a BatchTopK coder there has one threshold; here they differ, so write 'jumprelu'"
    return ""


def write(coder: SAE, folder: Path, dtype: torch.dtype) -> None:
    """Write a coder into an empty folder."""
    make = coder.architecture
    weights = {name: value.detach().cpu() for name, value in coder.weights.items()}
    if make.encoder == "tied":
        weights["W_enc"] = weights["W_dec"]
    taken = weights["W_enc"] @ weights["b_dec"]
    if not make.center and make.activation != "jumprelu":
        # The classes subtract the bias always; add what they will take away.
        if make.activation == "gated":
            weights["b_gate"] = weights["b_gate"] + taken
            weights["b_mag"] = weights["b_mag"] + weights["r_mag"].exp() * taken
        else:
            weights["b_enc"] = weights["b_enc"] + taken
    if make.center and make.activation == "jumprelu":
        weights["b_enc"] = weights["b_enc"] - taken
    stored = {
        name: value.to(value.dtype if name == "threshold" else dtype)
        for name, value in weights.items()
    }
    written = io.BytesIO()  # PyTorch's own errors of a full disk are of no kind one could catch
    torch.save({k: v.contiguous().clone() for k, v in _written(make, stored).items()}, written)
    write_bytes(folder / WEIGHTS, written.getvalue())
    class_name, trainer = _CLASSES[make.activation]
    details: dict[str, Any] = {
        "trainer_class": trainer,
        "dict_class": class_name,
        "activation_dim": make.d_in,
        "dict_size": make.d_sae,
    }
    if make.k:
        details["k"] = make.k
    write_json(folder / CONFIG, {"trainer": details, "buffer": {}})


def _written(make: Architecture, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    if make.activation == "jumprelu":
        return {
            "W_enc": weights["W_enc"].T,
            "W_dec": weights["W_dec"],
            "b_enc": weights["b_enc"],
            "b_dec": weights["b_dec"],
            "threshold": weights["threshold"],
        }
    linear = {"encoder.weight": weights["W_enc"], "decoder.weight": weights["W_dec"].T}
    if make.activation == "gated":
        return linear | {
            "decoder_bias": weights["b_dec"],
            "r_mag": weights["r_mag"],
            "gate_bias": weights["b_gate"],
            "mag_bias": weights["b_mag"],
        }
    linear["encoder.bias"] = weights["b_enc"]
    if make.activation == "relu":
        return linear | {"bias": weights["b_dec"]}
    threshold = weights["threshold"][0] if "threshold" in weights else torch.tensor(-1.0)
    return linear | {
        "b_dec": weights["b_dec"],
        "k": torch.tensor(make.k),
        "threshold": threshold,
    }


def read(place: Path) -> SAE:
    """Read a coder.

    Raises:
        FormatError: A file is missing or damaged, the class is not known, or a tensor does not fit.
    """
    path = place / CONFIG
    trainer = want(read_json(path), "trainer", dict, path)
    name = want(trainer, "dict_class", str, path)
    if name not in _ACTIVATIONS:
        raise FormatError(
            f"dict_class in {path} is {name!r}; expected one of {', '.join(_ACTIVATIONS)}"
        )
    tensors = Tensors(place / WEIGHTS, _load(place / WEIGHTS))
    activation = _ACTIVATIONS[name]
    flat = "W_enc" in tensors.values
    d_in, d_sae = tensors.shape("W_enc", 2) if flat else tensors.shape("encoder.weight", 2)[::-1]
    weights = _weights(tensors, activation, flat=flat, d_in=d_in, d_sae=d_sae)
    k = _k(tensors, trainer, path) if activation in ("topk", "batchtopk") else 0
    make = fitting(
        path,
        lambda: Architecture(
            d_in,
            d_sae,
            activation=activation,
            k=k,
            prefixes=_prefixes(tensors),
            center=activation != "jumprelu" and name != "AutoEncoderNew",
        ),
    )
    details = {"dictionary_learning": trainer}
    return SAE(make, origin=Origin(details=details), weights=weights)


def _weights(
    tensors: Tensors, activation: Activation, *, flat: bool, d_in: int, d_sae: int
) -> dict[str, Tensor]:
    if flat:
        encoder = tensors.take("W_enc", d_in, d_sae).T
        decoder = tensors.take("W_dec", d_sae, d_in)
        bias: Tensor | None = tensors.take("b_enc", d_sae)
    else:
        encoder = tensors.take("encoder.weight", d_sae, d_in)
        decoder = tensors.take("decoder.weight", d_in, d_sae).T
        bias = None if activation == "gated" else tensors.take("encoder.bias", d_sae)
    biases = ("bias", "decoder_bias", "decoder.bias")
    found = next((name for name in biases if name in tensors.values), "b_dec")
    weights = {
        "W_enc": encoder.contiguous(),
        "W_dec": decoder.contiguous(),
        "b_dec": tensors.take(found, d_in),
    }
    if bias is not None:
        weights["b_enc"] = bias
    if activation == "gated":
        names = {"b_gate": "gate_bias", "r_mag": "r_mag", "b_mag": "mag_bias"}
        weights |= {ours: tensors.take(theirs, d_sae) for ours, theirs in names.items()}
    if activation == "jumprelu":
        weights["threshold"] = tensors.take("threshold", d_sae)
    if activation == "batchtopk":
        weights["threshold"] = tensors.take("threshold").expand(d_sae).clone()
    return weights


def _k(tensors: Tensors, trainer: dict[str, Any], path: Path) -> int:
    if "k" in tensors.values:
        return tensors.number("k")
    return whole(want(trainer, "k", int, path), "k", path)


def _prefixes(tensors: Tensors) -> tuple[int, ...]:
    """Return how many latents each prefix of a Matryoshka coder has, none for other coders."""
    sizes = tensors.values.get("group_sizes")
    if sizes is None:
        return ()
    if sizes.dim() != 1 or sizes.is_floating_point():
        raise FormatError(f"group_sizes in {tensors.path} is {sizes}; expected whole numbers")
    return tuple(sizes.cumsum(0).tolist())


def _load(path: Path) -> dict[str, Tensor]:
    try:
        # Tensors and plain containers only: anything else in the archive is an error.
        values = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # the reader lets errors of every kind through
        raise FormatError(
            f"cannot read {path} as tensors alone: {str(error).splitlines()[0]}; expected a state "
            "dictionary saved by dictionary_learning"
        ) from error
    if not isinstance(values, dict) or not all(isinstance(v, Tensor) for v in values.values()):
        raise FormatError(f"{path} holds no dictionary of tensors; expected a state dictionary")
    return values
