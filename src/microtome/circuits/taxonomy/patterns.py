"""Heads told by where they look: previous token, first token, nearby, one offset, marks."""

from __future__ import annotations

import numpy as np
import torch

from microtome.circuits.taxonomy.detector import Detector, Scores
from microtome.circuits.taxonomy.material import Material, head_name
from microtome.circuits.taxonomy.shuffles import (
    LayerScore,
    best_offset,
    key_shuffle,
    of_layers,
    row_exchange,
)
from microtome.errors import TokenizerError

NEAR = 4
"""Tokens back that count as nearby."""


def _offsets(length: int) -> torch.Tensor:
    """Return how far each key lies behind each query ``[query, key]``."""
    places = torch.arange(length)
    return places[:, None] - places[None, :]


def previous_token(material: Material) -> Scores:
    """Score attention to the token before."""
    reading = material.repeats
    target = _offsets(reading.tokens.shape[1]) == 1
    return of_layers(reading, material.heads, lambda n: key_shuffle(reading, n, target))


def first_token(material: Material) -> Scores:
    """Score attention to the first token of the row."""
    reading = material.repeats
    target = torch.zeros_like(_offsets(reading.tokens.shape[1]), dtype=torch.bool)
    target[1:, 0] = True
    return of_layers(reading, material.heads, lambda n: key_shuffle(reading, n, target))


def local(material: Material) -> Scores:
    """Score attention to the query itself and the tokens just before."""
    reading = material.repeats
    offset = _offsets(reading.tokens.shape[1])
    target = (offset >= 0) & (offset <= NEAR)
    return of_layers(reading, material.heads, lambda n: key_shuffle(reading, n, target))


def positional(material: Material) -> Scores:
    """Score the highest peak of attention at one offset other than the previous token's."""
    reading = material.repeats
    details: dict[str, str] = {}

    def score(layer: int) -> LayerScore | None:
        found = best_offset(reading, layer)
        if found is None:
            return None
        scores, offsets = found
        for head, offset in enumerate(offsets):
            details[head_name(layer, head)] = f"offset {offset}"
        return scores

    return of_layers(reading, material.heads, score, details=details)


def delimiters(material: Material) -> Scores:
    """Score attention to tokens of punctuation or white space in the corpus."""
    reading = material.corpus
    marks = material.inputs.delimiters
    if marks is None:
        raise TokenizerError("Which tokens are punctuation is not known without a tokenizer.")
    rows, length = reading.tokens.shape
    targets = (marks[:rows, None, :] & (_offsets(length) > 0)).expand(rows, length, length)
    seed = material.inputs.seed
    return of_layers(
        reading,
        material.heads,
        lambda n: row_exchange(reading, n, targets, np.arange(rows), seed),
    )


KEYS = "each query's visible keys shuffled (mean and spread in closed form)"
ROWS = "targets of other rows, so that distances stay and the link with the tokens is broken"

PATTERNS = (
    Detector(
        "previous token", "head",
        "attention to the token before, in random tokens, beyond chance",
        "Elhage 2021, Olsson 2022", "random tokens", KEYS, previous_token, threshold=0.4,
    ),
    Detector(
        "attention sink", "head",
        "attention to the first token, in random tokens, beyond chance",
        "Xiao 2023, Gu 2024", "random tokens", KEYS, first_token,
        nulls=("shuffle", "twin"), threshold=0.3, standing="paper",
    ),
    Detector(
        "local", "head",
        f"attention to the token itself and the {NEAR} before, in random tokens, beyond chance",
        "Clark 2019, Voita 2019", "random tokens", KEYS, local, threshold=0.5,
    ),
    Detector(
        "positional", "head",
        "highest peak of attention at one offset (not 1), in random tokens, beyond chance",
        "Voita 2019", "random tokens", KEYS + ", corrected for the choice of the offset",
        positional, threshold=0.5,
    ),
    Detector(
        "delimiter", "head",
        "attention to earlier punctuation and white space in the corpus, beyond chance",
        "Clark 2019", "corpus", ROWS, delimiters, threshold=0.5,
    ),
)  # fmt: skip
"""Detectors of where heads look."""
