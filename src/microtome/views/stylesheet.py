"""The style sheets and the script: the package's assets, completed with the palette."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from microtome.views.markup import Markup, tag
from microtome.views.palette import DARK, LIGHT, Theme, variables


@cache
def asset(name: str) -> str:
    """Return the text of a file in the package's assets."""
    return files("microtome.views").joinpath("assets", name).read_text(encoding="utf-8")


def _declarations(theme: Theme, scheme: str) -> str:
    pairs = ";".join(f"{name}:{color}" for name, color in variables(theme).items())
    return f"{{color-scheme:{scheme};{pairs}}}"


@cache
def theme_css(root: str = ".mt") -> str:
    """Return the custom properties of both themes for a root selector.

    The system's setting decides; ``data-theme="light"`` or ``"dark"`` on the root or on the
    document overrides it; print is always light.
    """
    light, dark = _declarations(LIGHT, "light"), _declarations(DARK, "dark")
    chosen = f'[data-theme="dark"] {root},{root}[data-theme="dark"]'
    forced = f'[data-theme="light"] {root},{root}[data-theme="light"]'
    return (
        f"{root}{light}\n"
        f"@media (prefers-color-scheme:dark){{{root}{dark}}}\n"
        f"@media screen{{{chosen}{dark}\n{forced}{light}}}\n"
        f"@media print{{{root}{light}}}\n"
    )


@cache
def drawing_style() -> Markup:
    """Return the ``<style>`` element that makes one SVG file stand alone.

    Before every color that is a custom property stands the same color of the light theme in plain
    form, for SVG readers that know no custom properties.
    """
    light = variables(LIGHT)
    rules = re.sub(
        r"([a-z-]+):var\((--mt-[a-z0-9-]+)\)",
        lambda match: f"{match[1]}:{light[match[2]]};{match[0]}" if match[2] in light else match[0],
        asset("drawing.css"),
    )
    return Markup(f"<style>{theme_css('svg.mt-svg')}{rules}</style>")


@cache
def view_css() -> str:
    """Return the style sheet of single views, scoped to ``.mt``, as a notebook needs it."""
    return theme_css() + asset("drawing.css") + asset("views.css") + asset("browser.css")


@cache
def page_css() -> str:
    """Return the style sheet of a whole page."""
    return view_css() + asset("page.css")


def script() -> str:
    """Return the page's script."""
    return asset("page.js") + asset("browser.js")


def script_hash() -> str:
    """Return the script's hash as a content security policy names it."""
    digest = hashlib.sha256(script().encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


def document(title: str, body: Markup) -> str:
    """Return a complete HTML file for one view, with style and script inside."""
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src '{script_hash()}'"
    head = tag(
        "head",
        Markup('<meta charset="utf-8"/>'),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1"/>'),
        tag("title", title),
        Markup(f"<style>{page_css()}</style>"),
    )
    content = tag("body", body, Markup(f"<script>{script()}</script>"), class_="mt")
    return f"<!DOCTYPE html>\n{tag('html', head, content, lang='en')}\n"
