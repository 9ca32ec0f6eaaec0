"""Heads told by what they match: duplicate tokens, induction, its fuzzy kin, and retrieval."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from microtome.circuits.taxonomy.detector import Detector, Scores
from microtome.circuits.taxonomy.material import Material, Reading, head_name
from microtome.circuits.taxonomy.patterns import ROWS
from microtome.circuits.taxonomy.shuffles import DRAWS, of_layers, row_exchange
from microtome.core.seeds import rng
from microtome.errors import MicrotomeError


def _same(tokens: torch.Tensor, first: int) -> torch.Tensor:
    """Return which other keys hold the query's token ``[row, query, key]``; BOS never counts."""
    same = tokens[:, :, None] == tokens[:, None, :]
    same &= ~torch.eye(tokens.shape[1], dtype=torch.bool)
    same[:, :first] = False
    same[:, :, :first] = False
    return same


def _after_same(tokens: torch.Tensor, first: int) -> torch.Tensor:
    """Return which keys come right behind the query's token ``[row, query, key]``."""
    after = torch.zeros_like(_same(tokens, first))
    after[:, :, 1:] = _same(tokens, first)[:, :, :-1]
    # a token behind the query itself cannot be what followed it
    places = torch.arange(tokens.shape[1])
    return after & (places[None, :, None] != places[None, None, :] - 1)


def duplicate(material: Material) -> Scores:
    """Score attention to earlier copies of the query's token."""
    reading, inputs = material.repeats, material.inputs
    targets = _same(reading.tokens, inputs.first)
    return of_layers(
        reading,
        material.heads,
        lambda n: row_exchange(reading, n, targets, inputs.periods, inputs.seed),
    )


def induction(material: Material) -> Scores:
    """Score attention to what followed earlier copies; heads must also copy what they attend to."""
    return _induction(material, material.repeats)


def induction_in_text(material: Material) -> Scores:
    """Score the same in periodic windows of the corpus, for models that know no random tokens."""
    return _induction(material, material.text_repeats)


def _induction(material: Material, reading: Reading) -> Scores:
    inputs = material.inputs
    targets = _after_same(reading.tokens, inputs.first)
    details, allowed = _copies(material, reading)
    return of_layers(
        reading,
        material.heads,
        lambda n: row_exchange(reading, n, targets, inputs.periods, inputs.seed),
        details=details,
        allowed=allowed,
    )


def fuzzy(material: Material) -> Scores:
    """Score attention to the aligned successor where the current token was replaced by noise."""
    reading, inputs = material.noised, material.inputs
    length = reading.tokens.shape[1]
    places = torch.arange(length)
    offset = places[:, None] - places[None, :]
    period = torch.from_numpy(inputs.periods)
    targets = offset[None] == (period - 1)[:, None, None]
    targets = targets & inputs.replaced[:, :, None]
    targets[:, :, : inputs.first] = False
    return of_layers(
        reading,
        material.heads,
        lambda n: row_exchange(reading, n, targets, inputs.periods, inputs.seed),
    )


def _copies(material: Material, reading: Reading) -> tuple[dict[str, str], dict[str, bool]]:
    """Return for each head whether it copies: eigenvalues of OV, and the lift of the next token."""
    details: dict[str, str] = {}
    allowed: dict[str, bool] = {}
    for layer, head in material.heads:
        name = head_name(layer, head)
        try:
            share = eigenvalue_share(material, layer, head)
            lift = _lift(material, reading, layer, head)
        except MicrotomeError as error:
            details[name], allowed[name] = f"copying not known: {error}", False
            continue
        details[name] = f"OV eigenvalues {share:+.2f}, next token lifted by {lift:.1f} sd"
        allowed[name] = share > 0 and lift > 3
    return details, allowed


def eigenvalue_share(material: Material, layer: int, head: int) -> float:
    """Return ``sum(lambda) / sum(|lambda|)`` of a head's map from tokens to logits (Elhage 2021).

    The eigenvalues that are not zero are those of a small matrix, ``[d_head, d_head]``.
    """
    value, out = material.value_map(layer, head)
    tokens = material.tokens
    read = material.embedded(tokens, layer)
    eigenvalues = torch.linalg.eigvals(out[:, tokens] @ (read - read.mean(0)) @ value)
    total = float(eigenvalues.abs().sum())
    return float(eigenvalues.real.sum()) / total if total > 0 else 0.0


