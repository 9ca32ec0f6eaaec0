"""Behaviors in Python code: quotes, brackets, self-assignment, defaults in signatures.

Pairs are built so that a bag of words cannot tell the two sides apart, or only sometimes: brackets
are exchanged in place, and other strings and signatures nearby use the other quote or a default as
often as not.
"""

from __future__ import annotations

from collections.abc import Callable

from microtome.behaviors.behavior import Behavior
from microtome.behaviors.generators.frames import Draft, Words, generate
from microtome.behaviors.generators.words import CLASSES, FUNCTIONS, IDENTIFIERS, unique

_LISTS = {"name": unique(IDENTIFIERS), "function": FUNCTIONS, "class": CLASSES}


def quote_closing(n: int = 200, *, seed: int = 0) -> Behavior:
    """Close a Python string with the quote that opened it.

    Args:
        n: Examples over all splits.
        seed: Same seed, same items.

    Returns:
        Pairs that differ in the opening quote; a string before it uses the other quote in half of
        them, so that counting quotes does not tell.
    """
    train = {
        "assignment": lambda w: _quoted(w, lambda s: f"{w.one('name')} = {s}"),
        "print": lambda w: _quoted(w, lambda s: f"print({s}"),
        "return": lambda w: _quoted(w, lambda s: f"def {w.one('function')}():\n    return {s}"),
        "comparison": lambda w: _quoted(w, lambda s: f"if {w.one('name')} == {s}"),
        "method call": lambda w: _quoted(w, lambda s: f"{w.one('name')}.{w.one('function')}({s}"),
        "list": lambda w: _quoted(w, lambda s: f"{w.one('name')} = [{s}"),
    }
    test = {
        "exception": lambda w: _quoted(w, lambda s: f"raise ValueError({s}"),
        "dictionary key": lambda w: _quoted(w, lambda s: f"{w.one('name')} = {{{s}"),
        "subscript": lambda w: _quoted(w, lambda s: f"{w.one('name')}[{s}"),
        "keyword argument": lambda w: _quoted(
            w, lambda s: f"{w.one('function')}({w.one('name')}={s}"
        ),
    }
    return generate(
        "quote-closing",
        title="Closing a string with the right quote",
        description="After an open Python string, predict the quote that opened it. The task's "
        "rule: the closing quote equals the last opening quote.",
        train=train,
        test=test,
        lists=_LISTS,
        n=n,
        seed=seed,
    )


def _quoted(w: Words, place: Callable[[str], str]) -> Draft:
    quote = w.pick("'", '"')
    other = '"' if quote == "'" else "'"
    count = 1 + int(w.random.integers(4))
    joint = w.pick(" ", "_", "-")
    body = joint.join(w.some("name", count))
    earlier = w.pick("none", "other", "other", "same")
    before = ""
    if earlier != "none":
        mark = quote if earlier == "same" else other
        before = f"{w.one('name')} = {mark}{w.one('name')}{mark}\n"
    # the same frame around both quotes: place() draws words, so it runs once
    frame = place("⟦slot⟧")
    clean, corrupt = (
        before + frame.replace("⟦slot⟧", f"⟦opening quote:{q}⟧⟦string:{body}⟧")
        for q in (quote, other)
    )
    features = {
        "opening quote": "single" if quote == "'" else "double",
        "words in string": float(count),
        "joint": {" ": "space", "_": "underscore", "-": "dash"}[joint],
        "earlier string": earlier,
    }
    return Draft(clean, corrupt, quote, other, body.split(joint)[0], features)


_CLOSER = {"(": ")", "[": "]"}


def bracket_closing(n: int = 200, *, seed: int = 0) -> Behavior:
    """Close the innermost open bracket of Python code.

    Args:
        n: Examples over all splits.
        seed: Same seed, same items.

    Returns:
        Pairs in which the two innermost open brackets are exchanged, so that both prompts hold the
        same tokens.
    """
    train = {
        "nested": lambda w: _bracketed(w, "{o}{i}{a}, {b}"),
        "call": lambda w: _bracketed(w, "{f}({o}{i}{a}, {b}", depth=3),
        "first item": lambda w: _bracketed(w, "{o}{a}, {i}{b}, {c}"),
        "one item": lambda w: _bracketed(w, "{o}{i}{a}"),
        "two items before": lambda w: _bracketed(w, "{o}{a}, {b}, {i}{c}"),
        "print": lambda w: _bracketed(w, "print({o}{a}, {i}{b}", depth=3, assigned=False),
    }
    test = {
        "closed pair between": lambda w: _bracketed(w, "{o}{a}, {f}({b}), {i}{c}, {d}"),
        "return": lambda w: _bracketed(
            w, "def {f}({d}):\n    return {o}{i}{a}, {b}", assigned=False
        ),
        "for loop": lambda w: _bracketed(w, "for {d} in {o}{i}{a}, {b}", assigned=False),
        "list of three": lambda w: _bracketed(w, "{o}{i}{a}, {b}, {c}"),
    }
    return generate(
        "bracket-closing",
        title="Closing the innermost bracket",
        description="With two kinds of bracket open, predict the closer of the innermost one. The "
        "task's rule: the closer belongs to the last bracket that is still open.",
        train=train,
        test=test,
        lists=_LISTS,
        n=n,
        seed=seed,
    )


