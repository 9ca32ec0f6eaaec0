"""The table of controls: what each must show, what it showed, whether it passed.

Example::

    ControlsTable((Control("Twins", must_show="no circuit of equal size scores as high",
                           value=Estimate(0.31, 0.2, 0.4), baseline="0 of 20", passed=True),))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from microtome.views.markup import Markup, join, tag
from microtome.views.prose import inline
from microtome.views.table import Cell, Table, cell_text
from microtome.views.verdict import State, disc
from microtome.views.view import View


@dataclass(frozen=True, eq=False)
class Control:
    """One control.

    Attributes:
        name: What was tried.
        must_show: What it must show if the claim holds.
        value: What it showed: an ``Estimate``, a number or words.
        baseline: What it is compared with.
        passed: Whether it did; None when it cannot be told or was not run.
        note: A remark under the name.
    """

    name: str
    must_show: str
    value: Cell
    baseline: Cell = None
    passed: bool | None = None
    note: str = ""

    @property
    def outcome(self) -> tuple[str, State]:
        """The word and the disc of the outcome."""
        if self.passed is None:
            return "unsure", "half"
        return ("passed", "filled") if self.passed else ("failed", "open")


@dataclass(frozen=True, eq=False)
class ControlsTable(View):
    """All controls of a claim; failed ones stand in the table like any other.

    Attributes:
        controls: The controls, in the order in which they are to be read.
    """

    controls: Sequence[Control]

    tabular = True

    def picture(self) -> Markup:
        """Return the table as HTML in a box that scrolls sideways by itself."""
        names = ("Control", "Must show", "Value", "Baseline", "Outcome")
        head = join(tag("th", name, scope="col") for name in names)
        rows = join(_row(control) for control in self.controls)
        none = tag("tr", tag("td", "No control was run.", colspan=len(names)))
        content = tag(
            "table",
            tag("thead", tag("tr", head)),
            tag("tbody", rows or none),
            class_="mt-table mt-controls",
        )
        return tag(
            "div", content, class_="mt-scroll", tabindex="0", role="group", aria_label="controls"
        )

    def table(self) -> Table:
        """Return the controls as plain text."""
        rows = [
            (c.name, c.must_show, cell_text(c.value), cell_text(c.baseline), c.outcome[0])
            for c in self.controls
        ]
        return Table(("control", "must show", "value", "baseline", "outcome"), rows)


def _row(control: Control) -> Markup:
    word, state = control.outcome
    note = tag("div", inline(control.note), class_="soft") if control.note else None
    cells = (
        tag("th", inline(control.name), note, scope="row"),
        tag("td", inline(control.must_show)),
        _value(control.value),
        _value(control.baseline),
        tag("td", tag("span", disc(state), word, class_="mt-outcome")),
    )
    return tag("tr", *cells)


def _value(cell: Cell) -> Markup:
    worded = isinstance(cell, str)
    return tag("td", cell_text(cell), class_=None if worded else "num left")
