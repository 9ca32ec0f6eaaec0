"""What detectors are shown: random tokens in periods, noised periods, needles, windows of a corpus.

Made once and shown to the model and to its twins alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.core.seeds import rng
from microtome.errors import EmptyDataError, MicrotomeError, ModelSupportError
from microtome.tracing.catalog import require_anatomy

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.circuits.results import Circuit
    from microtome.tracing.model import Model

ROWS = 16
"""Rows of random tokens."""

LENGTH = 97
"""Tokens of a row, where the context allows."""

SHORTEST = 8
"""Shortest context in which random tokens can be repeated."""

NOISE = 0.25
"""Share of the tokens that noise replaces in repeats."""

NEEDLE = 8
"""Tokens of a needle."""

WINDOW = 64
"""Tokens of a window of the corpus, where the context allows."""

WINDOWS = 96
"""Windows of the corpus."""


_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True, eq=False)
class Inputs:
    """Token ids that detectors show to a model.

    Attributes:
        seed: Seed of all that is drawn.
        candidates: Ordinary tokens, from which random ones are drawn ``[token]``.
        first: Number of tokens in front of each row that are no content (a BOS token).
        repeats: Random tokens, each row repeating with its own period ``[row, pos]``.
        periods: Period of each row ``[row]``.
        noised: The same with some tokens of later periods replaced ``[row, pos]``.
        replaced: Which ``[row, pos]``.
        needles: Filler with a needle, and the needle again at the end ``[row, pos]``.
        depths: Where the needle begins ``[row]``.
        needle: Tokens of a needle.
        corpus: Windows of the corpus ``[row, pos]``, None without one.
        text_repeats: Windows of the corpus in the periods of ``repeats`` ``[row, pos]``.
        delimiters: Where they hold marks or white space only ``[row, pos]``.
        lists: Token ids of ordinal lists, by name.
        examples: Examples of the behavior, None without one.
        metric: Metric of the behavior.
        circuit: A circuit, None without one.
        missing: Why something is not there, by what needs it.
    """

    seed: int
    candidates: torch.Tensor
    first: int
    repeats: torch.Tensor
    periods: np.ndarray
    noised: torch.Tensor
    replaced: torch.Tensor
    needles: torch.Tensor
    depths: np.ndarray
    needle: int
    corpus: torch.Tensor | None
    text_repeats: torch.Tensor | None
    delimiters: torch.Tensor | None
    lists: Mapping[str, tuple[int, ...]]
    examples: Examples | None
    metric: str
    circuit: Circuit | None
    missing: Mapping[str, str]


def make_inputs(
    model: Model,
    *,
    corpus: Sequence[str] | Sequence[Sequence[int]] | None,
    examples: Examples | None,
    metric: str,
    circuit: Circuit | None,
    lists: Mapping[str, Sequence[str]],
    seed: int,
) -> Inputs:
    """Draw what detectors are shown.

    Raises:
        ModelSupportError: If the model is not a transformer, or its context is too short.
    """
    from microtome.circuits.taxonomy.ordinals import token_lists

    anatomy = require_anatomy(model.anatomy, "Naming parts")
    length = min(LENGTH, anatomy.context or LENGTH)
    if length < SHORTEST:
        raise ModelSupportError(
            f"The context of {model.name} is {length} tokens; naming parts needs {SHORTEST}."
        )
    candidates = _candidates(model)
    stream = rng(seed, "taxonomy")
    front = [int(model.tokenizer.bos_token_id)] if model.bos else []
    repeats, periods = _repeats(candidates, front, length, stream)
    noised, replaced = _noised(repeats, periods, candidates, len(front), stream)
    needle = max(2, min(NEEDLE, (length - len(front)) // 4))
    needles, depths = _needles(candidates, front, length, needle, stream)
    windows, marks, missing = _corpus(model, corpus, front, seed)
    told = None if windows is None else _text_repeats(windows, periods, len(front), length)
    ordinals = token_lists(model, lists)
    if not ordinals:
        missing["ordinal lists"] = (
            "no ordinal list has four or more members that are single tokens of the model"
        )
    if examples is None:
        missing["behavior"] = "no behavior was given"
    if circuit is None:
        missing["circuit"] = "no circuit was given"
    return Inputs(
        seed, candidates, len(front), repeats, periods, noised, replaced, needles, depths, needle,
        windows, told, marks, ordinals, examples, metric, circuit, missing,
    )  # fmt: skip


def _candidates(model: Model) -> torch.Tensor:
    """Return the ids of ordinary tokens: not the special ones, and no fallback bytes."""
    anatomy = require_anatomy(model.anatomy, "Naming parts")
    known = anatomy.vocab
    if anatomy.embed_token is not None:
        known = min(known, len(model.weights.W_E))
    if model.tokenizer is None:
        return torch.arange(known)
    special = set(model.tokenizer.all_special_ids)
    pieces = model.tokenizer.convert_ids_to_tokens(list(range(known)))
    # bytes that stand in for unknown characters were hardly ever trained on
    odd = {i for i, piece in enumerate(pieces) if piece is None or _BYTE.fullmatch(piece)}
    return torch.tensor([i for i in range(known) if i not in special | odd])


def _draw(candidates: torch.Tensor, count: int, stream: np.random.Generator) -> torch.Tensor:
    """Draw tokens, all different where there are enough."""
    places = stream.choice(len(candidates), count, replace=len(candidates) < count)
    return candidates[torch.from_numpy(places)]


def _repeats(
    candidates: torch.Tensor, front: list[int], length: int, stream: np.random.Generator
) -> tuple[torch.Tensor, np.ndarray]:
    content = length - len(front)
    longest = content // 2
    periods = np.linspace(max(2, longest // 2), longest, ROWS).round().astype(int)
    rows = []
    for period in periods:
        span = _draw(candidates, int(period), stream)
        rows.append(
            torch.cat([torch.tensor(front, dtype=torch.long), span.repeat(length)])[:length]
        )
    return torch.stack(rows), periods


def _text_repeats(
    windows: torch.Tensor, periods: np.ndarray, first: int, length: int
) -> torch.Tensor:
    rows = []
    for number, period in enumerate(periods):
        row = windows[number % len(windows)]
        rows.append(torch.cat([row[:first], row[first : first + period].repeat(length)])[:length])
    return torch.stack(rows)


def _noised(
    repeats: torch.Tensor,
    periods: np.ndarray,
    candidates: torch.Tensor,
    first: int,
    stream: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    noised = repeats.clone()
    replaced = torch.zeros_like(repeats, dtype=torch.bool)
    for row, period in enumerate(periods):
        later = np.arange(first + period, repeats.shape[1])
        chosen = torch.from_numpy(stream.choice(later, max(1, int(NOISE * len(later))), False))
        fresh = _draw(candidates, len(chosen), stream)
        replaced[row, chosen] = fresh != repeats[row, chosen]
        noised[row, chosen] = fresh
    return noised, replaced


def _needles(
    candidates: torch.Tensor, front: list[int], length: int, size: int, stream: np.random.Generator
) -> tuple[torch.Tensor, np.ndarray]:
    rows = []
    last = length - 2 * size
    depths = np.linspace(len(front), last, ROWS).round().astype(int)
    for depth in depths:
        tokens = _draw(candidates, length - len(front) - size, stream)
        row = torch.cat([torch.tensor(front, dtype=torch.long), tokens])
        rows.append(torch.cat([row, row[depth : depth + size]]))
    return torch.stack(rows), depths


def _corpus(
    model: Model,
    texts: Sequence[str] | Sequence[Sequence[int]] | None,
    front: list[int],
    seed: int,
) -> tuple[torch.Tensor | None, torch.Tensor | None, dict[str, str]]:
    """Return windows of a corpus, where they hold delimiters, and what is missing."""
    from microtome.attribution.corpus import encoded, sample_windows

    if texts is None:
        return None, None, {"corpus": "no corpus was given"}
    context = require_anatomy(model.anatomy, "Naming parts").context
    length = min(WINDOW, context or WINDOW) - len(front)
    try:
        windows = sample_windows(encoded(model, texts), length, WINDOWS, seed)
    except EmptyDataError as error:
        return None, None, {"corpus": str(error)}
    rows = torch.cat([torch.tensor(front, dtype=torch.long).expand(len(windows), -1), windows], 1)
    try:
        marks = torch.tensor([[_is_mark(t) for t in model.tokens(row)] for row in rows])
    except MicrotomeError:
        return rows, None, {}
    if model.tokenizer is None:
        return rows, None, {}
    marks[:, : len(front)] = False
    return rows, marks, {}


def _is_mark(text: str) -> bool:
    """Return whether a token is punctuation or white space without a letter or digit."""
    return bool(text) and not any(c.isalnum() for c in text)
