"""Steps as one self-contained page: nested parts that open on demand, a table in each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.store.atomic import write_text
from microtome.views.markup import Markup, join, tag
from microtome.views.page import Page, Section
from microtome.views.table import Cell, Table
from microtome.views.tokens import TokenRow, TokenStrip
from microtome.views.view import View

if TYPE_CHECKING:
    from microtome.circuits.stepping.results import Link, Step, Steps


@dataclass(frozen=True, eq=False)
class StepTree(View):
    """A tree of steps; each step opens to its links, and below them the steps on.

    Attributes:
        steps: The steps it belongs to, for the tokens.
        root: The tree.
    """

    steps: Steps
    root: Step

    tabular = True

    def picture(self) -> Markup:
        """Return the tree as nested parts that open on demand, the first one open."""
        return self._part(self.root, 0)

    def table(self) -> Table:
        """Return one row for each link of each step."""
        rows = [
            (depth, step.place, step.label, link.part, link.pos, link.value, link.share)
            for depth, step in self.root.walk()
            for link in step.links
        ]
        return Table(("depth", "step", "number", "part", "position", "value", "share"), rows)

    def _part(self, step: Step, depth: int) -> Markup:
        held = f" ({step.held} held)" if step.held else ""
        into = f"{step.explains}: " if step.explains else ""
        place = self._at(step.place, step.pos)
        summary = tag("summary", f"{into}{place} · {step.label} = {step.value:+.3f}{held}")
        below = join(self._part(s, depth + 1) for s in step.steps)
        return tag(
            "details", summary, self._links(step).picture(), below,
            class_="mt-details", open=depth == 0, style=f"margin-left:{16 * min(depth, 1)}px",
        )  # fmt: skip

    def _links(self, step: Step) -> Table:
        backward = step.way == "backward"
        rows: list[tuple[Cell, ...]] = [
            (self._at(k.part, k.pos), k.value, k.share, self._more(k, backward)) for k in step.links
        ]
        if step.hidden and backward:
            rows.append((f"{step.hidden} more", step.hidden_value, float("nan"), ""))
        if backward:
            rows.append(("constant", step.constant, float("nan"), ""))
        rows.append(("unexplained share", step.unexplained, float("nan"), ""))
        return Table(("part", "effect", "share", "more"), rows)

    def _more(self, link: Link, backward: bool) -> str:
        if link.other is None or link.detail.startswith("of"):
            return link.detail
        where = f"{link.other} {self.steps.token(link.other)!r}"
        lead = "from " if backward else f"{link.detail.rsplit(' ', 1)[0]} "
        return f"{lead}{where} {link.other_value:+.3f}"

    def _at(self, part: str, pos: int) -> str:
        return part if pos < 0 else f"{part} at {pos} {self.steps.token(pos)!r}"


def write_page(steps: Steps, path: str | Path) -> Path:
    """Write steps as one HTML file that needs nothing else; return its path.

    Raises:
        OutputError: If the file cannot be written.
    """
    sections = []
    for number, root in enumerate(steps.roots):
        new = steps.prompt_length + number
        generated = len(steps.roots) > 1
        title = f"Generated token {steps.tokens[new]!r}" if generated else f"From {root.place}"
        sections.append(Section(title, (StepTree(steps, root),)))
    strip = TokenStrip(rows=(TokenRow(label="prompt", tokens=steps.tokens),))
    way = "feeds" if steps.roots[0].way == "backward" else "reads"
    place = steps.roots[0].place
    page = Page(
        title=f"What {way} {place}",
        dek=steps.note,
        sections=(Section("Tokens", (strip,)), *sections),
    )
    return write_text(Path(path), page.to_html())
