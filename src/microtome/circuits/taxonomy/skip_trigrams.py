"""Skip trigrams: A ... B -> C by one head, from attention on A and OV from A to C."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from microtome.circuits.taxonomy.detector import Detector, Scores
from microtome.circuits.taxonomy.material import Material, head_name
from microtome.core.seeds import rng

EXCHANGES = 50
"""Exchanges of the next tokens."""


def skip_trigram(material: Material) -> Scores:
    """Score how much what a head attends to raises the text's next token, copies aside.

    For every position of the corpus the embeddings of the attended tokens go through OV to the
    logit of the true next token; keys that hold that very token are left out.
    """
    reading = material.corpus
    tokens = reading.tokens
    heads, left_out = material.weight_heads()
    heads = [(n, h) for n, h in heads if n in reading.patterns]
    following = tokens[:, 1:]
    different = tokens[:, None, :] != following[:, :, None]
    read: dict[int, torch.Tensor] = {}
    stream = rng(material.inputs.seed, "skip trigram")
    order = np.stack([stream.permutation(following.numel()) for _ in range(EXCHANGES)])
    values, sds = [], []
    for layer, head in heads:
        if layer not in read:
            read[layer] = material.embedded(tokens.flatten(), layer).unflatten(0, tokens.shape)
        value, out = material.value_map(layer, head)
        attended = reading.patterns[layer][:, head, :-1] * different
        mixed = (attended @ (read[layer] @ value)).flatten(0, 1)
        scale = float((mixed @ out[:, material.outputs]).std())
        lifts = _lifts(mixed, out, following.flatten(), order) / max(scale, 1e-12)
        values.append(lifts[0] - lifts[1:].mean())
        sds.append(max(float(lifts[1:].std(ddof=1)), 1e-6))
    score, sd = np.array(values), np.array(sds)
    return Scores(
        tuple(head_name(n, h) for n, h in heads),
        score, np.zeros(len(score)), sd, stats.t.sf(score / sd, EXCHANGES - 1),
        np.ones(len(score), dtype=bool), {}, (*left_out, *reading.left_out),
    )  # fmt: skip


def _lifts(
    mixed: torch.Tensor, out: torch.Tensor, following: torch.Tensor, order: np.ndarray
) -> np.ndarray:
    """Return the mean logit of the next tokens, then of exchanged ones ``[1 + draw]``."""
    writes = out[:, following].T
    drawn = [float((mixed * writes).sum(1).mean())]
    drawn += [float((mixed * writes[o]).sum(1).mean()) for o in torch.from_numpy(order)]
    return np.array(drawn)


SKIP_TRIGRAMS = (
    Detector(
        "skip trigram", "head",
        "how much the attended tokens' embeddings raise the text's next token through OV, keys "
        "that hold that token aside, in standard deviations of what the head writes to a logit",
        "Elhage 2021", "corpus", "next tokens exchanged between positions", skip_trigram,
        threshold=0.5, standing="microtome",
    ),
)  # fmt: skip
"""The detector of skip trigrams."""
