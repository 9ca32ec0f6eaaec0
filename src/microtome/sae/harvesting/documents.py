"""Documents as token ids, and the pieces of them that a model reads at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from microtome.errors import EmptyDataError, PromptError
from microtome.store.texts import read_texts
from microtome.tracing.prompts import require_tokenizer, require_unicode

Text = str | Path | Sequence[str] | Sequence[Sequence[int]] | torch.Tensor
"""A file or folder, texts, lists of token ids, or a tensor ``[document, token]`` of them."""

STRETCH = 4
"""Contexts of a document that stay in one shard; longer documents go to several."""


@dataclass(frozen=True, eq=False)
class Documents:
    """Token ids of documents, without beginning-of-sequence tokens.

    Attributes:
        ids: int32 ids of each document that has any.
        numbers: Number of each of them in what was given.
    """

    ids: tuple[NDArray[np.int32], ...]
    numbers: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return sum(len(ids) for ids in self.ids)

    @property
    def sha256(self) -> str:
        """Hash of the ids, document by document."""
        digest = hashlib.sha256()
        for number, ids in zip(self.numbers, self.ids, strict=True):
            digest.update(f"{number}:{len(ids)}:".encode())
            digest.update(ids.astype("<i4").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Piece:
    """Some tokens of one document that a model reads in one row.

    Attributes:
        document: Number of the document.
        start: Place of the first token in the document.
        ids: The tokens.
    """

    document: int
    start: int
    ids: NDArray[np.int32]


def read_documents(text: Text, *, tokenizer: Any, tokens: int | None = None) -> Documents:
    """Return the documents of a text as token ids.

    Args:
        text: A file, a folder (each file a document, each line of a ``.jsonl`` file one), texts,
            lists of token ids, or a tensor of ids.
        tokenizer: For texts.
        tokens: Tokens to take at most; the last document is cut.

    Raises:
        DataError: If a file cannot be read.
        TokenizerError: If there are texts and no tokenizer.
        PromptError: If an item is neither text nor token ids.
        EmptyDataError: If there are no tokens.
    """
    if isinstance(text, str) and not text.strip():
        raise EmptyDataError(f"text is {text!r}; give a file, a folder, or a list of texts.")
    if not isinstance(text, str | Path | Iterable) or isinstance(text, Mapping):
        raise PromptError(
            f"text is {type(text).__name__}; expected a file, a folder, texts, or token ids."
        )
    if isinstance(text, torch.Tensor):
        text = text.cpu()
    items = read_texts([text]) if isinstance(text, str | Path) else list(text)
    found: list[NDArray[np.int32]] = []
    numbers: list[int] = []
    left = np.iinfo(np.int64).max if tokens is None else tokens
    for number, ids in enumerate(_encoded(items, tokenizer)):
        if left <= 0:
            break
        if len(ids):
            found.append(ids[:left])
            numbers.append(number)
            left -= len(found[-1])
    if not found:
        raise EmptyDataError(f"The text of {len(items)} documents holds no tokens to harvest.")
    return Documents(tuple(found), tuple(numbers))


def deal(documents: Documents, room: int, shards: int) -> list[list[Piece]]:
    """Cut documents into pieces and deal these out to shards in turn.

    No piece holds tokens of two documents. A document goes to one shard unless it is longer than
    ``STRETCH`` pieces, so that one long file fills all shards evenly.

    Args:
        documents: The documents.
        room: Tokens of a piece at most.
        shards: How many shards.
    """
    dealt: list[list[Piece]] = [[] for _ in range(shards)]
    turn = 0
    for number, ids in zip(documents.numbers, documents.ids, strict=True):
        starts = range(0, len(ids), room)
        for first in range(0, len(starts), STRETCH):
            stretch = starts[first : first + STRETCH]
            dealt[turn % shards] += [Piece(number, s, ids[s : s + room]) for s in stretch]
            turn += 1
    return dealt


def _encoded(items: Sequence[Any], tokenizer: Any) -> Iterator[NDArray[np.int32]]:
    for number, item in enumerate(items):
        if isinstance(item, str):
            require_tokenizer(tokenizer)
            require_unicode(item)
            # a document longer than the context is cut, so the tokenizer need not warn of it
            item = tokenizer(item, add_special_tokens=False, verbose=False)["input_ids"]
        try:
            ids = np.asarray(item)
        except ValueError:
            ids = np.zeros((), dtype=object)
        if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
            raise PromptError(
                f"Document {number} is neither text nor a list of token ids: "
                f"{type(item).__name__}, {str(item)[:60]!r}."
            )
        yield ids.astype(np.int32).reshape(-1)
