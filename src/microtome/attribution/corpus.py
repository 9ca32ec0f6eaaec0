"""The corpus read once: where units are most active, and how fluent its own windows are."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.attribution.fluency import measure
from microtome.attribution.maximization_results import ActivatingText, CorpusActivations
from microtome.attribution.units import Unit
from microtome.attribution.units import unit as as_unit
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.core.seeds import rng
from microtome.errors import ConfigError, EmptyDataError, PromptError
from microtome.tracing.catalog import require_anatomy
from microtome.tracing.prompts import require_tokenizer

if TYPE_CHECKING:
    from microtome.tracing.model import Model
    from microtome.tracing.sites import Site

Texts = Sequence[str] | Sequence[Sequence[int]]

_QUANTILES = ("0.5", "0.9", "0.99", "0.999")


def search_corpus(
    model: Model,
    unit: str | Site | Unit,
    texts: Texts,
    *,
    window: int = 64,
    top: int = 10,
    batch_size: int = 64,
    progress: Progress = quiet,
) -> CorpusActivations:
    """Find where in a corpus a unit is most active.

    Every token is read once, in windows that overlap by half: behind the first window of a text,
    a token has at least half a window of context.

    Args:
        model: A transformer.
        unit: A neuron, head or direction; see :func:`microtome.attribution.unit`.
        texts: Texts, or lists of token ids.
        window: Tokens of a window.
        top: How many windows to keep.
        batch_size: Windows per pass.
        progress: Told how far it is.

    Raises:
        ConfigError: If the window is shorter than two tokens or longer than the model's context.
        EmptyDataError: If the corpus has no tokens.
        SelectorError: If the unit is not one unit.

    Example:
        >>> import microtome as mt
        >>> from microtome.attribution import search_corpus
        >>> model = mt.load("python-code")
        >>> found = search_corpus(model, "blocks.2.mlp.act[neuron=5]", ["x = 1", "y = 'a'"])
        >>> found.n_tokens
        12
    """
    return search_units(
        model,
        [as_unit(unit)],
        encoded(model, texts),
        window=window,
        top=top,
        batch_size=batch_size,
        progress=progress,
    )[0]


def search_units(
    model: Model,
    units: Sequence[Unit],
    corpus: Sequence[Sequence[int]],
    *,
    window: int,
    top: int,
    batch_size: int = 64,
    progress: Progress = quiet,
) -> list[CorpusActivations]:
    """Find where in a corpus each of several units is most active, in one reading."""
    _check(model, window, top)
    records = [_Record(u, top) for u in units]
    windows = list(windows_of(corpus, window))
    # rows of like length share a pass, so that few positions are padding
    windows.sort(key=lambda w: -len(w.ids))
    for start in range(0, len(windows), batch_size):
        part = windows[start : start + batch_size]
        shift = int(model.bos)
        front = [int(model.tokenizer.bos_token_id)] if shift else []
        rows = [front + list(w.ids) for w in part]
        sites = list({str(u.captured): u.captured for u in units}.values())
        trace = model.trace(rows, capture=sites, logits=None)
        for record in records:
            values = record.unit.read(trace[record.unit.captured]).float().cpu().numpy()
            for row, w in zip(values[:, shift:], part, strict=True):
                record.take(w, row[w.fresh : len(w.ids)])
        progress.step(start + len(part), len(windows), "corpus")
    return [_activations(model, r, window) for r in records]


def encoded(model: Model, texts: Texts) -> list[list[int]]:
    """Return the token ids of each text of a corpus, without beginning-of-sequence tokens.

    Raises:
        EmptyDataError: If there are no tokens.
    """
    if isinstance(texts, str):
        raise PromptError("The corpus is one text; give a list of texts.")
    rows = [_ids(model, t) for t in texts if len(t)]
    if not any(rows):
        raise EmptyDataError(f"The corpus of {len(texts)} texts holds no tokens to search.")
    return rows


def _ids(model: Model, text: str | Sequence[int]) -> list[int]:
    if not isinstance(text, str):
        return [int(i) for i in text]
    require_tokenizer(model.tokenizer)
    # a text longer than the context is cut into windows, so the tokenizer need not warn of it
    return list(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def sample_windows(
    corpus: Sequence[Sequence[int]], length: int, count: int, seed: int
) -> torch.Tensor:
    """Return windows of equal length drawn evenly from a corpus, ``[count, length]``.

    Raises:
        EmptyDataError: If no text is as long.
    """
    long = [row for row in corpus if len(row) >= length]
    if not long:
        raise EmptyDataError(
            f"No text of the corpus has {length} tokens; give longer texts or a smaller length."
        )
    stream = rng(seed, "corpus windows")
    places = np.array([len(row) - length + 1 for row in long])
    drawn = stream.choice(len(long), size=count, p=places / places.sum())
    starts = [int(stream.integers(places[i])) for i in drawn]
    return torch.tensor([long[i][s : s + length] for i, s in zip(drawn, starts, strict=True)])


def with_cross_entropy(model: Model, unit: Unit, found: ActivatingText) -> ActivatingText:
    """Return a text of the corpus measured alone: its activation and cross-entropy."""
    if len(found.ids) + int(model.bos) < 2:
        return found
    activation, entropy = measure(model, unit, torch.tensor([found.ids]))
    return ActivatingText(
        found.text,
        found.ids,
        float(activation[0]),
        float(entropy[0]),
        found.source,
        found.position,
    )


@dataclass(frozen=True)
class Window:
    """Some tokens of a text: those from ``fresh`` on are read, the others are context."""

    text: int
    start: int
    fresh: int
    ids: tuple[int, ...]


class _Record:
    """The best windows of one unit so far, and all activations."""

    def __init__(self, unit: Unit, top: int) -> None:
        self.unit = unit
        self.values: list[np.ndarray] = []
        self._top = top
        self._best: list[tuple[float, int, int, Window]] = []

    def take(self, window: Window, values: np.ndarray) -> None:
        """Note the activations at a window's fresh tokens."""
        self.values.append(values)
        place = int(values.argmax())
        end = window.fresh + place
        # ties go to the earlier place, whatever the order of the windows
        entry = (float(values[place]), -window.text, -(window.start + end), window)
        if len(self._best) < self._top:
            heapq.heappush(self._best, entry)
        else:
            heapq.heappushpop(self._best, entry)

    def best(self) -> list[tuple[float, Window, int]]:
        """Return activation, window and place of the best token inside it, best first."""
        ordered = sorted(self._best, key=lambda e: e[:3], reverse=True)
        return [(value, w, -place - w.start) for value, _, place, w in ordered]


