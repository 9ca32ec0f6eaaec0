"""The names of all sites, what their axes are, and how latents of attached codecs are named.

A codec attached under ``NAME`` at a site adds two: ``SITE/NAME``, its latents, and
``SITE/NAME.error``, what its reconstruction leaves over.
"""

from __future__ import annotations

import re

BLOCK_SITES: dict[str, tuple[str, ...]] = {
    "resid_pre": ("batch", "pos", "d_model"),
    "resid_mid": ("batch", "pos", "d_model"),
    "resid_post": ("batch", "pos", "d_model"),
    "attn.in": ("batch", "pos", "d_model"),
    "attn.in.q": ("batch", "pos", "head", "d_model"),
    "attn.in.k": ("batch", "pos", "kv_head", "d_model"),
    "attn.in.v": ("batch", "pos", "kv_head", "d_model"),
    "attn.q": ("batch", "pos", "head", "d_head"),
    "attn.k": ("batch", "pos", "kv_head", "d_head"),
    "attn.v": ("batch", "pos", "kv_head", "d_head"),
    "attn.scores": ("batch", "head", "query", "key"),
    "attn.pattern": ("batch", "head", "query", "key"),
    "attn.sink": ("batch", "head", "query", "key"),
    "attn.z": ("batch", "pos", "head", "d_head"),
    "attn.result": ("batch", "pos", "head", "d_model"),
    "attn.out": ("batch", "pos", "d_model"),
    "mlp.in": ("batch", "pos", "d_model"),
    "mlp.pre": ("batch", "pos", "neuron"),
    "mlp.gate": ("batch", "pos", "neuron"),
    "mlp.act": ("batch", "pos", "neuron"),
    "mlp.out": ("batch", "pos", "d_model"),
    "mlp.router": ("batch", "pos", "expert"),
    "attn.norm.scale": ("batch", "pos", "1"),
    "attn.post_norm.scale": ("batch", "pos", "1"),
    "mlp.norm.scale": ("batch", "pos", "1"),
    "mlp.post_norm.scale": ("batch", "pos", "1"),
}
"""Axes of every site inside a block."""

BLOCK_ORDER = (
    "resid_pre", "attn.norm.scale", "attn.in", "attn.in.q", "attn.in.k", "attn.in.v", "attn.q",
    "attn.k", "attn.v", "attn.scores", "attn.sink", "attn.pattern", "attn.z", "attn.result",
    "attn.post_norm.scale", "attn.out", "resid_mid", "mlp.norm.scale", "mlp.in", "mlp.router",
    "mlp.gate", "mlp.pre", "mlp.act", "mlp.post_norm.scale", "mlp.out", "resid_post",
)  # fmt: skip
"""The sites of a block in the order in which a pass reaches them."""

MODEL_SITES: dict[str, tuple[str, ...]] = {
    "embed.token": ("batch", "pos", "d_model"),
    "embed.pos": ("batch", "pos", "d_model"),
    "final.norm": ("batch", "pos", "d_model"),
    "final.norm.scale": ("batch", "pos", "1"),
    "logits": ("batch", "pos", "vocab"),
}
"""Axes of every site outside the blocks."""

LATENT_AXES = ("batch", "pos", "latent")
"""Axes of the latents of a codec."""

_CODEC = re.compile(r"(?P<base>[^/]+)/(?P<codec>[A-Za-z0-9][A-Za-z0-9_-]*)(?P<error>\.error)?")


def is_codec_name(name: str) -> bool:
    """Return whether a codec may be attached under a name."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) is not None


def base_of(name: str) -> str:
    """Return the site that a site of a codec lies at; other names come back unchanged."""
    return name.split("/", 1)[0]


def codec_of(name: str) -> str:
    """Return the codec that ``SITE/NAME`` or ``SITE/NAME.error`` belongs to, empty for none.

    Example:
        >>> codec_of("blocks.3.resid_post/sae.error")
        'sae'
    """
    match = _CODEC.fullmatch(name)
    return "" if match is None else match.group("codec")


def is_latents(name: str) -> bool:
    """Return whether a name means the latents of a codec."""
    match = _CODEC.fullmatch(name)
    return match is not None and match.group("error") is None


def is_error(name: str) -> bool:
    """Return whether a name means the error of a codec."""
    match = _CODEC.fullmatch(name)
    return match is not None and match.group("error") is not None


def axes_of(name: str) -> tuple[str, ...]:
    """Return the axes of a site by its name without a block, empty for ``module:`` sites."""
    if is_latents(name):
        return LATENT_AXES
    base = base_of(name)
    return BLOCK_SITES.get(base) or MODEL_SITES.get(base) or ()


def in_block(name: str) -> bool:
    """Return whether a name without a block is that of a site inside blocks."""
    return base_of(name) in BLOCK_SITES
