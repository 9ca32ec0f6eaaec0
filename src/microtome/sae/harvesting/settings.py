"""The settings of a harvest: everything that decides the values in its shards."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from microtome.core.plain import plain
from microtome.core.seeds import rng
from microtome.errors import ConfigError, UnknownNameError, nearest
from microtome.models.fingerprint import tokenizer_fingerprint
from microtome.sae.harvesting.documents import Documents, Piece
from microtome.sae.harvesting.places import widths
from microtome.tracing.catalog import require_anatomy
from microtome.tracing.prompts import require_tokenizer
from microtome.tracing.sites import Site

if TYPE_CHECKING:
    from microtome.tracing.model import Model

DTYPES = {"float16": 2, "bfloat16": 2, "float32": 4}
"""Types of stored values and their bytes."""

SHARD_BYTES = 64 << 20
"""Bytes of a shard, about, where ``shard_rows`` is not given."""

FEWEST_SHARDS = 16
"""Shards of a harvest that is long enough, so that a stop loses little and reading mixes well."""

SHORTEST_SHARD = 8192
"""Tokens of a shard below which there may be fewer of them."""

CONTEXT = 128
"""Tokens of a row of the model's input, where the model can read as many."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the values in the shards; a harvest goes on only under the same.

    Attributes:
        model: Fingerprint of the weights.
        tokenizer: Fingerprint of the tokenizer, empty without one.
        text: SHA-256 of the documents' token ids.
        tokens: Tokens of the documents.
        sites: Site to width of its rows.
        dtype: Type of the stored values.
        model_dtype: Type that the model computes with.
        context: Tokens of a row of the model's input at most, beginning-of-sequence token included.
        bos: Whether every row begins with a beginning-of-sequence token.
        batch_size: Rows of a forward pass.
        mask_special: Whether special tokens are left out.
        outliers: Rows whose norm is this many times the median of their shard are left out; None
            keeps them.
        shards: How many shards.
        seed: Decides the order of rows in the shards.
    """

    model: str
    tokenizer: str
    text: str
    tokens: int
    sites: Mapping[str, int]
    dtype: str
    model_dtype: str
    context: int
    bos: bool
    batch_size: int
    mask_special: bool
    outliers: float | None
    shards: int
    seed: int

    def differences(self, other: Settings) -> list[str]:
        """Return each setting that differs from another harvest's, as text."""
        pairs = {
            f.name: (getattr(self, f.name), getattr(other, f.name))
            for f in dataclasses.fields(self)
        }
        return [f"{name}: {_short(a)}, now {_short(b)}" for name, (a, b) in pairs.items() if a != b]


def settings_of(
    model: Model,
    documents: Documents,
    sites: Sequence[Site],
    *,
    context: int | None,
    dtype: str | None,
    batch_size: int,
    shard_rows: int | None,
    mask_special: bool,
    outliers: float | None,
    seed: int,
) -> Settings:
    """Return the settings of a harvest, with what is not given filled in.

    See :func:`microtome.sae.harvest` for the arguments.

    Raises:
        ConfigError: If a number is out of range.
        UnknownNameError: If there is no such type.
        SiteError: If a site's value is not one row for each token.
        TokenizerError: If rows begin with a BOS token and there is no tokenizer.
    """
    longest = _context(model, context)
    stored = _dtype(model, dtype)
    check_positive(batch_size=batch_size, shard_rows=shard_rows)
    if outliers is not None and not outliers > 1:
        raise ConfigError(f"outliers={outliers}; expected a factor above 1, or None.")
    rng(seed, "harvest")  # refuses a seed that is none before anything is run
    if model.bos:
        require_tokenizer(model.tokenizer)
    found = widths(model, sites, Piece(documents.numbers[0], 0, documents.ids[0]))
    return Settings(
        model=model.fingerprint,
        tokenizer=tokenizer_fingerprint(model.tokenizer),
        text=documents.sha256,
        tokens=documents.tokens,
        sites=found,
        dtype=stored,
        model_dtype=str(model.dtype).removeprefix("torch."),
        context=longest,
        bos=model.bos,
        batch_size=batch_size,
        mask_special=mask_special,
        outliers=outliers,
        shards=_n_shards(documents.tokens, shard_rows, DTYPES[stored] * sum(found.values())),
        seed=seed,
    )


def _context(model: Model, context: int | None) -> int:
    """Return the tokens of a row of input."""
    longest = require_anatomy(model.anatomy, "A harvest").context
    chosen = min(CONTEXT, longest or CONTEXT) if context is None else context
    if not isinstance(chosen, int) or chosen < 2 or (longest is not None and chosen > longest):
        raise ConfigError(
            f"context={context!r}; expected 2 to {longest or 'any number of'} tokens."
        )
    return chosen


def _dtype(model: Model, dtype: str | None) -> str:
    """Return the type of stored values."""
    if dtype is None:
        own = str(model.dtype).removeprefix("torch.")
        return own if DTYPES.get(own) == 2 else "float16"
    if dtype not in DTYPES:
        raise UnknownNameError(f"No type {dtype!r} for activations{nearest(dtype, DTYPES)}.")
    return dtype


def _n_shards(tokens: int, shard_rows: int | None, row_bytes: int) -> int:
    """Return how many shards hold some tokens."""
    if shard_rows is not None:
        return -(-tokens // shard_rows)
    by_size = -(-tokens * row_bytes // SHARD_BYTES)
    return max(by_size, min(FEWEST_SHARDS, tokens // SHORTEST_SHARD), 1)


def check_positive(**numbers: int | None) -> None:
    """Refuse numbers below one.

    Raises:
        ConfigError: If one is; it is named.
    """
    for name, value in numbers.items():
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name}={value!r}; expected an integer from 1.")


def _short(value: Any) -> str:
    text = json.dumps(plain(value))
    return text if len(text) <= 60 else f"{text[:24]}..."
