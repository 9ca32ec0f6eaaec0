"""What every view offers: HTML, a table behind it, a whole document, a notebook display.

Example::

    view.to_html(table=True)     a fragment for a page that carries ``stylesheet.view_css()``
    view.to_document(title)      one self-contained HTML file
    view.table()                 the numbers behind the picture, a ``Table``
    view.to_svg(width=None)      drawings only: one self-contained SVG file
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from microtome.views import stylesheet
from microtome.views.markup import Markup, tag

if TYPE_CHECKING:
    from microtome.views.table import Table

WIDE, NARROW = 1040, 340
"""Widths in pixels that drawings are laid out for: a page, and a telephone of 380 pixels."""


class View(ABC):
    """A picture of some values.

    Attributes:
        tabular: Whether the picture is a table already, so that none stands behind it.
    """

    tabular: ClassVar[bool] = False

    @abstractmethod
    def picture(self) -> Markup:
        """Return the picture as HTML, without the table behind it."""

    @abstractmethod
    def table(self) -> Table:
        """Return the values behind the picture as a table."""

    def to_html(self, *, table: bool = True) -> str:
        """Return the picture as HTML, with its table in an expandable part beneath.

        Args:
            table: Whether to add the table.
        """
        behind = table_behind(self.table()) if table and not self.tabular else None
        return tag("div", self.picture(), behind, class_="mt-view")

    def to_document(self, title: str = "microtome") -> str:
        """Return one self-contained HTML file that shows this view alone."""
        return stylesheet.document(title, tag("main", Markup(self.to_html()), class_="mt-page"))

    def _repr_html_(self) -> str:
        """Return the view with its style sheet, for notebooks."""
        style = Markup(f"<style>{stylesheet.view_css()}</style>")
        return tag("div", style, Markup(self.to_html()), class_="mt")


class Drawing(View):
    """A view that is drawn as SVG for a given width."""

    @abstractmethod
    def draw(self, width: int) -> Markup:
        """Return the ``<svg>`` element, laid out for a width in pixels."""

    def picture(self) -> Markup:
        """Return the drawing for a wide and, where it differs, for a narrow column."""
        wide, narrow = self.draw(WIDE), self.draw(NARROW)
        if wide == narrow:
            return tag("div", wide, class_="mt-scroll")
        return join_variants(wide, narrow)

    def to_svg(self, width: int = WIDE) -> str:
        """Return one self-contained SVG file.

        Args:
            width: Width to lay the drawing out for, in pixels; it may come out narrower.
        """
        drawing = self.draw(width)
        opening, rest = drawing.split(">", 1)
        return f"{opening}>{stylesheet.drawing_style()}{rest}"


def join_variants(wide: Markup, narrow: Markup) -> Markup:
    """Return two layouts of one drawing, of which the style sheet shows the one that fits."""
    return tag(
        "div",
        tag("div", wide, class_="mt-scroll mt-wide"),
        tag("div", narrow, class_="mt-scroll mt-narrow"),
        class_="mt-variants",
    )


def table_behind(table: Table) -> Markup:
    """Return a table as an expandable part."""
    return tag(
        "details",
        tag("summary", "Table behind this figure"),
        table.picture(),
        class_="mt-behind",
    )


def svg(width: float, height: float, label: str, *children: object, class_: str = "") -> Markup:
    """Return an ``<svg>`` element of a size in pixels with a label for screen readers."""
    return tag(
        "svg",
        *children,
        xmlns="http://www.w3.org/2000/svg",
        class_=f"mt-svg {class_}".strip(),
        width=round(width),
        height=round(height),
        viewBox=f"0 0 {round(width)} {round(height)}",
        role="img",
        aria_label=label,
    )