def _lift(material: Material, reading: Reading, layer: int, head: int) -> float:
    """Return how much a head's write raises the right next token above other rows' tokens, in sd.

    Only positions behind the first period count, where the next token is known from before.
    """
    _, out = material.value_map(layer, head)
    z = reading.z[layer][:, :-1, head]
    following = reading.tokens[:, 1:]
    known = torch.arange(z.shape[1])[None] >= torch.from_numpy(
        material.inputs.periods + material.inputs.first
    ).unsqueeze(1)
    writes = out[:, following.flatten()].T.reshape(*following.shape, -1)
    own = (z * writes).sum(-1)
    other = (z * writes.roll(1, 0)).sum(-1)
    # rows are the unit: positions of one row share its tokens
    rows = ((own - other) * known).sum(1) / known.sum(1)
    spread = float(rows.std()) / len(rows) ** 0.5
    return float(rows.mean()) / spread if spread > 0 else 0.0


def retrieval(material: Material) -> Scores:
    """Score how often the model copies a needle's token while the head looks at it most."""
    reading, inputs = material.needles, material.inputs
    size, length = inputs.needle, reading.tokens.shape[1]
    queries = torch.arange(length - size, length - 1)
    copied = reading.predicted[:, queries] == reading.tokens[:, queries + 1]
    sought = torch.from_numpy(inputs.depths)[:, None] + torch.arange(1, size)
    stream = rng(inputs.seed, "retrieval")
    rows = len(inputs.depths)
    partners = stream.integers(1, rows, (DRAWS, rows))
    partners = (np.arange(rows) + partners) % rows
    parts, values, means, sds = [], [], [], []
    for layer, pattern in reading.patterns.items():
        best = pattern[:, :, queries].argmax(-1)
        for head in range(pattern.shape[1]):
            hit = (best[:, head, None] == sought[None]) & copied[:, None]
            crossed = hit.float().mean(-1).numpy()
            drawn = crossed[np.arange(rows), partners].mean(1)
            parts.append(head_name(layer, head))
            values.append(crossed[np.arange(rows), np.arange(rows)].mean())
            means.append(drawn.mean())
            sds.append(max(float(drawn.std(ddof=1)), 0.5 / hit[:, 0].numel()))
    score, mean, sd = map(np.array, (values, means, sds))
    share = f"the model copied {float(copied.float().mean()):.0%} of the needles' tokens"
    return Scores(
        tuple(parts), score, mean, sd, stats.t.sf((score - mean) / sd, DRAWS - 1),
        np.ones(len(parts), dtype=bool), dict.fromkeys(parts, share), reading.left_out,
    )  # fmt: skip


MATCHING = (
    Detector(
        "duplicate token", "head",
        "attention to earlier copies of the same token in periodic random tokens, beyond chance",
        "Wang 2022", "random tokens", ROWS, duplicate, threshold=0.4,
    ),
    Detector(
        "induction", "head",
        "attention to what followed earlier copies of the token, beyond chance; the head must also "
        "copy: OV eigenvalues sum to more than 0 and the next token is lifted by more than 3 sd",
        "Olsson 2022, Elhage 2021", "random tokens", ROWS, induction, threshold=0.4,
    ),
    Detector(
        "induction in text", "head",
        "the same in windows of the corpus, each repeated with its own period, for models to which "
        "random tokens mean nothing",
        "Olsson 2022, Elhage 2021", "corpus", ROWS, induction_in_text, threshold=0.4,
    ),
    Detector(
        "fuzzy induction", "head",
        "attention to the aligned successor, beyond chance, where noise replaced the token itself",
        "Akyurek 2024, Feucht 2025", "random tokens", ROWS, fuzzy, threshold=0.1,
        standing="microtome",
    ),
    Detector(
        "retrieval", "head",
        "share of a needle's tokens that the model copies while the head's top key is the token",
        "Wu 2024", "random tokens", "needles at other rows' depths", retrieval, threshold=0.1,
        standing="paper",
    ),
)  # fmt: skip
"""Detectors of what heads match."""
