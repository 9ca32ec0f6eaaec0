"""Token strips: one row of colored tokens, or clean over corrupt, column by column.

Example::

    TokenRow(label="clean", tokens=("the", " key"), values=(0.1, -0.4))
    TokenStrip(rows=(clean, corrupt), unit="logits", spans=(Span("noun", 1, 2),), title="Item 12")
    TokenStrips(strips=(first, second, third), unit="logits")        one scale for all

A token is drawn as text with visible blanks, its background colored by its value, underlined
solid where the value is positive and dashed where it is negative. A strip wraps by whole columns,
so rows stay aligned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from microtome.errors import ShapeError
from microtome.views import numbers
from microtome.views.colorbar import color_bar_svg
from microtome.views.glyphs import mono_width, shorten, text_width, visible_token
from microtome.views.markup import Markup, join, tag
from microtome.views.palette import shade, symmetric_limit
from microtome.views.prose import inline
from microtome.views.table import Cell, Table
from microtome.views.view import View


@dataclass(frozen=True, eq=False)
class TokenRow:
    """The tokens of one prompt and, if known, one signed value for each.

    Attributes:
        label: Name of the row, such as "clean"; "" for none.
        tokens: The tokens as text, blanks included.
        values: One value per token (NaN: not computed), or None for a row without color.
    """

    label: str
    tokens: Sequence[str]
    values: Sequence[float] | None = None

    def value(self, index: int) -> float | None:
        """Return the value of a token, or None in a row without values."""
        return None if self.values is None else float(self.values[index])


@dataclass(frozen=True)
class Span:
    """A named run of tokens, such as the subject: from ``start`` up to, not including, ``stop``."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class TokenStrip(View):
    """Aligned rows of tokens.

    Attributes:
        rows: The rows, clean first; all of one length.
        limit: Value of the full color; the largest magnitude in the rows if None.
        unit: Unit of the values.
        spans: Named runs of tokens, without overlap.
        title: One line above the strip.
        note: One line beneath it, such as the answer and its score.
        scale: What the color means, written at the color bar; "" leaves the bar out.
        break_lines: Whether a column with a line end in it ends the line.

    Raises:
        ShapeError: Rows of unequal length, values that do not fit the tokens, no tokens at all,
            or a span outside the strip.
    """

    rows: Sequence[TokenRow]
    limit: float | None = None
    unit: str = ""
    spans: Sequence[Span] = ()
    title: str = ""
    note: str = ""
    scale: str = "effect of the token"
    break_lines: bool = True

    def __post_init__(self) -> None:
        """Check that rows, values and spans fit one another."""
        lengths = [len(row.tokens) for row in self.rows]
        if not lengths or not lengths[0]:
            raise ShapeError(f"a token strip needs at least one token, got rows of {lengths}")
        if len(set(lengths)) > 1:
            raise ShapeError(
                f"the rows of a token strip have {lengths} tokens; give rows of one length"
            )
        for row in self.rows:
            if row.values is not None and len(row.values) != lengths[0]:
                raise ShapeError(
                    f"row {row.label!r} has {lengths[0]} tokens but {len(row.values)} values; "
                    "give one value per token"
                )
        end = 0
        for part in sorted(self.spans, key=lambda span: span.start):
            if not end <= part.start < part.stop <= lengths[0]:
                raise ShapeError(
                    f"span {part.name!r} is {part.start}:{part.stop}, outside 0:{lengths[0]} or "
                    "overlapping another; give spans that do not overlap"
                )
            end = part.stop

    @property
    def scale_limit(self) -> float:
        """The value of the full color."""
        if self.limit is not None:
            return self.limit
        return symmetric_limit(*(row.values for row in self.rows if row.values is not None))

    def picture(self) -> Markup:
        """Return the strip with its title, note and color bar."""
        labels = None
        if any(row.label for row in self.rows):
            spans = join(tag("span", row.label) for row in self.rows)
            labels = tag("div", spans, class_="mt-strip-labels", aria_hidden="true")
        colored = any(row.values is not None for row in self.rows)
        name = f"{self.scale} ({self.unit})" if self.unit else self.scale
        return tag(
            "div",
            tag("p", inline(self.title), class_="mt-strip-title", dir="auto")
            if self.title
            else None,
            tag(
                "div",
                labels,
                tag("div", join(self._lines()), class_=self._layout_class(), data_rove=True),
                class_="mt-strip-body",
                role="group",
                aria_label=self.title or "tokens",
            ),
            tag("p", inline(self.note), class_="mt-note", dir="auto") if self.note else None,
            tag("div", color_bar_svg(self.scale_limit, title=name), class_="mt-legend")
            if colored and self.scale
            else None,
            class_="mt-strip",
        )

    def _lines(self) -> list[Markup]:
        """The columns, gathered into lines that end where the text has a line end."""
        names = self._span_names()
        lines: list[list[Markup]] = [[]]
        for index in range(len(self.rows[0].tokens)):
            lines[-1].append(self._column(index, names.get(index)))
            if self.break_lines and any("\n" in row.tokens[index] for row in self.rows):
                lines.append([])
        return [tag("div", join(columns), class_="mt-line") for columns in lines if columns]

    def _layout_class(self) -> str:
        names = "".join(self._span_names().values())
        if not names:
            return "mt-cols"
        return "mt-cols spans two" if "low" in names else "mt-cols spans"

    def _span_names(self) -> dict[int, Markup]:
        """Column to the name that stands under it.

        A name starts with its span; where it would run into the next span it ends with its own, and
        where that collides too it stands a level lower.
        """
        starts = [0.0]
        for tokens in zip(*(row.tokens for row in self.rows), strict=True):
            starts.append(starts[-1] + max(mono_width(visible_token(t), 14) for t in tokens) + 7)
        ordered = sorted(self.spans, key=lambda span: span.start)
        end, names = 0.0, {}
        for number, part in enumerate(ordered, start=1):
            limit = starts[ordered[number].start] if number < len(ordered) else math.inf
            text = shorten(part.name, 28)
            wide = text_width(text, 11) + 8
            column, level = part.start, ""
            if starts[part.start] + wide > limit:
                fits = starts[part.stop] - wide >= end
                column, level = (part.stop - 1, " back") if fits else (part.start, " low")
            if level != " low":
                end = starts[part.stop] if level else starts[part.start] + wide
            names[column] = tag("span", text, class_=f"mt-span-name{level}", aria_hidden="true")
        return names

    def _column(self, index: int, name: Markup | None) -> Markup:
        classes = "mt-col"
        if len({row.tokens[index] for row in self.rows}) > 1:
            classes += " changed"
        if any(part.start <= index < part.stop for part in self.spans):
            last = any(part.stop == index + 1 for part in self.spans)
            classes += " spanned last" if last else " spanned"
        cells = join(self._token(row, index) for row in self.rows)
        return tag("span", cells, name, class_=classes)

    def _token(self, row: TokenRow, index: int) -> Markup:
        value = row.value(index)
        classes, style = "mt-token plain", None
        if value is not None:
            tone = shade(value, self.scale_limit)
            # Below that, neither color nor sign would be worth a reader's eye.
            seen = " seen" if tone.amount >= 6 else ""
            classes, style = f"mt-token {tone.css} {tone.ink}{seen}", tone.style
        return tag(
            "bdi",
            visible_token(row.tokens[index]),
            class_=classes,
            style=style,
            tabindex="0",
            dir="ltr",
            title=self._readout(row, index),
        )

    def _readout(self, row: TokenRow, index: int) -> str:
        value = row.value(index)
        where = next((s.name for s in self.spans if s.start <= index < s.stop), "")
        shown = ""
        if value is not None:
            unit = f"{numbers.THIN}{self.unit}" if self.unit else ""
            shown = "not computed" if math.isnan(value) else numbers.signed(value) + unit
        head = f"{row.label} {index}: {visible_token(row.tokens[index])}".strip()
        return " · ".join(part for part in (head, where, shown) if part)

    def table(self) -> Table:
        """Return one row per column: position, span, and token and value of each row."""
        columns = ["position", "span"] if self.spans else ["position"]
        for row in self.rows:
            columns += [row.label] if row.values is None else [row.label, f"{row.label}, value"]
        return Table(columns, [self._table_row(index) for index in range(len(self.rows[0].tokens))])

    def _table_row(self, index: int) -> list[Cell]:
        cells: list[Cell] = [index]
        if self.spans:
            cells.append(next((s.name for s in self.spans if s.start <= index < s.stop), ""))
        for row in self.rows:
            cells.append(visible_token(row.tokens[index]))
            if row.values is not None:
                cells.append(float(row.values[index]))
        return cells


