"""The format of SAELens 6, ``cfg.json`` and ``sae_weights.safetensors``; older forms are read."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microtome.errors import FormatError, SiteError
from microtome.sae.architecture import Activation, Architecture
from microtome.sae.coder import SAE, Origin
from microtome.sae.folding import fold_scale
from microtome.sae.formats.parts import DTYPES, Tensors, fitting, read_json, want, whole
from microtome.store.arrays import save_arrays
from microtome.store.atomic import write_json
from microtome.tracing.aliases import translate

NAME = "saelens"
CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"

WRITTEN_VERSION = "6.54.12"
"""The version whose format is written; without one, SAELens takes files for its older format."""

_ACTIVATIONS: dict[str, Activation] = {
    "standard": "relu",
    "topk": "topk",
    "abstopk": "abstopk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "batchtopk",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}

_NAMES: dict[Activation, str] = {
    "relu": "standard",
    "topk": "topk",
    "abstopk": "abstopk",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "gated": "gated",
}

_TRANSCODERS: dict[Activation, str] = {
    "relu": "transcoder",
    "jumprelu": "jumprelu_transcoder",
    "batchtopk": "jumprelu_transcoder",
}


def recognizes(place: Path) -> bool:
    """Return whether a place holds this format."""
    return (place / CONFIG).is_file() and (place / WEIGHTS).is_file()


def objection(coder: SAE) -> str:
    """Return why a coder cannot be written in this format, empty if it can."""
    make = coder.architecture
    if make.encoder == "kronecker":
        return "SAELens has no Kronecker encoder"
    if make.reach != "all" or len(make.sources) > 1 or len(make.targets) > 1:
        return "SAELens has coders of one site, or from one site to one, only"
    if _is_transcoder(make) and make.activation not in _TRANSCODERS:
        return f"SAELens has no transcoder with activation {make.activation!r}"
    if _is_transcoder(make) and make.center:
        return "SAELens's transcoders subtract no bias from the input; set center=False"
    return ""


def _is_transcoder(make: Architecture) -> bool:
    return make.skip or make.d_in != make.d_out


def write(coder: SAE, folder: Path, dtype: torch.dtype) -> None:
    """Write a coder into an empty folder."""
    make = coder.architecture
    weights = {name: value.detach().to(dtype) for name, value in coder.weights.items()}
    tensors = {"W_dec": weights["W_dec"], "b_dec": weights["b_dec"]}
    tensors["W_enc"] = weights["W_dec" if make.encoder == "tied" else "W_enc"].T
    for name in ("b_enc", "b_gate", "r_mag", "b_mag", "W_skip"):
        if name in weights:
            tensors[name] = weights[name]
    if "threshold" in weights:
        tensors["threshold"] = coder.weights["threshold"].detach()
    save_arrays(folder / WEIGHTS, {name: t.contiguous() for name, t in tensors.items()})
    write_json(folder / CONFIG, _config(coder, dtype))


def _config(coder: SAE, dtype: torch.dtype) -> dict[str, Any]:
    make = coder.architecture
    name = _NAMES[make.activation]
    if _is_transcoder(make):
        name = _TRANSCODERS[make.activation]
        name = name.replace("transcoder", "skip_transcoder") if make.skip else name
    config: dict[str, Any] = {
        "architecture": name,
        "d_in": make.d_in,
        "d_sae": make.d_sae,
        "dtype": next(text for text, kind in DTYPES.items() if kind == dtype),
        "device": "cpu",
        "apply_b_dec_to_input": make.center,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": _metadata(coder),
    }
    if make.activation in ("topk", "abstopk"):
        config |= {"k": make.k, "rescale_acts_by_decoder_norm": False}
    if _is_transcoder(make):
        config["d_out"] = make.d_out
    return config


def _metadata(coder: SAE) -> dict[str, Any]:
    known = dict(coder.origin.details.get("saelens", {}).get("metadata", {}))
    known |= {"sae_lens_version": WRITTEN_VERSION, "sae_lens_training_version": None}
    if coder.origin.model:
        known["model_name"] = coder.origin.model
    for field, sites in (
        ("hook_name", coder.origin.sources),
        ("hook_name_out", coder.origin.targets),
    ):
        if not sites or (field == "hook_name_out" and sites == coder.origin.sources):
            continue
        if _sites(known.get(field)) != (sites[0],):
            known[field] = _hook(sites[0])
    known.setdefault("training_architecture", coder.architecture.activation)
    return known


def _hook(site: str) -> str:
    """Return the TransformerLens name of a site where there is one, else the site."""
    found = re.fullmatch(
        r"blocks\.(\d+)\.(resid_pre|resid_mid|resid_post|attn\.out|mlp\.out)", site
    )
    if found:
        return f"blocks.{found[1]}.hook_{found[2].replace('.', '_')}"
    return re.sub(r"^(blocks\.\d+\.attn)\.(z|v)$", r"\1.hook_\2", site)


def read(place: Path) -> SAE:
    """Read a coder, of version 6 or of the flat format before it.

    Raises:
        FormatError: A file is missing or damaged, the architecture is not known, or inputs are
            normalized row by row, which no weights can take over.
    """
    path = place / CONFIG
    config = _current(read_json(path), path)
    name = config.get("architecture", "standard")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise FormatError(
            f"architecture in {path} is {name!r}; expected one of {', '.join(_ACTIVATIONS)}"
        )
    tensors = Tensors.read(place / WEIGHTS)
    make = fitting(path, lambda: _architecture(config, name, tensors, path))
    weights = _weights(make, tensors)
    if "b_enc" in weights and config.get("rescale_acts_by_decoder_norm"):
        norms = weights["W_dec"].norm(dim=1).clamp_min(1e-12)
        weights["W_enc"] = weights["W_enc"] * norms[:, None]
        weights["b_enc"] = weights["b_enc"] * norms
        weights["W_dec"] = weights["W_dec"] / norms[:, None]
    coder = SAE(make, origin=_origin(config), weights=weights)
    _fold_normalization(coder, config, place)
    return coder


def _current(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a configuration in the form of version 6, whichever it has."""
    metadata = config.get("metadata") or {}
    want({"metadata": metadata}, "metadata", dict, path)
    config = {name: value for name, value in config.items() if name != "metadata" or metadata}
    version = config.get("sae_lens_version") or metadata.get("sae_lens_version")
    if version and (major := re.match(r"\d+", str(version))) is None:
        raise FormatError(f"sae_lens_version in {path} is {version!r}; expected one such as 6.0.0")
    if version and major and int(major[0]) >= 6:
        return config
    names = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}
    flat = {names.get(name, name): value for name, value in config.items()}
    kind = flat.get("activation_fn", flat.get("activation_fn_str"))
    if kind not in (None, "relu", "topk"):
        raise FormatError(f"activation_fn in {path} is {kind!r}; expected 'relu' or 'topk'")
    if kind == "topk":
        flat["architecture"] = "topk"
        options = flat.get("activation_fn_kwargs") or {}
        want({"activation_fn_kwargs": options}, "activation_fn_kwargs", dict, path)
        flat["k"] = options.get("k", flat.get("k"))
    if isinstance(flat.get("normalize_activations"), bool):
        scaled = flat["normalize_activations"]
        flat["normalize_activations"] = "expected_average_only_in" if scaled else "none"
    flat.setdefault("apply_b_dec_to_input", True)
    flat.setdefault("metadata", {k: v for k, v in flat.items() if k in _FLAT_METADATA})
    return flat


