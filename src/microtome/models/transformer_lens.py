"""TransformerLens state dicts as ordinary Hugging Face modules.

A state dict with learned positions, plain MLPs and norms in front (or none) is a GPT-2 of another
layout, and becomes one; without a causal mask where attention goes both ways. What else its
settings or tensors may ask for is refused with the reason. The settings are those of
``HookedTransformerConfig``, because tensors do not tell the activation function, for example.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from microtome.errors import ConfigError, ModelFileError, ModelSupportError, nearest
from microtome.models.gpt2 import bare_gpt2
from microtome.models.lens_tensors import LensTensors, Shape, read_tensors
from microtome.models.readout import Readout, parse_readout

Direction = Literal["causal", "bidirectional"]
Norms = Literal["LN", "LNPre"] | None

ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_fast",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "silu": "silu",
}
"""Activation functions by TransformerLens's name, and transformers' name of the same function."""

ONLY: Mapping[str, tuple[Any, ...]] = {
    "positional_embedding_type": ("standard",),
    "gated_mlp": (False,),
    "parallel_attn_mlp": (False,),
    "final_rms": (False,),
    "post_embedding_ln": (False,),
    "use_attn_scale": (True,),
    "use_local_attn": (False,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "use_normalization_before_and_after": (False,),
    "attn_scores_soft_cap": (None, -1.0),
    "output_logits_soft_cap": (None, -1.0),
    "n_key_value_heads": (None,),
    "num_experts": (None,),
}
"""Settings that change what is computed, and the values of which a GPT-2 does the same."""

SIZES = ("n_layers", "n_heads", "d_head", "d_model", "d_mlp", "n_ctx", "d_vocab", "d_vocab_out")
"""Settings that the tensors' shapes tell, too."""


@dataclass(frozen=True)
class LensSettings:
    """What a TransformerLens state dict does not say of itself.

    Attributes:
        act_fn: Activation function of the MLPs, a name of ``ACTIVATIONS``; None without MLPs.
        attention_dir: ``causal`` or ``bidirectional``.
        normalization_type: ``LN`` with weights, ``LNPre`` with weights folded away, or None.
        eps: Added to the variance in norms.
        attn_scale: What scores are divided by; the root of the head size by default.
        readout: Where the answer is read, and what the logits stand for.
        sizes: Sizes to be checked against the tensors, by name of ``SIZES``.

    Raises:
        ConfigError: If a value is unknown.
    """

    act_fn: str | None
    attention_dir: Direction = "causal"
    normalization_type: Norms = "LN"
    eps: float = 1e-5
    attn_scale: float | None = None
    readout: Readout = field(default_factory=Readout)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.act_fn is not None and self.act_fn not in ACTIVATIONS:
            raise ConfigError(f"act_fn={self.act_fn!r}{nearest(str(self.act_fn), ACTIVATIONS)}.")
        if self.attention_dir not in get_args(Direction):
            raise ConfigError(
                f"attention_dir={self.attention_dir!r}; expected causal or bidirectional."
            )
        if self.normalization_type not in ("LN", "LNPre", None):
            raise ConfigError(
                f"normalization_type={self.normalization_type!r}; expected LN, LNPre or None."
            )
        if not self.eps > 0 or not (self.attn_scale is None or self.attn_scale > 0):
            raise ConfigError(
                f"eps={self.eps}, attn_scale={self.attn_scale}; expected positive numbers."
            )
        if self.readout.place == "first" and self.attention_dir == "causal":
            raise ConfigError(
                "The answer is read at the first position, which sees nothing else of the prompt "
                "under causal attention."
            )


