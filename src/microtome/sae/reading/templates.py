"""What can be said of a token in its context: templates of position and format, true or false."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from microtome.sae.reading.index import LatentIndex

EARLY = 8
"""Tokens at the beginning of a text that count as early."""

_QUOTES, _OPENING, _CLOSING = "'\"", "([{", ")]}"

_OF_TOKEN: dict[str, Callable[[str], bool]] = {
    "begins with a space": lambda t: t.startswith(" "),
    "holds a line break": lambda t: "\n" in t,
    "is blank": lambda t: bool(t) and not t.strip(),
    "is a number": lambda t: t.strip().isdigit(),
    "begins with a capital": lambda t: t.strip()[:1].isupper(),
    "is in capitals": lambda t: len(t.strip()) > 1 and t.strip().isupper(),
    "is a word": lambda t: t.strip().isalpha(),
    "is punctuation": lambda t: bool(t.strip()) and not any(c.isalnum() or c == "_" for c in t),
}
"""Templates that depend on the token alone, in words that follow "the token"."""


def templates(index: LatentIndex) -> dict[str, NDArray[np.bool_]]:
    """Return whether each template holds at each position ``[position]``, by its words."""
    n = len(index.ids)
    found: dict[str, NDArray[np.bool_]] = {}
    known, inverse = np.unique(index.ids, return_inverse=True)
    texts = [index.vocabulary.get(int(i), "") for i in known]
    for words, test in _OF_TOKEN.items():
        found[f"the token {words}"] = np.array([test(t) for t in texts], dtype=bool)[inverse]
    starts = np.zeros(n, dtype=bool)
    starts[index.contexts[:-1][index.contexts[:-1] < n]] = True
    breaks = found["the token holds a line break"]
    found["the text begins here"] = starts
    found[f"the token is one of the first {EARLY}"] = (
        np.arange(n) - index.contexts[index.context_ids] < EARLY
    )
    found["a line begins here"] = starts | np.concatenate([[False], breaks[:-1]])
    seen = _seen(index)
    found["the token stood before in the text"] = seen
    found["the token before stood before that"] = np.concatenate([[False], seen[:-1]]) & ~starts
    found |= _scanned(index, texts, inverse)
    return {words: flags for words, flags in found.items() if 0 < int(flags.sum()) < n}


def _seen(index: LatentIndex) -> NDArray[np.bool_]:
    """Return whether the same token stands earlier in the same context ``[position]``."""
    pairs = np.stack([index.context_ids, index.ids.astype(np.int64)], axis=1)
    _, first = np.unique(pairs, axis=0, return_index=True)
    seen = np.ones(len(index.ids), dtype=bool)
    seen[first] = False
    return seen


def _scanned(
    index: LatentIndex, texts: list[str], inverse: NDArray[np.int64]
) -> dict[str, NDArray[np.bool_]]:
    """Return templates that need a walk from the start of a context to before its token."""
    n = len(index.ids)
    single, double, bracketed, indented, noted = (np.zeros(n, dtype=bool) for _ in range(5))
    for start, end in zip(index.contexts[:-1], index.contexts[1:], strict=True):
        quote, depth, indent, fresh, comment = "", 0, 0, True, False
        for position in range(int(start), int(end)):
            single[position], double[position] = quote == "'", quote == '"'
            bracketed[position] = depth > 0
            noted[position] = comment
            indented[position] = indent > 0 and not fresh
            for character in texts[int(inverse[position])]:
                if quote:
                    quote = "" if character in (quote, "\n") else quote
                elif character in _QUOTES and not comment:
                    quote = character
                elif character == "#":
                    comment = True
                elif comment:
                    comment = character != "\n"
                elif character in _OPENING:
                    depth += 1
                elif character in _CLOSING:
                    depth = max(0, depth - 1)
                if character == "\n":
                    indent, fresh = 0, True
                elif fresh and character in " \t":
                    indent += 1
                else:
                    fresh = False
    return {
        "a quotation is open": single | double,
        "a quotation in ' is open": single,
        'a quotation in " is open': double,
        "a bracket is open": bracketed,
        "the line is indented": indented,
        "a comment is open": noted,
    }
