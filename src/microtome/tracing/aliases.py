"""Names of TransformerLens, accepted where the value is the same, else refused with the reason."""

from __future__ import annotations

import re

from microtome.errors import SiteError

_SAME = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn.out",
    "hook_mlp_out": "mlp.out",
    "attn.hook_v": "attn.v",
    "attn.hook_z": "attn.z",
    "attn.hook_attn_scores": "attn.scores",
    "attn.hook_pattern": "attn.pattern",
    "attn.hook_result": "attn.result",
    "mlp.hook_post": "mlp.act",
    "ln1.hook_scale": "attn.norm.scale",
    "ln2.hook_scale": "mlp.norm.scale",
}

_MODEL = {
    "hook_embed": "embed.token",
    "hook_pos_embed": "embed.pos",
    "ln_final.hook_scale": "final.norm.scale",
}

_DIFFERENT = {
    "attn.hook_q": "it is the query before rotary embedding and query norm; attn.q is as used in "
    "the product",
    "attn.hook_k": "it is the key before rotary embedding and key norm; attn.k is as used in the "
    "product",
    "attn.hook_rot_q": "use attn.q, which is after rotary embedding",
    "attn.hook_rot_k": "use attn.k, which is after rotary embedding",
    "hook_q_input": "use the port attn.in.q; the value there is before the norm, here after it",
    "hook_k_input": "use the port attn.in.k; the value there is before the norm, here after it",
    "hook_v_input": "use the port attn.in.v; the value there is before the norm, here after it",
    "hook_attn_in": "the value there is before the norm; attn.in is after it",
    "hook_mlp_in": "the value there is before the norm; mlp.in is after it",
    "mlp.hook_pre": "in gated MLPs it is the gate before its non-linearity (mlp.gate), else "
    "mlp.pre",
    "mlp.hook_pre_linear": "use mlp.pre",
    "ln1.hook_normalized": "there it excludes the norm's weight and bias; attn.in includes them",
    "ln2.hook_normalized": "there it excludes the norm's weight and bias; mlp.in includes them",
}

_FINAL_DIFFERENT = {
    "ln_final.hook_normalized": "there it excludes the norm's weight and bias; final.norm includes "
    "them",
    "hook_tokens": "token ids are in trace.tokens",
}


def translate(name: str) -> str:
    """Return microtome's name for a TransformerLens name; other names come back unchanged.

    Args:
        name: A site without selectors.

    Raises:
        SiteError: If the TransformerLens site holds another value than any site here.
    """
    if "hook_" not in name:
        return name
    match = re.fullmatch(r"blocks\.([^.]+)\.(.+)", name)
    if match is None:
        if name in _MODEL:
            return _MODEL[name]
        reason = _FINAL_DIFFERENT.get(name, "it has no counterpart here")
        raise SiteError(f"TransformerLens name {name!r} is refused: {reason}.")
    layer, rest = match.groups()
    base, slash, codec = rest.partition("/")
    if base in _SAME:
        return f"blocks.{layer}.{_SAME[base]}{slash}{codec}"
    if ".hook_sae_" in rest:
        raise SiteError(
            f"SAELens name {name!r} is refused: attach the SAE under a name; its latents are "
            "blocks.3.resid_post/NAME then, its error blocks.3.resid_post/NAME.error."
        )
    if rest in _DIFFERENT:
        raise SiteError(f"TransformerLens name {name!r} is refused: {_DIFFERENT[rest]}.")
    raise SiteError(f"TransformerLens name {name!r} is refused: it has no counterpart here.")
