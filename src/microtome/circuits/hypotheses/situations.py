"""Situations: prompts with the fields that a hypothesis speaks about.

Every example gives two: its clean prompt with its answers, and its corrupt prompt, whose right
answers are the clean prompt's wrong ones. Features are named for the clean prompt only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from microtome.circuits.hypotheses.expressions import Value
from microtome.errors import DataError, nearest
from microtome.tracing.prompts import tokenize

if TYPE_CHECKING:
    from microtome.behaviors.examples import Example, Examples


@dataclass(frozen=True, eq=False)
class Situation:
    """One prompt with its fields.

    Attributes:
        example: The example it belongs to.
        clean: Whether it is the clean prompt.
    """

    example: Example
    clean: bool

    @property
    def tokens(self) -> tuple[int, ...]:
        """Token ids of the prompt."""
        return self.example.clean if self.clean else self.example.corrupt

    @property
    def layout(self) -> tuple[int, tuple[tuple[str, tuple[int, int]], ...]]:
        """Length and where the roles lie: positions of two prompts correspond if it is the same."""
        return len(self.tokens), tuple(sorted(self.example.roles.items()))

    def fields(self) -> dict[str, Value]:
        """Return the values of the names that expressions may use."""
        e = self.example
        right, wrong = (e.answers, e.wrongs) if self.clean else (e.wrongs, e.answers)
        return {
            "answer": right[0][0],
            "wrong": wrong[0][0],
            "length": len(self.tokens),
            "template": e.template,
            "cluster": e.cluster,
        }

    def functions(self, tokenizer: Any) -> Mapping[str, Callable[..., Value]]:
        """Return the functions that expressions may call."""

        def span(role: object) -> tuple[int, int]:
            roles = self.example.roles
            if not isinstance(role, str) or role not in roles:
                raise DataError(
                    f"No role {role!r}{nearest(str(role), roles)} in item {self.example.index} "
                    f"({self.example.text[:40]!r})."
                )
            return roles[role]

        def tokens(role: object) -> Value:
            first, behind = span(role)
            return self.tokens[first:behind]

        def at(place: object) -> Value:
            if not isinstance(place, int) or not -len(self.tokens) <= place < len(self.tokens):
                raise DataError(f"at({place!r}): the prompt has {len(self.tokens)} tokens.")
            return self.tokens[place]

        def feature(name: object) -> Value:
            known = self.example.features
            if name not in known:
                raise DataError(f"No feature {name!r}{nearest(str(name), known)}.")
            return known[str(name)]

        def token_id(text: object) -> Value:
            ids = tokenize(tokenizer, str(text), bos=False)
            if len(ids) != 1:
                raise DataError(f"token_id({text!r}): the text is {len(ids)} tokens, not one.")
            return ids[0]

        def length_of(role: object) -> Value:
            first, behind = span(role)
            return behind - first

        return {
            "token": lambda role: self.tokens[span(role)[0]],
            "tokens": tokens,
            "at": at,
            "feature": feature,
            "token_id": token_id,
            "length_of": length_of,
        }


def situations(examples: Examples, *, corrupt: bool) -> tuple[Situation, ...]:
    """Return the clean prompts as situations, and behind them the corrupt ones where asked for."""
    clean = tuple(Situation(e, True) for e in examples)
    return (*clean, *(Situation(e, False) for e in examples)) if corrupt else clean


def groups(pool: Sequence[Situation]) -> list[list[int]]:
    """Return the places of situations that are laid out alike."""
    found: dict[object, list[int]] = {}
    for number, one in enumerate(pool):
        found.setdefault(one.layout, []).append(number)
    return list(found.values())