def _bracketed(w: Words, shape: str, *, depth: int = 2, assigned: bool = True) -> Draft:
    inner, outer = tuple(w.pick("([", "[("))
    a, b, c, d = w.some("name", 4)
    words = {"a": a, "b": b, "c": c, "d": d, "f": w.one("function")}
    start = f"{w.one('name')} = " if assigned else ""

    def text(o: str, i: str) -> str:
        return start + shape.format(o=f"⟦outer bracket:{o}⟧", i=f"⟦inner bracket:{i}⟧", **words)

    features = {
        "inner bracket": "round" if inner == "(" else "square",
        "outer bracket": "round" if outer == "(" else "square",
        "depth": float(depth),
        "items inside": float(shape.split("{i}")[1].count("{")),
    }
    return Draft(
        text(outer, inner), text(inner, outer), _CLOSER[inner], _CLOSER[outer], a, features
    )


def self_assignment(n: int = 200, *, seed: int = 0) -> Behavior:
    """Assign the parameter of the same name: ``self.size = size``.

    Args:
        n: Examples over all splits.
        seed: Same seed, same items.

    Returns:
        Pairs that differ in the attribute's name, another parameter of the same signature.
    """
    train = {
        "two parameters": lambda w: _assigned(w, 2),
        "three parameters": lambda w: _assigned(w, 3),
        "with base class": lambda w: _assigned(w, 2, base=True),
        "one stored already": lambda w: _assigned(w, 3, stored=1),
        "with a default": lambda w: _assigned(w, 2, default=True),
        "after super": lambda w: _assigned(w, 2, opening="        super().__init__()\n"),
    }
    test = {
        "four parameters": lambda w: _assigned(w, 4),
        "two stored already": lambda w: _assigned(w, 4, stored=2),
        "other method": lambda w: _assigned(w, 3, method=w.one("function")),
        "with docstring": lambda w: _assigned(w, 3, opening='        """Store the arguments."""\n'),
    }
    return generate(
        "self-assignment",
        title="Storing the parameter of the same name",
        description="After `self.x =` in a method, predict x, one of the method's parameters. The "
        "task's rule: the value has the name of the attribute.",
        train=train,
        test=test,
        lists=_LISTS,
        n=n,
        seed=seed,
    )


def _assigned(
    w: Words,
    count: int,
    *,
    stored: int = 0,
    base: bool = False,
    default: bool = False,
    method: str = "__init__",
    opening: str = "",
) -> Draft:
    names = w.some("name", count)
    right, wrong = names[stored], names[stored + 1]
    listing = ", ".join(f"{n}=None" if default and n == names[-1] else n for n in names)
    head = (
        f"class {w.one('class')}{'(object)' if base else ''}:\n    def {method}(self, "
        f"⟦signature:{listing}⟧):\n{opening}"
    )
    head += "".join(f"        self.{n} = {n}\n" for n in names[:stored])

    def text(name: str) -> str:
        return f"{head}        self.⟦attribute:{name}⟧ ="

    features = {
        "parameters": float(count),
        "place in signature": float(stored + 1),
        "stored before": float(stored),
    }
    return Draft(text(right), text(wrong), f" {right}", f" {wrong}", right, features)


def default_or_close(n: int = 200, *, seed: int = 0) -> Behavior:
    """After a parameter's name, write ``=`` if an earlier one has a default, else go on or close.

    Args:
        n: Examples over all splits.
        seed: Same seed, same items.

    Returns:
        Pairs that differ in whether the earlier parameter has a default; a signature before has one
        as often as not.
    """
    train = {
        "method": lambda w: _signature(w, "self, "),
        "function": lambda w: _signature(w, ""),
        "one before": lambda w: _signature(w, "", extra=1),
        "method, one before": lambda w: _signature(w, "self, ", extra=1),
        "class method": lambda w: _signature(w, "cls, "),
        "constructor": lambda w: _signature(w, "self, ", method="__init__"),
    }
    test = {
        "two before": lambda w: _signature(w, "", extra=2),
        "constructor, one before": lambda w: _signature(w, "self, ", method="__init__", extra=1),
        "private": lambda w: _signature(w, "self, ", method=f"_{w.one('function')}"),
    }
    return generate(
        "default-or-close",
        title="A default, or the end of the signature",
        description="After a parameter's name, predict `=` where an earlier parameter of the "
        "signature has a default, and `)` or `,` where none has. The task's rule: no parameter "
        "without a default follows one with.",
        train=train,
        test=test,
        lists=_LISTS,
        n=n,
        seed=seed,
    )


def _signature(w: Words, first: str, *, method: str = "", extra: int = 0) -> Draft:
    names = w.some("name", 3 + extra)
    with_default = w.chance(0.5)
    # mostly the opposite of this signature, so that counting equals signs misleads
    earlier = w.chance(0.65) != with_default
    a, b = w.some("name", 2)
    before = (
        f"def {w.one('function')}({first}{a}{'=None' if earlier else ', ' + b}):\n    "
        f"return {a}\n\n"
    )
    plain = "".join(f"{n}, " for n in names[: len(names) - 3])
    start = f"{before}def {method or w.one('function')}({first}{plain}"
    left, filler, last = names[-3:]

    def text(default: bool) -> str:
        return f"{start}{left}⟦default:{'=None' if default else ', ' + filler}⟧, ⟦parameter:{last}⟧"

    ending = (")", ",")
    right, wrong = ("=", ending) if with_default else (ending, "=")
    features = {
        "earlier default in signature": with_default,
        "default in the signature before": earlier,
        "parameters before": float(2 + extra),
    }
    return Draft(text(with_default), text(not with_default), right, wrong, left, features)


GENERATORS: dict[str, Callable[..., Behavior]] = {
    "quote-closing": quote_closing,
    "bracket-closing": bracket_closing,
    "self-assignment": self_assignment,
    "default-or-close": default_or_close,
}
"""Generators of code behaviors by name."""
