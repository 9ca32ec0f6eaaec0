"""The logit lens: the model's own final norm and unembedding applied to every residual stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.attribution.results import LogitLens
from microtome.core.provenance import collect
from microtome.errors import PromptError

if TYPE_CHECKING:
    from microtome.tracing.model import Model


def logit_lens(model: Model, prompt: str | tuple[int, ...] | list[int]) -> LogitLens:
    """Read the next-token distribution off the residual stream at every layer and position.

    The stream of each block goes through the model's own final norm and unembedding
    (nostalgebraist, 2020). What it says of early layers is a view, not what the model computes
    with.

    Args:
        model: A transformer.
        prompt: One prompt.

    Raises:
        ModelSupportError: If the logits are not unembedding(final norm(stream)) in this model.
        PromptError: If there is more than one prompt.
    """
    base = model.record(prompt)
    if base.tokens.shape[0] != 1:
        raise PromptError(f"The logit lens takes one prompt, got {base.tokens.shape[0]}.")
    width = base.tokens.shape[1]
    positions = torch.arange(width).unsqueeze(0)
    final = torch.log_softmax(base.logits[0].float(), dim=-1)
    following = [*base.tokens[0, 1:].tolist(), None]
    tops, probabilities, divergences, ranks = [], [], [], []
    for stream in base.streams:
        logits = model.tail(stream, positions)[0].float()
        logp = torch.log_softmax(logits, dim=-1)
        best = logp.max(-1)
        tops.append(model.tokens(best.indices))
        probabilities.append(best.values.exp().cpu().numpy())
        divergences.append((final.exp() * (final - logp)).sum(-1).cpu().numpy())
        ranks.append(
            [
                -1 if t is None else int((row > row[t]).sum())
                for row, t in zip(logits, following, strict=True)
            ]
        )
    names = ("embedding", *(f"block {i}" for i in range(len(base.streams) - 1)))
    return LogitLens(
        tokens=tuple(model.tokens(base.tokens[0])),
        layers=names,
        top_tokens=np.array(tops),
        top_probabilities=np.array(probabilities),
        kl_to_final=np.array(divergences),
        next_rank=np.array(ranks),
        provenance=collect(model, {"method": "logit lens"}),
    )
