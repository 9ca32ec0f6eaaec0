"""Building the index of active latents in one pass over a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from microtome.core.hashing import sha256_arrays
from microtome.core.progress import Progress, quiet
from microtome.errors import ConfigError, ShapeError
from microtome.sae.harvesting.documents import Text, read_documents
from microtome.sae.latents import SparseLatents
from microtome.sae.model_passes import (
    Context,
    coder_sites,
    contexts_of,
    special_ids,
    values_at,
)
from microtome.sae.reading.index import LatentIndex, Sparse

if TYPE_CHECKING:
    from microtome.sae.coder import SAE
    from microtome.tracing.model import Model


@torch.no_grad()
def index(
    model: Model,
    coder: SAE,
    text: Text,
    *,
    tokens: int | None = None,
    context: int = 128,
    batch_size: int = 32,
    progress: Progress = quiet,
) -> LatentIndex:
    """Read a text once and keep which latents are active where.

    Args:
        model: The model the coder belongs to.
        coder: A coder whose ``origin`` names its sites.
        text: Texts; see :func:`microtome.sae.harvest`.
        tokens: How many tokens to read at most.
        context: Tokens of a text at a time.
        batch_size: Contexts per pass.
        progress: Told how far it is.

    Raises:
        SiteError: The coder names no sites, or the model does not have them.
        ShapeError: Its width is not that of the sites, or a value is not finite.
        EmptyDataError: The text has no tokens.
    """
    if context < 1 or batch_size < 1:
        raise ConfigError(f"context={context}, batch_size={batch_size}; expected 1 or more")
    sources, _ = coder_sites(model, coder)
    documents = read_documents(text, tokenizer=model.tokenizer, tokens=tokens)
    pieces = contexts_of(model, documents, context)
    # Texts of like length share a pass, so that few positions are padding; then back in order.
    order = sorted(range(len(pieces)), key=lambda i: len(pieces[i].ids))
    found: list[SparseLatents | None] = [None] * len(pieces)
    ignored = torch.tensor(sorted(special_ids(model)), dtype=torch.int64)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        trace = model.trace([pieces[i].ids for i in part], capture=list(sources), logits=None)
        values = values_at(trace, sources, coder)
        if values.shape[-1] != coder.d_in:
            raise ShapeError(
                f"the sites are {values.shape[-1]} wide in this model and the coder expects "
                f"{coder.d_in}; it belongs to another model or site"
            )
        kept = trace.mask.bool().cpu() & ~torch.isin(trace.tokens.cpu(), ignored)
        latents = coder.encode_sparse(values[kept.to(values.device)])
        if not bool(torch.isfinite(latents.values).all()):
            raise ShapeError("a latent is NaN or infinite; check the coder and the model's values")
        for i, rows in zip(part, _by_context(latents, kept, trace.mask.bool().cpu()), strict=True):
            found[i] = rows
        progress.step(min(start + batch_size, len(order)), len(order), "text")
    return _assembled(
        model,
        coder,
        pieces,
        [f for f in found if f is not None],
        {"text": documents.sha256, "context": context},
    )


def _by_context(
    latents: SparseLatents, kept: torch.Tensor, mask: torch.Tensor
) -> list[SparseLatents]:
    """Split encoded rows by context; positions that were not encoded get an empty row."""
    counts = torch.zeros(kept.shape, dtype=torch.int64)
    counts[kept] = latents.offsets.diff().cpu()
    parts, entry = [], 0
    for row_counts, real in zip(counts, mask, strict=True):
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), row_counts[real].cumsum(0)])
        end = entry + int(offsets[-1])
        parts.append(
            SparseLatents(
                offsets, latents.indices[entry:end], latents.values[entry:end], latents.d_sae
            )
        )
        entry = end
    return parts


def _assembled(
    model: Model,
    coder: SAE,
    pieces: list[Context],
    latents: list[SparseLatents],
    settings: dict[str, Any],
) -> LatentIndex:
    joined = SparseLatents.join(latents)
    rows = Sparse(
        joined.offsets.numpy(),
        joined.indices.cpu().numpy().astype(np.int32),
        joined.values.float().cpu().numpy(),
    )
    ids = np.concatenate([np.asarray(p.ids, dtype=np.int32) for p in pieces])
    contexts = np.concatenate([[0], np.cumsum([len(p.ids) for p in pieces])]).astype(np.int64)
    names = model.tokens(np.unique(ids).tolist()) if model.tokenizer is not None else []
    weights = {name: value.detach() for name, value in coder.weights.items()}
    return LatentIndex(
        ids=ids,
        contexts=contexts,
        documents=np.array([p.document for p in pieces], dtype=np.int32),
        special=np.isin(ids, sorted(special_ids(model))),
        by_token=rows,
        by_latent=rows.transposed(coder.d_sae),
        d_sae=coder.d_sae,
        details={
            "model": coder.origin.model,
            "fingerprint": model.fingerprint,
            "sources": list(coder.origin.sources),
            "coder": sha256_arrays(weights),
            **settings,
        },
        vocabulary=dict(zip(np.unique(ids).tolist(), names, strict=False)),
    )