@dataclass(frozen=True, eq=False)
class TokenStrips(View):
    """Several strips, one beneath the other, on one color scale.

    Attributes:
        strips: The strips; their own limits, units and scales are replaced by the common ones.
        limit: Value of the full color; the largest magnitude in all strips if None.
        unit: Unit of the values.
        scale: What the color means.

    Raises:
        ShapeError: There is no strip.
    """

    strips: Sequence[TokenStrip]
    limit: float | None = None
    unit: str = ""
    scale: str = "effect of the token"

    def __post_init__(self) -> None:
        """Check that there is a strip."""
        if not self.strips:
            raise ShapeError("a group of token strips is empty; give at least one strip")

    def picture(self) -> Markup:
        """Return the strips and one color bar."""
        limit = self.limit
        if limit is None:
            rows = [row for strip in self.strips for row in strip.rows if row.values is not None]
            limit = symmetric_limit(*(row.values for row in rows if row.values is not None))
        drawn = join(
            replace(strip, limit=limit, unit=self.unit, scale="").picture() for strip in self.strips
        )
        name = f"{self.scale} ({self.unit})" if self.unit else self.scale
        bar = tag("div", color_bar_svg(limit, title=name), class_="mt-legend")
        return tag("div", drawn, bar, class_="mt-strips")

    def table(self) -> Table:
        """Return one row per token: strip, row, position, token, value."""
        rows: list[list[Cell]] = []
        for number, strip in enumerate(self.strips, start=1):
            for row in strip.rows:
                for index, token in enumerate(row.tokens):
                    name = strip.title or str(number)
                    rows.append([name, row.label, index, visible_token(token), row.value(index)])
        return Table(("prompt", "row", "position", "token", "value"), rows)
