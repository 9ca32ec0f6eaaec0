"""A figure of an article: the finding as its title, the picture, how it was made, what backs it.

Example::

    Figure(title="Two heads carry the quote", body=HeatMap(...), caption="Each cell ...",
           n=240, clusters=24, baseline="corrupt prompts", interval="95 % cluster bootstrap",
           command="microtome dissect ...")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from microtome.views import numbers
from microtome.views.markup import Markup, join, tag
from microtome.views.prose import inline, paragraphs
from microtome.views.table import Table
from microtome.views.view import View


@dataclass(frozen=True, eq=False)
class Figure(View):
    """A view with everything that a reader needs to judge it.

    Attributes:
        title: The finding, as a sentence; if there is none, the sentence that says so.
        body: The view or views.
        caption: How the figure was made and how to read it.
        n: Number of items.
        clusters: Number of clusters they fall into.
        baseline: What the values are compared with.
        interval: Which interval is shown.
        command: The command that makes it again.
        facts: Further name and value pairs for the foot.
    """

    title: str
    body: View | Sequence[View]
    caption: str = ""
    n: int | None = None
    clusters: int | None = None
    baseline: str = ""
    interval: str = ""
    command: str = ""
    facts: Sequence[tuple[str, str]] = ()

    @property
    def views(self) -> tuple[View, ...]:
        """The views of the body."""
        return (self.body,) if isinstance(self.body, View) else tuple(self.body)

    def picture(self) -> Markup:
        """Return the figure without a number."""
        return self.numbered(None)

    def to_html(self, *, table: bool = True) -> str:
        """Return the figure; its tables are part of it unless ``table`` is False."""
        return self.numbered(None, table=table)

    def numbered(self, number: int | None, *, table: bool = True) -> Markup:
        """Return the figure with its number in the article.

        Args:
            number: The number, or None for none.
            table: Whether to add the tables behind the views.
        """
        lead = tag("span", f"Figure {number}", class_="mt-figure-number") if number else None
        body = join(tag("div", view.picture(), class_="mt-view") for view in self.views)
        side = tag(
            "figcaption",
            paragraphs(self.caption) if self.caption else None,
            self._foot(),
            self._command(),
            class_="mt-side",
        )
        head = tag("p", lead, " " if lead else None, tag("strong", inline(self.title)))
        return tag(
            "figure",
            tag("div", head, class_="mt-figure-title"),
            tag("div", body, class_="mt-figure-body"),
            side,
            self._behind() if table else None,
            class_="mt-figure",
            id=f"figure-{number}" if number else None,
        )

    def _foot(self) -> Markup | None:
        facts = [
            ("n", numbers.count(self.n) if self.n is not None else ""),
            ("clusters", numbers.count(self.clusters) if self.clusters is not None else ""),
            ("baseline", self.baseline),
            ("interval", self.interval),
            *self.facts,
        ]
        shown = [(name, value) for name, value in facts if value]
        if not shown:
            return None
        pairs = (tag("div", tag("dt", name), tag("dd", inline(value))) for name, value in shown)
        return tag("dl", join(pairs), class_="mt-facts-list")

    def _command(self) -> Markup | None:
        return command_line(self.command) if self.command else None

    def _behind(self) -> Markup | None:
        tables = [view.table() for view in self.views if not view.tabular]
        if not tables:
            return None
        name = "Table behind this figure" if len(tables) == 1 else "Tables behind this figure"
        content = join(table.picture() for table in tables)
        return tag("details", tag("summary", name), content, class_="mt-behind")

    def table(self) -> Table:
        """Return the table behind the first view."""
        return self.views[0].table()


def command_line(command: str) -> Markup:
    """Return a command in a monospaced box with a button that copies it."""
    button = tag("button", "copy", type="button", class_="mt-copy", hidden=True)
    # Words break the line, the hyphens of an option do not.
    words = join((tag("span", word) for word in command.split(" ")), " ")
    return tag("div", tag("pre", tag("code", words)), button, class_="mt-command")
