"""Token embeddings as the model's own embedding module gives them, scale included."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microtome.errors import ModelSupportError
from microtome.tracing.catalog import require_anatomy
from microtome.tracing.model import Model
from microtome.tracing.sites import at


def embed(
    model: Model, ids: Sequence[Sequence[int]], what: str
) -> Float[Tensor, "batch pos d_model"]:
    """Return the value at ``embed.token`` of token ids of equal length.

    Args:
        model: A transformer.
        ids: Token ids.
        what: What needs them, for the error.

    Raises:
        ModelSupportError: If the model is not a transformer.
        SiteAbsentError: If its token embedding was not found.
    """
    with torch.no_grad():
        rows = torch.tensor([list(row) for row in ids], device=model.device)
        value: Tensor = _module(model, what)(rows)
    # a hook of transformers' (for gradient checkpointing) asks for gradients even here
    return value.detach()


def embedding_table(model: Model, what: str) -> Float[Tensor, "vocab d_model"]:
    """Return the embedding of every token id.

    Args:
        model: A transformer.
        what: What needs it, for the error.

    Raises:
        ModelSupportError: If the model is not a transformer, or its embedding is no table.
        SiteAbsentError: If its token embedding was not found.
    """
    module = _module(model, what)
    if not isinstance(module, nn.Embedding):
        raise ModelSupportError(
            f"{what} needs a table of token embeddings; {model.name} computes them in "
            f"{type(module).__name__}."
        )
    with torch.no_grad():
        value: Tensor = module(torch.arange(module.num_embeddings, device=model.device))
    return value.detach()


def _module(model: Model, what: str) -> nn.Module:
    path = require_anatomy(model.anatomy, what).embed_token
    model.catalog.resolve(at("embed.token"), write=True)
    return model.module.get_submodule(path or "")
