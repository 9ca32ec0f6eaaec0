"""Behaviors in Python statements: ``for ... in`` and ``with ... as``.

The two prompts of a pair differ in the keyword that opens the statement. In every clean prompt a
whole statement with the other keyword stands before it, so that a bag of words holds both.
"""

from __future__ import annotations

from collections.abc import Callable

from microtome.behaviors.behavior import Behavior
from microtome.behaviors.generators.frames import Draft, Words, generate
from microtome.behaviors.generators.words import CLASSES, FUNCTIONS, IDENTIFIERS, unique
from microtome.behaviors.items import Feature

_LISTS = {"name": unique(IDENTIFIERS), "function": FUNCTIONS, "class": CLASSES}


def for_in(n: int = 200, *, seed: int = 0) -> Behavior:
    """Go on with ``in`` behind the target of a loop: ``for item`` in.

    Args:
        n: Examples over all splits.
        seed: Same seed, same items.

    Returns:
        Pairs that differ in the keyword, ``for`` against one that a colon or another word follows.
    """
    train = {
        "line": lambda w: _looped(w, ""),
        "function": lambda w: _looped(w, "def {f}({b}):\n    "),
        "behind an assignment": lambda w: _looped(w, "{b} = {c}\n"),
        "two targets": lambda w: _looped(w, "{b} = []\n", targets=2),
        "comprehension": lambda w: _looped(w, "{b} = [{f}({a}) ", inside=True),
        "method": lambda w: _looped(w, "def {f}(self):\n    {b} = self.{c}\n    "),
    }
    test = {
        "behind a call": lambda w: _looped(w, "{f}({b}, {c})\n"),
        "argument": lambda w: _looped(w, "{f}([{a}.{b} ", inside=True),
        "three targets": lambda w: _looped(w, "{b} = {{}}\n", targets=3),
        "nested": lambda w: _looped(w, "def {f}({b}):\n    if {b}:\n        "),
    }
    return generate(
        "for-in",
        title="The in of a for loop",
        description="Behind the target of a loop or comprehension, predict `in`; behind `while` a "
        "colon, behind `with` a colon or `as`, behind `or` the end of the item. The task's "
        "rule: `in` follows the names behind `for`.",
        train=train,
        test=test,
        lists=_LISTS,
        n=n,
        seed=seed,
    )


_OTHERS: dict[str, tuple[str, ...]] = {"while": (":",), "with": (" as", ":"), "or": ("]", ",")}
"""What follows a name behind a keyword other than ``for``."""

_BEFORE = {
    "while": ("for {a} in {b}:\n    {c} = {a}\n", "while {a} in {b}:\n    {c} = {a}\n"),
    "with": ("for {a}, {b} in {c}:\n    {d} = {a}\n", "with {a}, {b}:\n    {d} = {a} in {c}\n"),
    "or": ("{a} = [{b} for {c} in {d}]\n", "{a} = [{b} or {c} in {d}]\n"),
}
"""Whole statements with ``for`` and with the other keyword, else of the same tokens."""


def _looped(w: Words, shape: str, *, targets: int = 1, inside: bool = False) -> Draft:
    names = w.some("name", targets + 2)
    target = ", ".join(names[:targets])
    words = {"a": names[0], "b": names[-2], "c": names[-1], "f": w.one("function")}
    other = "or" if inside else "while" if targets == 1 else "with"
    loop = w.chance(0.5)
    before = _BEFORE[other][loop].format(**dict(zip("abcd", w.some("name", 4), strict=True)))

    def text(is_loop: bool) -> str:
        keyword = "for" if is_loop else other
        start = before + shape.format(**words)
        return f"{start}⟦keyword:{keyword}⟧ ⟦target:{target}⟧"

    answers: dict[bool, tuple[str, ...]] = {True: (" in",), False: _OTHERS[other]}
    features: dict[str, Feature] = {"keyword": "for" if loop else other, "targets": float(targets)}
    return Draft(text(loop), text(not loop), answers[loop], answers[not loop], names[0], features)


def with_as(n: int = 200, *, seed: int = 0) -> Behavior:
    """Go on with ``as`` behind a context: ``with open(path)`` as.

    Args:
        n: Examples over all splits.
        seed: Same seed, same items.

    Returns:
        Pairs that differ in the keyword, ``with`` against ``if`` or ``while``, behind whose calls a
        colon follows.
    """
    train = {
        "open": lambda w: _context(w, "open({a})"),
        "open to read": lambda w: _context(w, "open({a}, 'r')"),
        "method": lambda w: _context(w, "{a}.{f}({b})"),
        "class": lambda w: _context(w, "{C}({a})"),
        "open in a function": lambda w: _context(w, "open({a})", start="def {f}({a}):\n    "),
        "attribute": lambda w: _context(w, "self.{a}.{f}()", start="def {g}(self):\n    "),
    }
    test = {
        "function": lambda w: _context(w, "{f}({a})"),
        "open to write": lambda w: _context(w, "open({a}, 'w')"),
        "open an attribute": lambda w: _context(
            w, "open(self.{a})", start="def {f}(self):\n    {b} = self.{a}\n    "
        ),
        "two arguments": lambda w: _context(w, "{C}({a}, {b})"),
    }
    return generate(
        "with-as",
        title="The as of a with statement",
        description="Behind the call that opens a context, predict `as`; behind the same call in a "
        "condition, a colon. The task's rule: `as` follows the call behind `with`.",
        train=train,
        test=test,
        lists=_LISTS,
        n=n,
        seed=seed,
    )


def _context(w: Words, shape: str, *, start: str = "") -> Draft:
    a, b, c = w.some("name", 3)
    f, g = w.some("function", 2)
    words = {"a": a, "b": b, "f": f, "g": g, "C": w.one("class")}
    other = w.pick("if", "while")
    context = w.chance(0.5)
    before = f"{other if context else 'with'} {c}:\n    {b}.{g}()\n"

    def text(is_context: bool) -> str:
        keyword = "with" if is_context else other
        call = shape.format(**words)
        return f"{before}{start.format(**words)}⟦keyword:{keyword}⟧ ⟦call:{call}⟧"

    right, wrong = (" as", ":") if context else (":", " as")
    features: dict[str, Feature] = {
        "keyword": "with" if context else other,
        "opened": shape.startswith("open("),
    }
    return Draft(text(context), text(not context), right, wrong, a, features)


GENERATORS: dict[str, Callable[..., Behavior]] = {"for-in": for_in, "with-as": with_as}
"""Generators of statement behaviors by name."""
