"""Items: pairs of clean and corrupt prompts as text, with answers, roles and features."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from microtome.errors import DataError, PairError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Span = tuple[int, int]
Feature = str | float | bool

_MARK = re.compile(r"⟦([^:⟧]*):([^⟧]*)⟧")


@dataclass(frozen=True)
class Item:
    """One pair of prompts.

    Attributes:
        clean: The prompt whose right continuation is ``answers``.
        corrupt: The prompt that differs in what matters; its right continuation is ``wrongs``.
        answers: Right continuations of ``clean``, with their exact leading space.
        wrongs: Wrong ones.
        cluster: Template and lexical frame; items of one cluster are not independent.
        template: The template it was made from.
        split: ``train``, ``validation`` or ``test``.
        roles: Named character ranges, ``{name: (range in clean, range in corrupt)}``.
        features: Named human-readable properties of the clean prompt.
        natural: Whether it was cut from real text.
        source: Where it comes from: a generator, or a file and row.
        sets: Whether answers and wrong answers are sets of which only their first tokens count, and
            those that a tokenizer cannot tell apart are left out (years above and below another).
    """

    clean: str
    corrupt: str
    answers: tuple[str, ...]
    wrongs: tuple[str, ...]
    cluster: str
    template: str
    split: Split = "test"
    roles: Mapping[str, tuple[Span, Span]] = field(default_factory=dict)
    features: Mapping[str, Feature] = field(default_factory=dict)
    natural: bool = False
    source: str = ""
    sets: bool = False

    def inverted(self) -> Item:
        """Return the item with answers and wrong answers exchanged."""
        return _replace(self, answers=self.wrongs, wrongs=self.answers)

    def with_answers(self, answers: tuple[str, ...], wrongs: tuple[str, ...]) -> Item:
        """Return the item with other answers."""
        return _replace(self, answers=answers, wrongs=wrongs)


def _replace(item: Item, **changes: object) -> Item:
    from dataclasses import replace

    return replace(item, **changes)  # type: ignore[arg-type]


def check_item(item: Item, place: str) -> None:
    """Refuse an item that cannot be compared.

    Args:
        item: The item.
        place: What to call it in the error, such as ``"pairs.jsonl, row 3"``.

    Raises:
        DataError: If a prompt or answer is empty or the split unknown.
        PairError: If prompts are equal, or an answer is also a wrong answer.
    """
    if not item.clean.strip() or not item.corrupt.strip():
        raise DataError(
            f"{place}: the {'clean' if not item.clean.strip() else 'corrupt'} prompt is empty."
        )
    if not item.answers or not item.wrongs or "" in (*item.answers, *item.wrongs):
        raise DataError(f"{place}: answers and wrong answers must not be empty.")
    if item.split not in SPLITS:
        raise DataError(f"{place}: split {item.split!r} is none of {', '.join(SPLITS)}.")
    if item.clean == item.corrupt:
        raise PairError(f"{place}: clean and corrupt prompt are the same: {item.clean[:60]!r}.")
    both = sorted(set(item.answers) & set(item.wrongs))
    if both:
        raise PairError(f"{place}: {both[0]!r} is both an answer and a wrong answer.")


def unmark(text: str) -> tuple[str, dict[str, Span]]:
    """Return a marked text without its marks, and the character range of each role.

    ``"The ⟦subject:dog⟧ barks"`` gives ``"The dog barks"`` and ``{"subject": (4, 7)}``.
    """
    plain, roles, last = "", {}, 0
    for match in _MARK.finditer(text):
        plain += text[last : match.start()]
        roles[match.group(1)] = (len(plain), len(plain) + len(match.group(2)))
        plain += match.group(2)
        last = match.end()
    return plain + text[last:], roles


def paired_roles(
    clean: Mapping[str, Span], corrupt: Mapping[str, Span]
) -> dict[str, tuple[Span, Span]]:
    """Return the roles that both prompts have."""
    return {name: (span, corrupt[name]) for name, span in clean.items() if name in corrupt}
