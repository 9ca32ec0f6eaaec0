"""How tokens and labels are written: visible blanks, width estimates, shortening.

Widths are estimates for a monospaced face (0.6 em a cell, two cells for wide characters) and an
upper estimate for a text face; layouts that must not overlap use the monospaced one.
"""

from __future__ import annotations

import unicodedata

from microtome.views.markup import visible_control

MONO_EM = 0.602
TEXT_EM = 0.56

_NAMED = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"}
# Joiners and variation selectors belong to emoji and to several scripts; they stay as they are.
_KEPT = frozenset("\u200c\u200d\ufe0e\ufe0f")


def visible_token(text: str) -> str:
    """Return a token with blanks and invisible characters made visible.

    Space is ``·``, line end ``⏎``, tab ``⇥``; other invisible characters show their code point; the
    empty token is ``∅``.
    """
    if not text:
        return "∅"
    return "".join(_visible_character(character) for character in text)


def visible_label(text: str) -> str:
    """Return a label of an axis or node: as a token, but blanks between words stay blanks."""
    inner = text.strip(" ")
    if not inner:
        return visible_token(text)
    start = text.index(inner)
    words = " ".join(visible_token(word) if word else "" for word in inner.split(" "))
    return "·" * start + words + "·" * (len(text) - start - len(inner))


def _visible_character(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    if character in _KEPT:
        return character
    category = unicodedata.category(character)
    if category in ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs"):
        return visible_control(character)
    return character


def cells(text: str) -> int:
    """Return how many monospaced cells a text takes: wide characters two, combining marks none."""
    total = 0
    for character in text:
        if unicodedata.combining(character) or character in _KEPT:
            continue
        wide = unicodedata.east_asian_width(character) in ("W", "F")
        total += 2 if wide else 1
    return total


def mono_width(text: str, size: float) -> float:
    """Return the width of a text in pixels in a monospaced face of a given size in pixels."""
    return cells(text) * MONO_EM * size


def text_width(text: str, size: float) -> float:
    """Return an upper estimate of the width of a text in pixels in a proportional face."""
    return cells(text) * TEXT_EM * size


def shorten(text: str, limit: int) -> str:
    """Return a text of at most ``limit`` cells, with an ellipsis in its middle if it was longer."""
    if cells(text) <= limit:
        return text
    head, tail = _take(text, (limit - 1 + 1) // 2), _take(text[::-1], (limit - 1) // 2)[::-1]
    return f"{head}…{tail}"


def _take(text: str, limit: int) -> str:
    used, kept = 0, []
    for character in text:
        used += cells(character)
        if used > limit:
            break
        kept.append(character)
    return "".join(kept)
