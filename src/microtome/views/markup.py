"""Escaped markup: the one place where text becomes HTML or SVG.

``Markup`` is a string that is already safe. ``tag`` escapes every attribute and every child that is
not ``Markup``, so a prompt can reach a page only as text. Output is well-formed XML and valid HTML.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

# Characters that XML forbids, that reorder the text around them, or that end a line invisibly.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
    "\ufdd0-\ufdef\ufffe\uffff]"
)
_SPECIAL = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"}
_SPECIAL_PATTERN = re.compile("[&<>\"']")


class Markup(str):
    """A string of HTML or SVG that is already escaped."""

    __slots__ = ()

    def __html__(self) -> str:
        """Return itself: template engines take it as already escaped."""
        return self

    def __add__(self, other: str) -> Markup:
        """Return both pieces as one; plain text is escaped."""
        return Markup(str.__add__(self, escape(other)))


def visible_control(character: str) -> str:
    """Return a printable stand-in for a character that must not reach a page as itself.

    Control characters become their control picture (U+2400 block), others their code point.
    """
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"⟨U+{code:04X}⟩"


def escape(text: object) -> Markup:
    """Return text with markup, control and reordering characters made harmless.

    ``Markup`` passes through unchanged.
    """
    if isinstance(text, Markup):
        return text
    return Markup(_SPECIAL_PATTERN.sub(lambda match: _SPECIAL[match.group()], harmless(str(text))))


def harmless(text: str) -> str:
    """Return text with control and reordering characters made visible, otherwise as it is."""
    return _UNSAFE.sub(lambda match: visible_control(match.group()), text)


def coordinate(value: float) -> str:
    """Return a coordinate with at most two decimals, without trailing zeros."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def _attribute(name: str, value: object) -> str:
    name = name.rstrip("_").replace("_", "-")
    if value is True:
        return f' {name}=""'
    if isinstance(value, float):
        value = coordinate(value) if math.isfinite(value) else "0"
    return f' {name}="{escape(value)}"'


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """Return one element; children and attribute values are escaped unless they are ``Markup``.

    Args:
        name: Element name.
        children: Text or ``Markup``; None is left out.
        attributes: ``class_`` becomes ``class``, other underscores become hyphens; a value of None
            or False leaves the attribute out, True writes it empty.
    """
    shown = "".join(
        _attribute(key, value)
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    inner = "".join(escape(child) for child in children if child is not None)
    if not inner and name in _VOID:
        return Markup(f"<{name}{shown}/>")
    return Markup(f"<{name}{shown}>{inner}</{name}>")


_VOID = frozenset(("br", "hr", "rect", "circle", "path", "line", "polygon", "meta"))


def join(parts: Iterable[Markup], separator: str = "") -> Markup:
    """Return several pieces of markup as one."""
    return Markup(escape(separator).join(escape(part) for part in parts))
