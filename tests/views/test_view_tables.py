"""Tables, controls, rules and the verdict card."""

from __future__ import annotations

import math
from collections.abc import Callable
from xml.etree.ElementTree import Element

import gallery_data
import numpy as np
import pytest

from microtome.errors import ConfigError, ShapeError
from microtome.views import (
    Control,
    ControlsTable,
    Estimate,
    RuleNode,
    RuleTree,
    Table,
    VerdictCard,
)

Parse = Callable[[str], Element]


def _rows(root: Element) -> list[list[str]]:
    body = root.find(".//tbody")
    assert body is not None
    return [["".join(cell.itertext()) for cell in row] for row in body]


def test_cells_are_written_by_kind(parse: Parse) -> None:
    table = Table(
        ("a", "b", "c", "d", "e", "f"),
        [
            (1234, 0.12345, True, None, "x<y", Estimate(0.5, 0.4, 0.6)),
            (1, math.nan, False, None, "", 2),
        ],
    )
    first, second = _rows(parse(table.to_html()))
    assert first == ["1\u202f234", "0.123", "yes", "–", "x<y", "0.500 [0.400, 0.600]"]
    assert second == ["1", "–", "no", "–", "", "2"]


def test_numpy_numbers_are_numbers(parse: Parse) -> None:
    table = Table(("a", "b"), [(np.int64(5), np.float32(0.5))])
    root = parse(table.to_html())
    assert _rows(root) == [["5", "0.500"]]
    assert [cell.get("class") for cell in root.iter("td")] == ["num", "num"]


def test_a_table_scrolls_in_its_own_box_and_has_no_table_behind(parse: Parse) -> None:
    root = parse(Table(("a",), [(1,)]).to_html())
    assert root[0].attrib["class"] == "mt-scroll"
    assert root[0].attrib["tabindex"] == "0"
    assert root.find(".//details") is None


def test_an_empty_table_says_so(parse: Parse) -> None:
    assert _rows(parse(Table(("a", "b"), []).to_html())) == [["no rows"]]


def test_rows_must_fit_the_columns() -> None:
    with pytest.raises(ShapeError, match="row 1 of the table has 1 cells, but there are 2"):
        Table(("a", "b"), [(1, 2), (1,)])


def test_every_control_has_a_word_and_a_shape(parse: Parse) -> None:
    root = parse(gallery_data.controls().to_html())
    outcomes = [row[-1] for row in _rows(root)]
    assert outcomes == ["passed"] * 4 + ["unsure", "failed"]
    discs = [n.attrib["class"] for n in root.iter("span") if "mt-disc" in n.get("class", "")]
    assert discs == ["mt-disc filled"] * 4 + ["mt-disc half", "mt-disc open"]


def test_no_controls_is_said(parse: Parse) -> None:
    assert "No control was run." in ControlsTable(()).to_html()
    assert ControlsTable(()).table().rows == []


def test_controls_as_text() -> None:
    control = Control("a", "b", Estimate(0.5, 0.4, 0.6), 3, False)
    assert ControlsTable((control,)).table().rows == [
        ("a", "b", "0.500 [0.400, 0.600]", "3", "failed")
    ]


def test_rule_is_read_from_top_to_bottom(parse: Parse) -> None:
    rows = _rows(parse(gallery_data.rule().to_html()))
    assert rows == [
        ['if the string was opened by "', '"', "244", "99.2\u202f%"],
        ["otherwise", "", "236", ""],
        ["if a double quote follows the single one", '"', "31", "77.4\u202f%"],
        ["otherwise", "'", "205", "98.5\u202f%"],
    ]


def test_rule_paths() -> None:
    rows = gallery_data.rule().table().rows
    assert [row[2] for row in rows] == [244, 31, 205]
    assert rows[1][0] == (
        'not (the string was opened by `"`) and a double quote follows the single one'
    )


def test_a_rule_without_questions() -> None:
    assert "always" in RuleTree(RuleNode(10, "x", 0.9)).to_html()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: RuleNode(3, "x", 1.0, condition="c"), "has 0 branches"),
        (lambda: RuleNode(3, "x", 1.0, yes=RuleNode(3, "x", 1.0)), "has 1 branches"),
        (
            lambda: RuleNode(3, "x", 1.0, "c", RuleNode(1, "x", 1.0), RuleNode(1, "y", 1.0)),
            r"\[1, 1\] items, but the node holds 3",
        ),
    ],
)
def test_bad_rules_are_refused(build: Callable[[], object], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        build()


@pytest.mark.parametrize("state", ["filled", "half", "open"])
def test_verdict_says_grade_numbers_and_conditions(parse: Parse, state: str) -> None:
    card = VerdictCard(
        "Not established",
        state,  # type: ignore[arg-type]
        ("One.", "Two `x`."),
        (Estimate(0.5, 0.4, 0.6, "f", note="asked"),),
        ("held",),
        ("overturned",),
    )
    root = parse(card.to_html(table=False))
    text = "|".join(t for t in root.itertext())
    for words in ("Not established", "One. Two ", "[0.400, 0.600]", "asked", "held", "overturned"):
        assert words in text
    assert root.find(f".//span[@class='mt-disc {state}']") is not None
    assert "What was held fixed" not in VerdictCard("x", "open", ()).to_html()


def test_unknown_state_is_refused() -> None:
    with pytest.raises(ConfigError, match="'maybe'; choose filled, half or open"):
        VerdictCard("x", "maybe", ())  # type: ignore[arg-type]
