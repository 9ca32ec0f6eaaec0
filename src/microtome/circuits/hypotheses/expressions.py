"""Expressions over the fields of an item: the language of hypothesis files. Nothing is executed.

An expression is parsed into a tree whose nodes come from a short list, and evaluated by walking it.
Tokens are whole numbers (their ids); ``token_id(" the")`` turns a text into one.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from microtome.errors import DataError, nearest

Value = str | float | bool | int | tuple[Any, ...] | None

LONGEST = 500
"""Characters of an expression at most."""

FIELDS = ("answer", "wrong", "length", "template", "cluster")
"""Fields of an item that an expression may name."""

FUNCTIONS = ("token", "tokens", "at", "feature", "token_id", "length_of")
"""Functions that an expression may call."""

_BINARY: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}

_COMPARE: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


@dataclass(frozen=True)
class Expression:
    """A checked expression.

    Attributes:
        text: As it was written.
        tree: Its parsed form.
        names: Variables and fields that it names.
        calls: Functions that it calls.
    """

    text: str
    tree: ast.expr
    names: frozenset[str]
    calls: frozenset[str]

    def __call__(
        self, names: Mapping[str, Value], functions: Mapping[str, Callable[..., Value]]
    ) -> Value:
        """Return the value.

        Args:
            names: Values of the names.
            functions: The functions it may call.

        Raises:
            DataError: If it cannot be computed, such as numbers added to texts.
        """
        try:
            found: Value = _value(self.tree, names, functions)
        except (TypeError, ZeroDivisionError, OverflowError) as error:
            raise DataError(f"{self.text!r} cannot be computed: {error}.") from None
        return found


def parse(text: str, place: str) -> Expression:
    """Return a checked expression.

    Args:
        text: The expression.
        place: What to call it in errors.

    Raises:
        DataError: If it is empty, too long, not an expression, or uses what is not allowed; the
            message says what.
    """
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: {text!r} is no expression; expected a text such as 'answer'.")
    if len(text) > LONGEST:
        raise DataError(f"{place}: {len(text)} characters; an expression has {LONGEST} at most.")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or str(error)
        raise DataError(f"{place}: {text!r} is no expression ({reason}).") from None
    names: set[str] = set()
    calls: set[str] = set()
    _check(tree, place, text, names, calls)
    return Expression(text, tree, frozenset(names), frozenset(calls))


def _check(node: ast.expr, place: str, text: str, names: set[str], calls: set[str]) -> None:
    """Refuse every kind of node that is not listed here."""
    if isinstance(node, ast.Name):
        names.add(node.id)
        return
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
            called = ast.unparse(node.func)
            raise DataError(
                f"{place}: no function {called!r}{nearest(called, FUNCTIONS)}; there are "
                f"{', '.join(FUNCTIONS)}."
            )
        if node.keywords:
            raise DataError(f"{place}: {node.func.id}() takes no named arguments in {text!r}.")
        calls.add(node.func.id)
    elif isinstance(node, ast.Constant):
        if not isinstance(node.value, str | int | float | bool):
            raise DataError(f"{place}: {node.value!r} is not allowed in {text!r}.")
    elif not _allowed(node):
        raise DataError(
            f"{place}: {type(node).__name__} is not allowed in {text!r}; expressions have names, "
            "numbers, texts, comparisons, + - * // %, and, or, not, if-else and calls of "
            f"{', '.join(FUNCTIONS)}."
        )
    for child in _children(node):
        _check(child, place, text, names, calls)


def _allowed(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return type(node.op) in _BINARY
    if isinstance(node, ast.Compare):
        return all(type(op) in _COMPARE for op in node.ops)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not | ast.USub)
    return isinstance(node, ast.BoolOp | ast.IfExp | ast.Tuple)


def _children(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.Call):
        return list(node.args)
    return [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]


def _value(
    node: ast.expr, names: Mapping[str, Value], functions: Mapping[str, Callable[..., Value]]
) -> Any:
    def of(child: ast.expr) -> Any:
        return _value(child, names, functions)

    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return functions[node.func.id](*(of(a) for a in node.args))
    if isinstance(node, ast.BinOp):
        left, right = of(node.left), of(node.right)
        if not all(isinstance(v, int | float) for v in (left, right)):
            raise TypeError(f"{left!r} and {right!r} are not both numbers")
        return _BINARY[type(node.op)](left, right)
    if isinstance(node, ast.Compare):
        values = [of(node.left), *(of(c) for c in node.comparators)]
        return all(
            _COMPARE[type(op)](a, b)
            for op, a, b in zip(node.ops, values[:-1], values[1:], strict=True)
        )
    if isinstance(node, ast.BoolOp):
        found = [bool(of(v)) for v in node.values]
        return all(found) if isinstance(node.op, ast.And) else any(found)
    if isinstance(node, ast.UnaryOp):
        return not of(node.operand) if isinstance(node.op, ast.Not) else -of(node.operand)
    if isinstance(node, ast.IfExp):
        return of(node.body) if of(node.test) else of(node.orelse)
    if isinstance(node, ast.Tuple):
        return tuple(of(e) for e in node.elts)
    raise TypeError(f"{type(node).__name__} has no value")
