"""Building the index of active latents in one pass over a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

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
from microtome.sae.reading.neurons import NeuronTally
from microtome.sae.reconstruction import ReconstructionTally
from microtome.tracing.sites import Site, at

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
    neurons: str | None = None,
    progress: Progress = quiet,
) -> LatentIndex:
    """Read a text once and keep which latents are active where.

    The same pass measures how well the coder reconstructs the text.

    Args:
        model: The model the coder belongs to.
        coder: A coder whose ``origin`` names its sites.
        text: Texts; see :func:`microtome.sae.harvest`.
        tokens: How many tokens to read at most.
        context: Tokens of a text at a time.
        batch_size: Contexts per pass.
        neurons: Site of neurons to correlate with the latents, such as ``"blocks.2.mlp.act"``;
            none unless given.
        progress: Told how far it is.

    Raises:
        SiteError: The coder names no sites, or the model does not have them.
        ShapeError: Its widths are not those of the sites, or a value is not finite.
        EmptyDataError: The text has no tokens, or special ones only.
        ConfigError: A number is out of range, or there are too many neurons for their pairs.
    """
    if context < 1 or batch_size < 1:
        raise ConfigError(f"context={context}, batch_size={batch_size}; expected 1 or more")
    reader = _Reader(model, coder, at(neurons) if neurons is not None else None)
    documents = read_documents(text, tokenizer=model.tokenizer, tokens=tokens)
    pieces = contexts_of(model, documents, context)
    # Texts of like length share a pass, so that few positions are padding; then back in order.
    order = sorted(range(len(pieces)), key=lambda i: len(pieces[i].ids))
    found: list[SparseLatents | None] = [None] * len(pieces)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        for i, rows in zip(part, reader.read([pieces[i].ids for i in part]), strict=True):
            found[i] = rows
        progress.step(min(start + batch_size, len(order)), len(order), "text")
    latents = [f for f in found if f is not None]
    settings = {"text": documents.sha256, "context": context, "neurons": neurons}
    return _assembled(reader, pieces, latents, settings)


class _Reader:
    """Reads batches of contexts: latents of each, and what is added up over all of them."""

    def __init__(self, model: Model, coder: SAE, neurons: Site | None) -> None:
        self.model, self.coder, self.neurons = model, coder, neurons
        self.sources, self.targets = coder_sites(model, coder)
        self.captured = list(dict.fromkeys((*self.sources, *self.targets)))
        if neurons is not None:
            self.captured.append(neurons)
        self.special = sorted(special_ids(model))
        self.made = ReconstructionTally(coder)
        self.tally: NeuronTally | None = None

    def read(self, ids: list[list[int]]) -> list[SparseLatents]:
        """Return the latents of each context; positions that are not encoded have none."""
        trace = self.model.trace(ids, capture=self.captured, logits=None)
        mask = trace.mask.bool().cpu()
        kept = mask & ~torch.isin(trace.tokens.cpu(), torch.tensor(self.special, dtype=torch.int64))
        values = values_at(trace, self.sources, self.coder)
        if values.shape[-1] != self.coder.d_in:
            raise ShapeError(
                f"the sites are {values.shape[-1]} wide in this model and the coder expects "
                f"{self.coder.d_in}; it belongs to another model or site"
            )
        values = values[kept.to(values.device)]
        latents = self.coder.encode_sparse(values)
        if not bool(torch.isfinite(latents.values).all()):
            raise ShapeError("a latent is NaN or infinite; check the coder and the model's values")
        outputs = values_at(trace, self.targets, self.coder)
        outputs = outputs[kept.to(outputs.device)]
        self.made.add(outputs, decoded(self.coder, latents, values), latents)
        if self.neurons is not None:
            acts = trace[self.neurons]
            if acts.dim() < 3 or acts.shape[:2] != trace.tokens.shape:
                raise ShapeError(
                    f"{self.neurons} has values of shape {tuple(acts.shape)} for tokens of shape "
                    f"{tuple(trace.tokens.shape)}; neurons need a number for each token"
                )
            acts = acts.flatten(2)
            if self.tally is None:
                self.tally = NeuronTally(str(self.neurons), self.coder.d_sae, acts.shape[-1])
            self.tally.add(latents, acts[kept.to(acts.device)])
        return _by_context(latents, kept, mask)


def decoded(coder: SAE, latents: SparseLatents, values: Tensor) -> Tensor:
    """Return the reconstruction of values ``[row, d_in]`` from their active latents alone."""
    weights = coder.weights
    rows = torch.nn.functional.embedding_bag(
        latents.indices,
        weights["W_dec"],
        latents.offsets[:-1],
        mode="sum",
        per_sample_weights=latents.values.to(weights["W_dec"]),
    )
    past = coder.bypass(values)
    outputs: Tensor = rows + weights["b_dec"]
    return outputs if past is None else outputs + past


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
    reader: _Reader,
    pieces: list[Context],
    latents: list[SparseLatents],
    settings: dict[str, Any],
) -> LatentIndex:
    model, coder = reader.model, reader.coder
    joined = SparseLatents.join(latents)
    rows = Sparse(
        joined.offsets.numpy(),
        joined.indices.cpu().numpy().astype(np.int32),
        joined.values.float().cpu().numpy(),
    )
    ids = np.concatenate([np.asarray(p.ids, dtype=np.int32) for p in pieces])
    contexts = np.concatenate([[0], np.cumsum([len(p.ids) for p in pieces])]).astype(np.int64)
    known = np.unique(ids).tolist()
    names = model.tokens(known) if model.tokenizer is not None else []
    weights = {name: value.detach() for name, value in coder.weights.items()}
    return LatentIndex(
        ids=ids,
        contexts=contexts,
        documents=np.array([p.document for p in pieces], dtype=np.int32),
        special=np.isin(ids, reader.special),
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
        vocabulary=dict(zip(known, names, strict=False)),
        reconstruction=reader.made.result(),
        neurons=reader.tally.result() if reader.tally is not None else None,
    )
