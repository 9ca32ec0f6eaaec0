"""An article page: one self-contained HTML file, the verdict first.

Example::

    Page(title="Four heads close the quote", dek="...", kicker="microtome dissect",
         verdict=VerdictCard(...),
         sections=(Section("Where it happens", ("Some `code`.", Figure(...)), short="Where"),),
         provenance=(("model", "python-code"), ("seed", "0")),
         command="microtome dissect").to_html()

A block of a section is text (paragraphs, see ``prose``), a ``Figure`` (numbered in order), any
other view, or ``Details`` (a part that opens on demand). Nothing is fetched: style and script are
inside.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from microtome.views import stylesheet
from microtome.views.figure import Figure, command_line
from microtome.views.markup import Markup, escape, join, tag
from microtome.views.prose import inline, paragraphs
from microtome.views.view import View


@dataclass(frozen=True, eq=False)
class Details:
    """A part that a reader opens on demand: a method, exact definitions.

    Attributes:
        summary: What it holds, always visible.
        body: Text and views.
        terms: Terms with their definitions, set after the body.
    """

    summary: str
    body: Sequence[str | View] = ()
    terms: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, eq=False)
class Heading:
    """A heading inside a section.

    Attributes:
        text: The heading.
    """

    text: str


Block = str | View | Details | Heading


@dataclass(frozen=True, eq=False)
class Section:
    """A section of the article.

    Attributes:
        title: Its heading.
        blocks: Text, figures, views and details, in order.
        short: Its name in the table of contents; the title if "".
    """

    title: str
    blocks: Sequence[Block]
    short: str = ""


@dataclass(frozen=True, eq=False)
class Page:
    """An article.

    Attributes:
        title: What was found, as a sentence.
        sections: The sections.
        verdict: The verdict, shown before everything else.
        kicker: One line above the title.
        dek: One or two sentences below the title: what this is about.
        provenance: Name and value of everything that is needed to make the page again.
        command: The command that makes it again.
        lang: Language of the text.
    """

    title: str
    sections: Sequence[Section] = ()
    verdict: View | None = None
    kicker: str = ""
    dek: str = ""
    provenance: Sequence[tuple[str, str]] = ()
    command: str = ""
    lang: str = "en"

    def to_html(self) -> str:
        """Return the whole page as one HTML file without any reference to another."""
        template = _template()
        html: str = template.render(
            page=self,
            sections=self._sections(),
            verdict=self.verdict.picture() if self.verdict else None,
            command=command_line(self.command) if self.command else None,
            css=Markup(stylesheet.page_css()),
            script=Markup(stylesheet.script()),
            script_hash=Markup(stylesheet.script_hash()),
            text=escape,
            inline=inline,
        )
        return html

    def _repr_html_(self) -> str:
        """Return the page in a frame of its own, for notebooks."""
        return tag(
            "iframe",
            srcdoc=self.to_html(),
            sandbox="allow-scripts",
            title=self.title,
            style="width:100%;height:80vh;border:0",
        )

    def _sections(self) -> list[dict[str, str]]:
        taken: set[str] = set()
        drawn = []
        figures = 0
        for section in self.sections:
            parts = []
            for block in section.blocks:
                figures += isinstance(block, Figure)
                parts.append(_block(block, figures))
            drawn.append(
                {
                    "id": _slug(section.short or section.title, taken),
                    "title": section.title,
                    "short": section.short or section.title,
                    "body": join(parts, "\n"),
                }
            )
        return drawn


def _template() -> Any:
    # Imported here: a notebook that shows one view needs no template engine.
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(stylesheet.asset("page.html"))


def _block(block: Block, number: int) -> Markup:
    if isinstance(block, str):
        return paragraphs(block)
    if isinstance(block, Heading):
        return tag("h3", inline(block.text))
    if isinstance(block, Details):
        return _details(block)
    return block.numbered(number) if isinstance(block, Figure) else Markup(block.to_html())


def _details(block: Details) -> Markup:
    body = join(_block(part, 0) for part in block.body)
    terms = None
    if block.terms:
        pairs = (tag("dt", inline(name)) + tag("dd", inline(text)) for name, text in block.terms)
        terms = tag("dl", join(pairs), class_="mt-terms")
    return tag("details", tag("summary", inline(block.summary)), body, terms, class_="mt-details")


def _slug(text: str, taken: set[str]) -> str:
    """Return a name for an address from a text, unlike those already taken."""
    base = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
    slug, number = base, 1
    while slug in taken:
        number += 1
        slug = f"{base}-{number}"
    taken.add(slug)
    return slug