def windows_of(corpus: Sequence[Sequence[int]], window: int) -> Iterator[Window]:
    """Yield windows of some texts, which overlap by half; each token is fresh in one of them."""
    half = window // 2
    for number, ids in enumerate(corpus):
        read, start = 0, 0
        while read < len(ids):
            stop = min(start + window, len(ids))
            yield Window(number, start, read - start, tuple(ids[start:stop]))
            read, start = stop, stop - half


def _activations(model: Model, record: _Record, window: int) -> CorpusActivations:
    values = np.concatenate(record.values).astype(np.float64)
    best = []
    for value, w, place in record.best():
        ids = w.ids[: place + 1]
        text = model.decode(ids) if model.tokenizer is not None else " ".join(map(str, ids))
        best.append(ActivatingText(text, ids, value, None, w.text, w.start + place))
    return CorpusActivations(
        unit=str(record.unit),
        windows=tuple(best),
        n_tokens=len(values),
        mean=float(values.mean()),
        standard_deviation=float(values.std()),
        quantiles={q: float(np.quantile(values, float(q))) for q in _QUANTILES},
        provenance=collect(model, {"method": "corpus search", "window": window}),
    )


def _check(model: Model, window: int, top: int) -> None:
    context = require_anatomy(model.anatomy, "A search in texts").context
    longest = None if context is None else context - int(model.bos)
    if window < 2 or (longest is not None and window > longest):
        raise ConfigError(f"window={window}; expected 2 to {longest or 'any number of'} tokens.")
    if top < 1:
        raise ConfigError(f"top={top}; expected at least 1 window to keep.")
