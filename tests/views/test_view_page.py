"""Figures, the article page, and what holds for every view."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree.ElementTree import Element

import gallery
import gallery_data
import pytest
from gallery_data import SVG

from microtome.views import (
    Details,
    Drawing,
    Figure,
    Heading,
    HeatMap,
    Page,
    Section,
    TokenRow,
    TokenStrip,
    View,
)
from microtome.views.stylesheet import page_css, script, view_css

Parse = Callable[[str], Element]
BUILDERS = [
    gallery_data.verdict,
    gallery_data.strips,
    gallery_data.position_map,
    gallery_data.head_map,
    gallery_data.wide_map,
    gallery_data.circuit,
    gallery_data.big_circuit,
    gallery_data.curve,
    gallery_data.controls,
    gallery_data.rule,
    gallery_data.operation,
    gallery_data.drift,
]
SET_AS_TEXT = ("verdict", "strips", "controls", "rule")
DRAWN = [build for build in BUILDERS if build.__name__ not in SET_AS_TEXT]
HOSTILE = "<script>alert(1)</script>\"'`&\x00\u202e{{ 1 }}</title></style>"
EXTERNAL = re.compile(r"(?:https?:)?//[\w.-]+\.\w|@import|url\(|\bsrc=|<link|<base|<iframe")


class _Reader(HTMLParser):
    """Collects what a browser would: elements, identifiers, links, scripts."""

    VOID = frozenset(("meta", "br", "hr", "img", "input", "link"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.scripts: list[str] = []
        self.handlers: list[str] = []
        self.stray: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if values.get("id"):
            self.ids.append(values["id"] or "")
        if values.get("href"):
            self.links.append(values["href"] or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.stray.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def _read(html: str) -> _Reader:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader


@pytest.fixture(scope="module")
def page() -> str:
    """The gallery, a mock of the whole report."""
    return gallery.report().to_html()


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_every_view_stands_alone(parse: Parse, build: Callable[[], View]) -> None:
    view = build()
    parse(view.to_html())
    assert not EXTERNAL.search(view.to_html().replace("http://www.w3.org/2000/svg", ""))
    document = view.to_document("a <title>")
    assert document.startswith("<!DOCTYPE html>")
    assert "<title>a &lt;title&gt;</title>" in document
    assert not _read(document).stray
    assert "<style>" in view._repr_html_()
    assert view.table().columns
    assert view.to_html() == build().to_html(), "the same input gives the same bytes"


@pytest.mark.parametrize("build", DRAWN, ids=lambda build: build.__name__)
def test_every_drawing_is_a_well_formed_file(parse: Parse, build: Callable[[], View]) -> None:
    view = build()
    assert isinstance(view, Drawing)
    for width in (340, 1040):
        root = parse(view.to_svg(width))
        assert root.tag == f"{SVG}svg"
        assert root.find(f"{SVG}style") is not None
        assert root.attrib["aria-label"]
        assert not root.findall(".//*[@id]"), "an id would clash with that of another figure"
        height = float(root.attrib["height"])
        for text in root.iter(f"{SVG}text"):
            assert -1 <= float(text.attrib.get("y", 0)) <= height
        assert view.to_svg(width) == view.to_svg(width)


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_a_table_stands_behind_every_picture(parse: Parse, build: Callable[[], View]) -> None:
    view = build()
    details = parse(view.to_html()).findall(".//details")
    assert len(details) == (0 if view.tabular else 1)
    assert not parse(view.to_html(table=False)).findall(".//details")


def test_the_page_is_sound_html(page: str) -> None:
    reader = _read(page)
    assert reader.stray == []
    assert reader.open == []
    assert len(set(reader.ids)) == len(reader.ids)
    assert reader.handlers == []
    assert {link for link in reader.links if link.startswith("#")} == set(reader.links)
    assert {link[1:] for link in reader.links} <= set(reader.ids)


def test_the_page_asks_for_nothing(page: str) -> None:
    assert page.count("http") == page.count("http://www.w3.org/2000/svg") + page.count("http-equiv")
    assert not EXTERNAL.search(page.replace("http://www.w3.org/2000/svg", ""))
    assert len(page.encode()) < 2_000_000


def test_the_policy_admits_this_script_only(page: str) -> None:
    (found,) = _read(page).scripts
    assert found == script()
    digest = base64.b64encode(hashlib.sha256(found.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page


def test_the_verdict_comes_before_the_sections_and_figures_are_numbered(page: str) -> None:
    assert page.index('mt-verdict"') < page.index("<section")
    numbers = [int(n) for n in re.findall(r'class="mt-figure-number">Figure (\d+)<', page)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 9


def test_hostile_text_everywhere() -> None:
    strip = TokenStrip((TokenRow(HOSTILE, (HOSTILE,), (1.0,)),), title=HOSTILE, note=HOSTILE)
    heat = HeatMap([[1.0]], row_labels=[HOSTILE], col_labels=[HOSTILE], title=HOSTILE, unit=HOSTILE)
    figure = Figure(
        HOSTILE,
        (strip, heat),
        HOSTILE,
        baseline=HOSTILE,
        interval=HOSTILE,
        command=HOSTILE,
        facts=((HOSTILE, HOSTILE),),
    )
    html = Page(
        HOSTILE,
        (
            Section(
                HOSTILE,
                (
                    HOSTILE,
                    Heading(HOSTILE),
                    figure,
                    Details(HOSTILE, (HOSTILE,), ((HOSTILE, HOSTILE),)),
                ),
                HOSTILE,
            ),
        ),
        gallery_data.verdict(),
        HOSTILE,
        HOSTILE,
        ((HOSTILE, HOSTILE),),
        HOSTILE,
    ).to_html()
    reader = _read(html)
    assert reader.stray == []
    assert len(reader.scripts) == 1
    assert html.lower().count("<script") == 1
    assert html.count("</title>") == html.count("<title>")
    assert html.count("</style>") == 1
    assert "{{ 1 }}" in html
    assert "\x00" not in html
    assert "\u202e" not in html


def test_sections_of_one_name_get_different_addresses() -> None:
    html = Page("t", (Section("Same", ()), Section("Same", ()), Section("«»", ()))).to_html()
    ids = re.findall(r'<section id="([^"]+)"', html)
    assert ids == ["same", "same-2", "section"]


def test_a_page_of_nothing_but_a_title() -> None:
    reader = _read(Page("t").to_html())
    assert reader.stray == []


def test_figure_foot_and_command(parse: Parse) -> None:
    figure = Figure(
        "t",
        HeatMap([[1.0]]),
        "c",
        n=12000,
        clusters=3,
        baseline="b",
        interval="i",
        command="microtome x  --seed 0",
    )
    root = parse(figure.to_html())
    text = "".join(root.itertext())
    assert "n12\u202f000clusters3baselinebintervali" in text
    code = root.find(".//pre/code")
    assert code is not None
    assert "".join(code.itertext()) == "microtome x  --seed 0", "what is copied is the command"
    bare = parse(Figure("t", HeatMap([[1.0]])).to_html(table=False))
    assert bare.find(".//pre") is None
    assert bare.find(".//details") is None
    assert bare.find(".//dl") is None


def test_views_without_a_page_leak_no_style() -> None:
    """Every rule is scoped to .mt names, so that a notebook keeps its own look."""
    plain = re.sub(r"@[a-z-]+[^{]*\{", "", view_css())
    for selectors in re.findall(r"([^{}]+)\{[^{}]*\}", plain):
        for selector in re.sub(r"\([^)]*\)", "", selectors).split(","):
            assert ".mt" in selector, selector


def test_colors_are_written_in_one_place() -> None:
    assets = Path(__file__).parents[2] / "src" / "microtome" / "views" / "assets"
    for path in assets.iterdir():
        assert not re.search(r"#[0-9a-fA-F]{6}\b", path.read_text(encoding="utf-8")), path.name
    assert "--mt-paper:#fcfcfa" in page_css()
    assert "--mt-paper:#14171a" in page_css()


def test_another_process_writes_the_same_bytes(page: str, tmp_path: Path) -> None:
    target = tmp_path / "gallery.html"
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    script_path = Path(__file__).with_name("gallery.py")
    subprocess.run([sys.executable, str(script_path), str(target)], env=environment, check=True)
    assert target.read_text(encoding="utf-8") == page


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, microtome.views as v; "
        "assert 'numpy' not in sys.modules and 'jinja2' not in sys.modules; "
        "v.HeatMap; v.Page; heavy = {'torch', 'transformers', 'scipy', 'pandas', 'xarray', "
        "'sklearn', 'jinja2'} & set(sys.modules); assert not heavy, heavy; "
        "assert set(v.__all__) <= set(dir(v)); [getattr(v, name) for name in v.__all__]"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