_FLAT_METADATA = (
    "model_name",
    "hook_name",
    "hook_name_out",
    "hook_head_index",
    "context_size",
    "prepend_bos",
    "dataset_path",
    "neuronpedia_id",
)


def _architecture(config: dict[str, Any], name: str, tensors: Tensors, path: Path) -> Architecture:
    d_in, d_sae = want(config, "d_in", int, path), want(config, "d_sae", int, path)
    activation = _ACTIVATIONS[name]
    transcodes = "transcoder" in name
    trained = name in ("batchtopk", "matryoshka_batchtopk")
    if trained and "topk_threshold" not in tensors.values:
        activation = "topk" if "threshold" not in tensors.values else "jumprelu"
    counts = activation in ("topk", "abstopk", "batchtopk")
    return Architecture(
        d_in,
        d_sae,
        d_out=want(config, "d_out", int, path) if transcodes else d_in,
        activation=activation,
        k=whole(want(config, "k", (int, float), path), "k", path) if counts else 0,
        skip="skip" in name,
        center=not transcodes and bool(want(config, "apply_b_dec_to_input", bool, path)),
    )


def _weights(make: Architecture, tensors: Tensors) -> dict[str, Tensor]:
    factor = tensors.values.get("scaling_factor")
    if factor is not None and not bool((factor == 1).all()):
        raise FormatError(
            f"{tensors.path} has a fine-tuned scaling_factor of each latent, which SAELens 6 no "
            "longer has either; fold it into the weights there"
        )
    weights = {
        "W_enc": tensors.take("W_enc", make.d_in, make.d_sae).T.contiguous(),
        "W_dec": tensors.take("W_dec", make.d_sae, make.d_out),
        "b_dec": tensors.take("b_dec", make.d_out),
    }
    names = ("b_gate", "r_mag", "b_mag") if make.activation == "gated" else ("b_enc",)
    weights |= {name: tensors.take(name, make.d_sae) for name in names}
    if make.skip:
        weights["W_skip"] = tensors.take("W_skip", make.d_out, make.d_in)
    if make.activation == "batchtopk":
        weights["threshold"] = tensors.take("topk_threshold").float().expand(make.d_sae).clone()
    if make.activation == "jumprelu":
        weights["threshold"] = tensors.take("threshold", make.d_sae)
    return weights


def _origin(config: dict[str, Any]) -> Origin:
    metadata = config.get("metadata", {})
    sources = _sites(metadata.get("hook_name"))
    targets = _sites(metadata.get("hook_name_out")) or sources
    model = metadata.get("model_name") or ""
    return Origin(sources, targets, str(model), details={"saelens": {"metadata": metadata}})


def _sites(hook: Any) -> tuple[str, ...]:
    """Return the site of a hook name, none where it is not known by one of the same value."""
    if not isinstance(hook, str):
        return ()
    try:
        return (translate(hook),)
    except SiteError:
        return ()


def _fold_normalization(coder: SAE, config: dict[str, Any], place: Path) -> None:
    kind = config.get("normalize_activations") or "none"
    if kind == "none":
        return
    scaler = place / SCALER
    if kind == "expected_average_only_in" and scaler.is_file():
        scale = want(read_json(scaler), "scaling_factor", (int, float), scaler)
        if not 0 < scale < math.inf:
            raise FormatError(f"scaling_factor in {scaler} is {scale}; expected a positive number")
        fold_scale(coder, float(scale))
        return
    if kind == "expected_average_only_in":
        raise FormatError(
            f"{place / CONFIG} asks for inputs of average norm sqrt(d_in), and {SCALER} with the "
            "factor is missing; save it from SAELens, which folds the factor in"
        )
    raise FormatError(
        f"{place / CONFIG} normalizes inputs by {kind!r}, row by row or by a whitening; expected "
        "'none': such coders are not read"
    )
