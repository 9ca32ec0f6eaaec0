"""Generated code that exercises quotes, brackets, signatures, assignments and repetition.

Every snippet parses, but for repeated names one a line, which stand for plain text. Names come from
the identifiers of the training files, so that surface forms vary as widely as in real code.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

_USABLE = re.compile(r"[a-z][a-z_]{1,11}")


def identifiers(texts: Iterable[str], most: int = 1200) -> list[str]:
    """Return the commonest lower-case names of some source texts, commonest first.

    Names are those of variables, arguments and attributes; each text counts a name once.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        counts.update(
            {name for node in ast.walk(tree) for name in _named(node) if _USABLE.fullmatch(name)}
        )
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    return [n for n in ordered if n != "self" and not keyword.iskeyword(n)][:most]


def _named(node: ast.AST) -> tuple[str, ...]:
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.arg):
        return (node.arg,)
    return (node.attr,) if isinstance(node, ast.Attribute) else ()


class Writer:
    """Writes random code.

    Args:
        rng: Source of chance.
        names: Identifiers to use.
        balanced: Write as many signatures without a default as with one, and more repetition;
            without it three signatures in four have one, and the network expects one everywhere.
    """

    def __init__(
        self, rng: np.random.Generator, names: list[str], *, balanced: bool = False
    ) -> None:
        self._rng = rng
        self._names = names
        self._balanced = balanced

    def snippet(self) -> str:
        """Return one snippet of a random kind, ending with a line end."""
        kinds = (
            self.constructor,
            self.functions,
            self.strings,
            self.literals,
            self.calls,
            self.repetition,
        )
        weights = (
            (0.15, 0.3, 0.15, 0.1, 0.1, 0.2) if self._balanced else (0.2, 0.2, 0.2, 0.15, 0.15, 0.1)
        )
        return kinds[int(self._rng.choice(len(kinds), p=weights))]()

    def _name(self) -> str:
        # half of the names from the commonest tenth, so that single tokens are frequent
        top = len(self._names) if self._rng.random() < 0.5 else max(len(self._names) // 10, 1)
        return self._names[int(self._rng.integers(top))]

    def _some(self, low: int, high: int) -> list[str]:
        wanted = int(self._rng.integers(low, high + 1))
        found: list[str] = []
        while len(found) < wanted:
            name = self._name()
            if name not in found:
                found.append(name)
        return found

    def _pick(self, *options: str) -> str:
        return options[int(self._rng.integers(len(options)))]

    def _class(self) -> str:
        return "".join(part.capitalize() for part in self._name().split("_") if part) or "Item"

    def string(self) -> str:
        """Return a string literal in either quote, sometimes with the other quote inside."""
        quote = self._pick("'", '"')
        other = '"' if quote == "'" else "'"
        words = self._some(1, 5)
        text = self._pick(" ", " ", "_", "-", ", ", "/", ".").join(words)
        roll = self._rng.random()
        if roll < 0.12:
            text = f"{other}{text}{other}"
        elif roll < 0.2:
            text = f"{words[0]} {other}{words[-1]}{other} {text}"
        elif roll < 0.3:
            text = text.capitalize()
        if self._rng.random() < 0.15:
            text += self._pick(".", ":", "!", "%s", " ", "\\n")
        return f"{quote}{text}{quote}"

    def value(self, depth: int = 0) -> str:
        """Return an expression with nested brackets."""
        roll = self._rng.random()
        if depth > 2 or roll < 0.35:
            return self._pick(
                self._name(), str(self._rng.integers(100)), self.string(), "None", "True"
            )
        if roll < 0.55:
            return f"{self._name()}({self._items(depth)})"
        if roll < 0.7:
            return f"[{self._items(depth)}]"
        if roll < 0.8:
            return f"({self.value(depth + 1)}, {self.value(depth + 1)})"
        if roll < 0.9:
            return "{" + f"{self.string()}: {self.value(depth + 1)}" + "}"
        return f"{self._name()}[{self.value(depth + 1)}]"

    def _items(self, depth: int) -> str:
        return ", ".join(self.value(depth + 1) for _ in range(int(self._rng.integers(1, 4))))

    def signature(self, *, first: list[str] | None = None) -> tuple[str, list[str]]:
        """Return a parameter list and its names; after the first default all have one."""
        names = self._some(1, 5)
        start = int(self._rng.integers(0, len(names) + 1))
        if self._balanced and self._rng.random() < 0.5:
            start = len(names)
        parts = list(first or [])
        for number, name in enumerate(names):
            if number < start:
                parts.append(name)
            else:
                default = (
                    "None"
                    if self._rng.random() < 0.75
                    else self._pick("0", "False", "True", self.string(), "()")
                )
                parts.append(f"{name}={default}")
        return ", ".join(parts), names

    def constructor(self) -> str:
        """Return a class whose ``__init__`` stores its parameters."""
        listing, names = self.signature(first=["self"])
        base = "" if self._rng.random() < 0.6 else f"({self._class()})"
        lines = [f"class {self._class()}{base}:"]
        if self._rng.random() < 0.3:
            lines.append(f'    """{self._name().capitalize()} {self._name()}."""')
        lines.append(f"    def __init__({listing}):")
        if self._rng.random() < 0.2:
            lines.append("        super().__init__()")
        order = (
            list(self._rng.permutation(len(names)))
            if self._rng.random() < 0.4
            else range(len(names))
        )
        mark = "_" if self._rng.random() < 0.15 else ""
        lines += [f"        self.{mark}{names[int(i)]} = {names[int(i)]}" for i in order]
        for _ in range(int(self._rng.integers(0, 3))):
            lines += [
                "",
                f"    def {self._name()}(self):",
                f"        return self.{mark}{self._pick(*names)}",
            ]
        return "\n".join(lines) + "\n"

    def functions(self) -> str:
        """Return one to three functions with signatures of every shape."""
        blocks = []
        for _ in range(int(self._rng.integers(1, 4))):
            own = self._rng.random() < 0.35
            listing, names = self.signature(first=["self"] if own else None)
            body = self._pick(
                f"return {names[0]}({', '.join(names)})",
                f"return {names[-1]}",
                f"{self._name()} = {self.value()}",
                f"if {names[0]} is None:\n        {names[0]} = {self.value(2)}",
                f"raise ValueError({self.string()})",
            )
            blocks.append(f"def {self._name()}({listing}):\n    {body}\n")
        return "\n".join(blocks)

    def strings(self) -> str:
        """Return statements around string literals."""
        lines = []
        for _ in range(int(self._rng.integers(2, 6))):
            text = self.string()
            lines.append(
                self._pick(
                    f"{self._name()} = {text}",
                    f"print({text})",
                    f"{self._name()}.{self._name()}({text}, {self.string()})",
                    f"{self._name()} = [{text}, {self.string()}, {self.string()}]",
                    f"{self._name()}[{text}] = {self.value(2)}",
                    f"{self._name()} = {{{text}: {self.string()}}}",
                    f"if {self._name()} == {text}:\n    {self._name()} = {self.string()}",
                    f"assert {self._name()} != {text}",
                    f"{self._name()} = {self._name()}.get({text})",
                    f"raise {self._class()}Error({text})",
                )
            )
        return "\n".join(lines) + "\n"

    def literals(self) -> str:
        """Return assignments of nested lists, tuples and dictionaries, some over several lines."""
        lines = []
        for _ in range(int(self._rng.integers(1, 4))):
            if self._rng.random() < 0.4:
                open_, close = self._pick("()", "[]", "{}")
                rows = [f"    {self.value(1)}," for _ in range(int(self._rng.integers(1, 4)))]
                lines.append(f"{self._name()} = {open_}\n" + "\n".join(rows) + f"\n{close}")
            else:
                lines.append(f"{self._name()} = {self.value()}")
        return "\n".join(lines) + "\n"

    def calls(self) -> str:
        """Return nested calls and subscripts."""
        lines = []
        for _ in range(int(self._rng.integers(2, 5))):
            a, b, c = self._some(3, 3)
            lines.append(
                self._pick(
                    f"{a} = {b}({self.value(1)}, {c}={self.value(1)})",
                    f"{a}({b}({c}))",
                    f"{a}({b}[{c}])",
                    f"{a} = {b}[{c}({self._name()})]",
                    f"{a} = [{b}({c}) for {c} in {self._name()}]",
                    f"return_{a} = ({b}, [{c}, {self.value(2)}])",
                    f"{a} = {{{self.string()}: [{b}, {c}]}}",
                    f"{a}.{b}({self.value(1)})[{c}]",
                    f"print({a}[{b}], ({c}))",
                )
            )
        return "\n".join(lines) + "\n"

    def repetition(self) -> str:
        """Return the same sequence of names twice, as lists, calls or plain lines."""
        names = self._some(4, 9)
        joined = ", ".join(names)
        plain = " ".join(names)
        if self._balanced and self._rng.random() < 0.6:
            between = self._pick("; ", " - ", ". ", " or ", " and ", ", ", "\n ", " ", " ")
            return f"# {between.join([*names, *names])}\n"
        return self._pick(
            f"{self._name()} = [{joined}]\n{self._name()} = [{joined}]\n",
            f"{self._name()}({joined})\n{self._name()}({joined})\n",
            f"# {plain}\n# {plain}\n",
            f"# {plain} {plain} {plain}\n",
            f"from {self._name()} import {joined}\n\n__all__ = ["
            + ", ".join(f"'{n}'" for n in names)
            + "]\n",
        )
