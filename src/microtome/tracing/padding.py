"""Position ids for left-padded batches: the model's own or mask-derived, whichever is right."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal

import torch

from microtome.models.compare import relative_error
from microtome.models.discovery import logits_of, plain_call, probe_tokens
from microtome.tracing.forward import accepts

if TYPE_CHECKING:
    from microtome.tracing.model import Model

Policy = Literal["own", "mask", "alone", "none"]


def mask_positions(mask: torch.Tensor) -> torch.Tensor:
    """Return position ids from a mask: cumulative sum minus one, floored at zero."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def padding_error(model: Model, policy: Policy) -> float:
    """Return the relative error of the last logits of a left-padded row against the unpadded row.

    Args:
        model: The model.
        policy: ``"own"`` lets the model number positions itself, ``"mask"`` passes mask-derived
            ids.
    """
    module, anatomy = model.module, model.anatomy
    context = None if anatomy is None else anatomy.context
    vocab = anatomy.vocab if anatomy is not None else 2
    tokens = probe_tokens(vocab, context, model.device)[:, :-2]
    short = tokens[:1, : tokens.shape[1] - 3]
    padded = torch.zeros_like(tokens)
    padded[0, 3:] = short[0]
    padded[1] = tokens[1]
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    extra = {"position_ids": mask_positions(mask)} if policy == "mask" else {}
    with torch.no_grad():
        whole = logits_of(module(padded, attention_mask=mask, **extra, **plain_call(module)))
        alone = logits_of(module(short, **plain_call(module)))
    return relative_error(whole[0, -1], alone[0, -1])


@functools.lru_cache(maxsize=64)
def policy_of(model: Model) -> Policy:
    """Return how a left-padded batch gets its positions in this model, found by trying.

    The model's own numbering is kept where it is right; else mask-derived ids are passed.
    ``"alone"`` means that neither is: rows of different length have to be generated apart.
    """
    if not accepts(model.module, "attention_mask"):
        return "none"
    bound = 1e-4 if model.dtype == torch.float32 else 0.1
    own = padding_error(model, "own")
    if own <= bound:
        return "own"
    if accepts(model.module, "position_ids") and padding_error(model, "mask") <= bound:
        return "mask"
    return "alone"
