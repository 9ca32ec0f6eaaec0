"""Running text: `code` in backticks and **strong** in double stars; everything else is literal."""

from __future__ import annotations

import re

from microtome.views.markup import Markup, escape, join, tag

_SPANS = re.compile(r"`([^`\n]+)`|\*\*([^*\n]+)\*\*")


def inline(text: str) -> Markup:
    """Return one line of running text as HTML."""
    if isinstance(text, Markup):
        return text
    parts: list[Markup] = []
    start = 0
    for match in _SPANS.finditer(text):
        parts.append(escape(text[start : match.start()]))
        code, strong = match.groups()
        parts.append(tag("code", code) if code is not None else tag("strong", strong))
        start = match.end()
    return join([*parts, escape(text[start:])])


def paragraphs(text: str) -> Markup:
    """Return running text as paragraphs, which a blank line separates."""
    blocks = [block.strip() for block in re.split(r"\n\s*\n", text) if block.strip()]
    return join(tag("p", inline(re.sub(r"\s+", " ", block))) for block in blocks)
