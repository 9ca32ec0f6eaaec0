"""Escaping, visible tokens, widths."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from microtome.views.glyphs import (
    cells,
    mono_width,
    shorten,
    text_width,
    visible_label,
    visible_token,
)
from microtome.views.markup import Markup, coordinate, escape, join, tag
from microtome.views.prose import inline, paragraphs

HOSTILE = [
    "<script>alert(1)</script>",
    '"onmouseover=alert(1) x="',
    "' onfocus='x",
    "]]></style><!--",
    "&lt;&amp;&#60;",
    "\x00\x01\x07\x1b\x7f\x85",
    "\u202eevil\u202c\u2066x\u2069",
    "\ud800",
    "\ufffe\uffff\ufdd0",
    "\u2028\u2029",
    "שלום العربية",
    "👩‍🔬🏳️‍🌈",
    "x" * 5000,
    "{{ 7 * 7 }}{% raw %}",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    element = tag("span", text, title=text)
    parsed = ElementTree.fromstring(element)
    assert len(parsed) == 0, "the text became an element"
    assert set(parsed.attrib) == {"title"}, "the text became an attribute"
    assert parsed.text == parsed.attrib["title"]
    for character in "\x00\x07\u202e\u2066\ud800\ufffe\u2028":
        assert character not in element


@pytest.mark.parametrize("text", ["plain", "שלום", "👩‍🔬", "a\nb\tc", "漢字", "é"])
def test_harmless_text_is_unchanged(text: str) -> None:
    assert escape(text) == text


def test_markup_is_not_escaped_twice_and_text_always_is() -> None:
    inner = tag("b", "x & y")
    assert inner == "<b>x &amp; y</b>"
    assert tag("p", inner, "<i>") == "<p><b>x &amp; y</b>&lt;i&gt;</p>"
    assert isinstance(inner + "<", Markup)
    assert inner + "<" == "<b>x &amp; y</b>&lt;"
    assert join([inner, Markup("!")], "<") == "<b>x &amp; y</b>&lt;!"


def test_attributes() -> None:
    assert tag("a", class_="x", data_row=3, hidden=True, title=None, lang=False) == (
        '<a class="x" data-row="3" hidden=""></a>'
    )
    assert tag("rect", x=1.0, y=2.345, width=float("nan")) == '<rect x="1" y="2.35" width="0"/>'


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.001, "0"), (1.5, "1.5"), (100.0, "100"), (2.999, "3"), (-1.25, "-1.25")],
)
def test_coordinate(value: float, text: str) -> None:
    assert coordinate(value) == text


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", "·the"),
        ("\n    ", "⏎····"),
        ("\t", "⇥"),
        ("\r", "␍"),
        ("", "∅"),
        ("\x07", "␇"),
        ("\u200b", "⟨U+200B⟩"),
        ("\u202e", "⟨U+202E⟩"),
        ("👩‍🔬", "👩‍🔬"),
        ("שלום", "שלום"),
    ],
)
def test_visible_token(token: str, shown: str) -> None:
    assert visible_token(token) == shown


@pytest.mark.parametrize(
    ("label", "shown"),
    [("opening quote", "opening quote"), (" the", "·the"), ("  ", "··"), ("a\nb", "a⏎b")],
)
def test_visible_label_keeps_blanks_between_words(label: str, shown: str) -> None:
    assert visible_label(label) == shown


def test_widths_count_wide_and_combining_characters() -> None:
    assert cells("abc") == 3
    assert cells("漢字") == 4
    assert cells("e\u0301") == 1
    assert mono_width("abcd", 10) == pytest.approx(24.08)
    assert text_width("ab", 10) < mono_width("ab", 10)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 9, 10])
def test_shorten_keeps_the_limit_and_both_ends(limit: int) -> None:
    short = shorten("abcdefghijkl", limit)
    assert cells(short) <= limit
    assert "…" in short
    if limit >= 3:
        assert short[0] == "a"
        assert short[-1] == "l"
    assert shorten("abc", 3) == "abc"
    assert cells(shorten("漢" * 9, limit)) <= limit


def test_prose() -> None:
    assert inline("a `b<c` **d**") == "a <code>b&lt;c</code> <strong>d</strong>"
    assert inline("2 * 3 ** 4 ` x") == "2 * 3 ** 4 ` x"
    assert paragraphs("one\ntwo\n\n  three ") == "<p>one two</p><p>three</p>"
    assert paragraphs(" \n\n ") == ""
