"""Examples: items as token ids for one tokenizer, with what was dropped and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from microtome.behaviors.items import SPLITS, Feature, Split
from microtome.errors import EmptyDataError

Tokens = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Example:
    """One pair of prompts as token ids.

    Attributes:
        index: Number among the examples.
        clean: Token ids of the clean prompt.
        corrupt: Token ids of the corrupt prompt, as many.
        answers: Token ids of each right continuation.
        wrongs: Token ids of each wrong one.
        cluster: Template and lexical frame.
        template: The template.
        split: ``train``, ``validation`` or ``test``.
        roles: Token ranges ``{name: (first, behind last)}``, the same in both prompts.
        features: Named properties.
        text: The clean prompt as text.
        natural: Whether it was cut from real text.
    """

    index: int
    clean: Tokens
    corrupt: Tokens
    answers: tuple[Tokens, ...]
    wrongs: tuple[Tokens, ...]
    cluster: str
    template: str
    split: Split
    roles: Mapping[str, tuple[int, int]]
    features: Mapping[str, Feature]
    text: str
    natural: bool = False

    @property
    def single_token(self) -> bool:
        """Whether every answer and wrong answer is one token."""
        return all(len(t) == 1 for t in (*self.answers, *self.wrongs))


@dataclass(frozen=True)
class Drop:
    """Items that were dropped for one reason.

    Attributes:
        reason: Why.
        count: How many.
        instance: One of them.
    """

    reason: str
    count: int
    instance: str


@dataclass(frozen=True, eq=False)
class Examples(Sequence[Example]):
    """Examples for one tokenizer.

    Attributes:
        items: The examples.
        drops: What was dropped while these were looked for, and why.
        behavior: Name of the behavior.
    """

    items: tuple[Example, ...]
    drops: tuple[Drop, ...] = ()
    behavior: str = ""

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Examples: ...

    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return Examples(self.items[index], self.drops, self.behavior)
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.items)

    def take(self, indices: Iterable[int]) -> Examples:
        """Return the examples at these places."""
        return Examples(tuple(self.items[int(i)] for i in indices), self.drops, self.behavior)

    def where(self, condition: Callable[[Example], bool]) -> Examples:
        """Return the examples for which a condition holds."""
        return Examples(tuple(e for e in self.items if condition(e)), self.drops, self.behavior)

    def split(self, name: Split) -> Examples:
        """Return one split.

        Raises:
            EmptyDataError: If it holds no examples.
        """
        part = self.where(lambda e: e.split == name)
        if not part.items:
            counts = ", ".join(f"{s} {sum(e.split == s for e in self.items)}" for s in SPLITS)
            raise EmptyDataError(
                f"{self.behavior}: the {name} split holds no examples ({counts}). "
                f"{self.drop_report()}"
            )
        return part

    @property
    def clusters(self) -> np.ndarray:
        """Cluster of each example, as an array of texts."""
        return np.array([e.cluster for e in self.items], dtype=object).astype(str)

    @property
    def clean(self) -> list[Tokens]:
        """Token ids of the clean prompts."""
        return [e.clean for e in self.items]

    @property
    def corrupt(self) -> list[Tokens]:
        """Token ids of the corrupt prompts."""
        return [e.corrupt for e in self.items]

    @property
    def single_token(self) -> bool:
        """Whether every answer and wrong answer is one token."""
        return all(e.single_token for e in self.items)

    def drop_report(self) -> str:
        """Return one sentence on what was dropped and why."""
        if not self.drops:
            return "Nothing was dropped."
        parts = [f"{d.count} because {d.reason} (for example {d.instance!r})" for d in self.drops]
        return "Dropped: " + "; ".join(parts) + "."
