"""The verdict card: the grade in words, a sentence, numbers with intervals, and what it rests on.

Example::

    VerdictCard(grade="Sufficient and necessary", state="filled", sentences=("...", "..."),
                numbers=(Estimate(0.93, 0.89, 0.97, label="faithfulness"),),
                held_fixed=("everything that the clean and corrupt prompts share",),
                overturned_by=("a null circuit of equal size that scores as high",))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from microtome.errors import ConfigError
from microtome.views.markup import Markup, join, tag
from microtome.views.numbers import Estimate
from microtome.views.prose import inline
from microtome.views.table import Table
from microtome.views.view import View

State = Literal["filled", "half", "open"]
"""Filled disc: holds. Half disc: holds in part, or unsure. Open disc: does not hold."""


def disc(state: State) -> Markup:
    """Return the disc that stands beside a word; it carries no meaning that the word does not."""
    return tag("span", class_=f"mt-disc {state}", aria_hidden="true")


@dataclass(frozen=True, eq=False)
class VerdictCard(View):
    """What was found, how sure it is, and what would change it.

    Attributes:
        grade: The grade in words.
        state: Disc beside the grade.
        sentences: The finding in plain words, at most two sentences.
        numbers: The numbers it rests on, three at best, each with its interval.
        held_fixed: What the contrast cannot explain because both sides share it.
        overturned_by: Observations that would overturn the verdict.

    Raises:
        ConfigError: The state is not one of filled, half, open.
    """

    grade: str
    state: State
    sentences: Sequence[str]
    numbers: Sequence[Estimate] = ()
    held_fixed: Sequence[str] = ()
    overturned_by: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check the state."""
        if self.state not in get_args(State):
            raise ConfigError(f"state is {self.state!r}; choose filled, half or open")

    def picture(self) -> Markup:
        """Return the card as HTML."""
        return tag(
            "div",
            tag("p", disc(self.state), tag("span", self.grade), class_="mt-grade"),
            tag("p", inline(" ".join(self.sentences)), class_="mt-sentence"),
            self._numbers(),
            self._conditions(),
            class_="mt-verdict",
        )

    def _numbers(self) -> Markup | None:
        if not self.numbers:
            return None
        return tag("dl", join(_number(estimate) for estimate in self.numbers), class_="mt-numbers")

    def _conditions(self) -> Markup | None:
        blocks = [
            tag("div", tag("h3", title), tag("ul", join(tag("li", inline(line)) for line in lines)))
            for title, lines in (
                ("What was held fixed", self.held_fixed),
                ("What would overturn it", self.overturned_by),
            )
            if lines
        ]
        return tag("div", join(blocks), class_="mt-conditions") if blocks else None

    def table(self) -> Table:
        """Return the numbers of the card."""
        rows = [(e.label, e.value, e.low, e.high, e.unit, e.note) for e in self.numbers]
        return Table(("number", "value", "low", "high", "unit", "note"), rows, self.grade)


def _number(estimate: Estimate) -> Markup:
    return tag(
        "div",
        tag("dt", estimate.label),
        tag("dd", estimate.head, class_="mt-value"),
        tag("dd", estimate.ends, class_="mt-ends") if estimate.ends else None,
        tag("dd", estimate.note, class_="mt-asked") if estimate.note else None,
    )
