"""Whether a write at a site takes: an unchanged value changes nothing, a changed one is seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from microtome.errors import MicrotomeError
from microtome.models.compare import relative_error
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from microtome.tracing.model import Model
    from microtome.tracing.trace import Trace

EAGER_SITES = ("attn.scores", "attn.pattern")
"""Sites whose write makes the eager attention function the block's."""

_FORMED = ("attn.in.q", "attn.in.k", "attn.in.v")
"""Ports recompute a projection's columns, which rounds differently from the whole product."""

_REREAD = frozenset(
    {
        "resid_pre", "resid_mid", "resid_post", "attn.in", "attn.q", "attn.k", "attn.v",
        "attn.scores", "attn.pattern", "attn.z", "attn.result", "attn.out", "mlp.in", "mlp.pre",
        "mlp.gate", "mlp.act", "mlp.out", "embed.token", "embed.pos", "final.norm", "logits",
    }
)  # fmt: skip


def check_writes(model: Model, tokens: torch.Tensor, names: list[str]) -> dict[str, str]:
    """Write at each site: first its own value, then a changed one.

    Args:
        model: The model.
        tokens: Token ids ``[batch, pos]``.
        names: Writable sites by full name.

    Returns:
        What went wrong, by site; sites that passed are not in it.
    """
    plain = model.trace(tokens)
    wrong = {}
    for name in names:
        try:
            fault = _check(model, tokens, name, plain)
        except MicrotomeError as error:
            fault = str(error)
        if fault:
            wrong[name] = fault
    return wrong


def _check(model: Model, tokens: torch.Tensor, name: str, plain: Trace) -> str:
    site = at(name)
    if plain.logits is None:
        return "the model returned no logits"
    same = model.trace(tokens, interventions=[site.apply(torch.clone)]).logits
    allowed = 0.0
    if site.name in EAGER_SITES or site.name in _FORMED:
        allowed = 1e-5 if plain.logits.dtype == torch.float32 else 0.05
    drift = relative_error(same, plain.logits) if same is not None else float("nan")
    if not drift <= allowed:
        return f"writing back the same value moved the logits by {drift:.1e}"
    capture = name if site.name in _REREAD else ()
    change = [site.apply(_changed)]
    after = model.trace(tokens, capture=capture, interventions=change)
    if after.logits is None or torch.equal(after.logits, plain.logits) and not _inert(model, name):
        return "a changed value did not move the logits"
    if not capture:
        return ""
    before = model.trace(tokens, capture=capture)[name]
    seen = relative_error(after[name], _changed(before))
    bound = 1e-5 if before.dtype == torch.float32 else 0.05
    return (
        "" if seen <= bound else f"the written value was seen with a relative error of {seen:.1e}"
    )


def _changed(value: torch.Tensor) -> torch.Tensor:
    """Return a clearly different value that stays finite where a mask holds the dtype's minimum."""
    masked = value < torch.finfo(value.dtype).min / 4
    ramp = torch.linspace(0.3, -0.2, value.shape[-1], device=value.device, dtype=value.dtype)
    return torch.where(masked, value, value * 1.25 + ramp * value[~masked].abs().mean())


def _inert(model: Model, name: str) -> bool:
    """Return whether the logits cannot depend on the site: nothing reads it at the end."""
    del model
    return name.endswith("mlp.router")
