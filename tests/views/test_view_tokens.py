"""Token strips."""

from __future__ import annotations

import math
from collections.abc import Callable
from xml.etree.ElementTree import Element

import numpy as np
import pytest

from microtome.errors import ShapeError
from microtome.views import Span, TokenRow, TokenStrip, TokenStrips

Parse = Callable[[str], Element]


def _tokens(root: Element) -> list[Element]:
    return [node for node in root.iter("bdi") if "mt-token" in node.attrib["class"]]


def _columns(root: Element) -> list[Element]:
    return [n for n in root.iter("span") if "mt-col" in n.attrib.get("class", "").split()]


def test_rows_are_aligned_column_by_column(parse: Parse) -> None:
    strip = TokenStrip(
        (
            TokenRow("clean", ("a", " b", "\n"), (0.5, -1.0, 0.0)),
            TokenRow("corrupt", ("a", " c", "\n")),
        )
    )
    columns = _columns(parse(strip.to_html()))
    assert [[node.text for node in column.iter("bdi")] for column in columns] == [
        ["a", "a"],
        ["·b", "·c"],
        ["⏎", "⏎"],
    ]
    assert ["changed" in column.attrib["class"] for column in columns] == [False, True, False]


def test_sign_is_carried_by_more_than_color(parse: Parse) -> None:
    strip = TokenStrip((TokenRow("x", ("a", "b", "c", "d"), (1.0, -1.0, 0.0, math.nan)),))
    classes = [node.attrib["class"].split() for node in _tokens(parse(strip.to_html()))]
    assert [c[1] for c in classes] == ["pos", "neg", "zero", "absent"]
    assert "seen" in classes[0]
    assert "seen" in classes[1]
    assert "seen" not in classes[2]


def test_value_is_in_the_readout_and_reachable_by_keyboard(parse: Parse) -> None:
    strip = TokenStrip(
        (TokenRow("clean", ("a", "b"), (0.25, math.nan)),), unit="logits", spans=(Span("s", 0, 1),)
    )
    first, second = _tokens(parse(strip.to_html()))
    assert first.attrib["title"] == "clean 0: a · s · +0.250\u202flogits"
    assert second.attrib["title"] == "clean 1: b · not computed"
    assert first.attrib["tabindex"] == "0"


def test_a_row_without_values_has_no_color_and_no_scale(parse: Parse) -> None:
    root = parse(TokenStrip((TokenRow("x", ("a",)),)).to_html())
    assert _tokens(root)[0].attrib["class"] == "mt-token plain"
    assert not list(root.iter("{http://www.w3.org/2000/svg}svg"))


def test_line_ends_break_the_line(parse: Parse) -> None:
    rows = (TokenRow("x", ("a", "\n  ", "b")),)

    def lines(strip: TokenStrip) -> list[int]:
        divisions = parse(strip.to_html(table=False)).iter("div")
        return [len(list(n)) for n in divisions if n.attrib.get("class") == "mt-line"]

    assert lines(TokenStrip(rows)) == [2, 1]
    assert lines(TokenStrip(rows, break_lines=False)) == [3]
    assert lines(TokenStrip((TokenRow("x", ("a", "\n")),))) == [2]


def test_neighboring_span_names_do_not_collide(parse: Parse) -> None:
    tokens = tuple("abcdefgh")
    spans = (Span("first long name", 3, 4), Span("second", 4, 5), Span("third", 5, 8))
    root = parse(TokenStrip((TokenRow("x", tokens),), spans=spans).to_html())
    names = [n.attrib["class"] for n in root.iter("span") if "span-name" in n.get("class", "")]
    # The first fits on neither side of its token, the second only to the left, the third as it is.
    assert names == ["mt-span-name low", "mt-span-name back", "mt-span-name"]


def test_strips_share_one_scale(parse: Parse) -> None:
    strips = TokenStrips(
        (
            TokenStrip((TokenRow("x", ("a",), (1.0,)),), title="one"),
            TokenStrip((TokenRow("x", ("b",), (-4.0,)),), title="two"),
        ),
        unit="logits",
    )
    root = parse(strips.to_html(table=False))
    weak, strong = _tokens(root)
    assert weak.attrib["style"] == "--v:25%"
    assert strong.attrib["style"] == "--v:100%"
    assert len(list(root.iter("{http://www.w3.org/2000/svg}svg"))) == 1
    assert strips.table().rows == [["one", "x", 0, "a", 1.0], ["two", "x", 0, "b", -4.0]]


def test_table_has_one_row_per_column() -> None:
    strip = TokenStrip(
        (TokenRow("clean", ("a", "b"), (1.0, 2.0)), TokenRow("corrupt", ("a", "c"))),
        spans=(Span("s", 1, 2),),
    )
    table = strip.table()
    assert table.columns == ["position", "span", "clean", "clean, value", "corrupt"]
    assert table.rows == [[0, "", "a", 1.0, "a"], [1, "s", "b", 2.0, "c"]]


@pytest.mark.parametrize(
    ("values", "limit"),
    [([1.0, 1.0], 1.0), ([0.0, 0.0], 1.0), ([math.nan, math.nan], 1.0), ([math.inf, 2.0], 2.0)],
)
def test_scale_of_odd_values(values: list[float], limit: float) -> None:
    strip = TokenStrip((TokenRow("x", ("a", "b"), values),))
    assert strip.scale_limit == limit
    assert strip.to_html() == strip.to_html()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: TokenStrip(()), "at least one token"),
        (lambda: TokenStrip((TokenRow("x", ()),)), r"rows of \[0\]"),
        (
            lambda: TokenStrip((TokenRow("x", ("a",)), TokenRow("y", ("a", "b")))),
            r"\[1, 2\] tokens",
        ),
        (lambda: TokenStrip((TokenRow("x", ("a", "b"), np.ones(3)),)), "2 tokens but 3 values"),
        (
            lambda: TokenStrip((TokenRow("x", ("a", "b")),), spans=(Span("s", 1, 3),)),
            "1:3, outside 0:2",
        ),
        (
            lambda: TokenStrip(
                (TokenRow("x", ("a", "b")),), spans=(Span("s", 0, 2), Span("t", 1, 2))
            ),
            "'t' is 1:2",
        ),
        (lambda: TokenStrips(()), "at least one strip"),
    ],
)
def test_mismatched_input_is_refused(build: Callable[[], object], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        build()