def is_lens_config(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration file is TransformerLens's, not Hugging Face's."""
    return "model_type" not in config and "act_fn" in config


def parse_settings(config: Mapping[str, Any]) -> LensSettings:
    """Return the settings in a saved ``HookedTransformerConfig``.

    Settings that do not change what is computed are passed over.

    Args:
        config: The file's content; ``readout`` may be among it.

    Raises:
        ModelSupportError: If a setting asks for what no GPT-2 computes.
        ConfigError: If a value is unknown.
    """
    for name, same in ONLY.items():
        if name in config and config[name] not in same:
            raise ModelSupportError(
                f"The settings ask for {name}={config[name]!r}; a TransformerLens state dict is "
                f"opened with {' or '.join(map(repr, same))} only. If the model comes from the "
                "Hugging Face hub, open it from there."
            )
    read = {k: config[k] for k in ("act_fn", "attention_dir", "normalization_type", "eps")
            if k in config}  # fmt: skip
    scale = config.get("attn_scale")
    sizes = {name: config[name] for name in SIZES if config.get(name) is not None}
    return LensSettings(
        **read,
        attn_scale=None if scale in (None, -1.0) else scale,
        readout=parse_readout(config.get("readout", {})),
        sizes=sizes,
    )


def open_folder(folder: str | Path) -> nn.Module | None:
    """Return the model of a folder that holds a TransformerLens state dict, or None for others.

    The folder holds ``config.json``, a ``HookedTransformerConfig`` as JSON, beside one file of
    tensors, safetensors or npz.

    Raises:
        ModelFileError: If there is not one file of tensors, or it does not fit.
        ModelSupportError: If it is no GPT-2 of another layout.
    """
    place = Path(folder)
    file = place / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(config, dict) or not is_lens_config(config):
        return None
    files = [f for s in ("*.safetensors", "*.npz") for f in sorted(place.glob(s))]
    if len(files) != 1:
        raise ModelFileError(f"{place} holds {len(files)} *.safetensors or *.npz; expected one.")
    found: nn.Module = load_state_dict(files[0], parse_settings(config))
    return found


def load_state_dict(source: str | Path | Mapping[str, torch.Tensor], settings: LensSettings) -> Any:
    """Return a TransformerLens state dict as a ``GPT2LMHeadModel``, for ``microtome.load``.

    A block without an MLP gets one of a single neuron that is always 0.

    Args:
        source: A safetensors or npz file, or the tensors by name.
        settings: What the tensors do not tell.

    Returns:
        The module in float32 and evaluation mode; its configuration keeps the readout.

    Raises:
        ModelFileError: If tensors are missing, unknown or of a wrong shape; all are named.
        ModelSupportError: If it is no GPT-2 of another layout.
        UnsafeFileError: If the file is a pickle.
    """
    tensors = read_tensors(source)
    shape = tensors.check(norms=settings.normalization_type == "LN")
    _check_sizes(tensors.name, shape, settings)
    if shape.labels != len(settings.readout.labels) > 0:
        raise ModelFileError(
            f"{tensors.name} gives {shape.labels} logits, but {len(settings.readout.labels)} "
            f"labels are named: {', '.join(settings.readout.labels)}."
        )
    causal = settings.attention_dir == "causal"
    module = bare_gpt2(
        vocab=shape.vocab,
        context=shape.context,
        width=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        neurons=max(1, shape.neurons),
        activation=ACTIVATIONS[settings.act_fn] if settings.act_fn else "relu",
        norm=lambda: _norm(settings, shape.width),
        is_causal=causal,
        readout={"place": settings.readout.place, "labels": list(settings.readout.labels)},
        bos_token_id=None,
        eos_token_id=None,
    )
    module.lm_head = nn.Linear(shape.width, shape.labels)
    for block in module.transformer.h:
        block.attn.is_causal = causal
    divisor = settings.attn_scale or float(np.sqrt(shape.size))
    with torch.no_grad():
        _fill(module, tensors, shape, float(np.sqrt(shape.size)) / divisor)
    return module.eval()


def _norm(settings: LensSettings, width: int) -> nn.Module:
    if settings.normalization_type is None:
        return nn.Identity()
    weights = settings.normalization_type == "LN"
    return nn.LayerNorm(width, eps=settings.eps, elementwise_affine=weights)


def _check_sizes(name: str, shape: Shape, settings: LensSettings) -> None:
    found = {
        "n_layers": shape.layers, "n_heads": shape.heads, "d_head": shape.size,
        "d_model": shape.width, "d_mlp": shape.neurons, "n_ctx": shape.context,
        "d_vocab": shape.vocab, "d_vocab_out": shape.labels,
    }  # fmt: skip
    for key, wanted in settings.sizes.items():
        known = found[key]
        # TransformerLens writes -1 for sizes it has not worked out, and a d_mlp also without MLPs
        if wanted not in (known, -1) and not (key == "d_mlp" and not shape.neurons):
            raise ModelFileError(f"{name}: the settings say {key}={wanted}, the tensors {known}.")
    if shape.neurons and settings.act_fn is None:
        raise ConfigError(f"{name} holds MLPs, but act_fn is None; name their activation function.")
    if shape.heads * shape.size != shape.width:
        raise ModelSupportError(
            f"{name}: {shape.heads} heads of size {shape.size} make {shape.heads * shape.size}, "
            f"but the stream is {shape.width} wide. Only heads that fill it are opened."
        )


def _fill(module: Any, tensors: LensTensors, shape: Shape, scale: float) -> None:
    """Copy the tensors; queries are scaled so that scores come out as the settings want them."""
    stream = module.transformer
    stream.wte.weight.copy_(tensors["embed.W_E"])
    stream.wpe.weight.copy_(tensors["pos_embed.W_pos"])
    module.lm_head.weight.copy_(tensors["unembed.W_U"].T)
    module.lm_head.bias.copy_(tensors["unembed.b_U"])
    _fill_norm(stream.ln_f, tensors, "ln_final")
    for number, block in enumerate(stream.h):
        start = f"blocks.{number}"
        attn = f"{start}.attn"
        projections = [tensors[f"{attn}.W_{port}"] for port in "QKV"]
        biases = [tensors[f"{attn}.b_{port}"].flatten() for port in "QKV"]
        flat = [w.permute(1, 0, 2).flatten(1) for w in projections]
        block.attn.c_attn.weight.copy_(torch.cat([flat[0] * scale, *flat[1:]], 1))
        block.attn.c_attn.bias.copy_(torch.cat([biases[0] * scale, *biases[1:]]))
        block.attn.c_proj.weight.copy_(tensors[f"{attn}.W_O"].flatten(0, 1))
        block.attn.c_proj.bias.copy_(tensors[f"{attn}.b_O"])
        _fill_norm(block.ln_1, tensors, f"{start}.ln1")
        if shape.neurons:
            _fill_norm(block.ln_2, tensors, f"{start}.ln2")
            block.mlp.c_fc.weight.copy_(tensors[f"{start}.mlp.W_in"])
            block.mlp.c_fc.bias.copy_(tensors[f"{start}.mlp.b_in"])
            block.mlp.c_proj.weight.copy_(tensors[f"{start}.mlp.W_out"])
            block.mlp.c_proj.bias.copy_(tensors[f"{start}.mlp.b_out"])


def _fill_norm(norm: nn.Module, tensors: LensTensors, name: str) -> None:
    if isinstance(norm, nn.LayerNorm) and norm.elementwise_affine:
        norm.weight.copy_(tensors[f"{name}.w"])
        norm.bias.copy_(tensors[f"{name}.b"])
