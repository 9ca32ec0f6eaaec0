"""Heat maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from xml.etree.ElementTree import Element

import gallery_data
import numpy as np
import pytest
from gallery_data import SVG

from microtome.errors import ShapeError
from microtome.views import HeatMap

Parse = Callable[[str], Element]
TONES = {"pos", "neg", "zero", "absent", "amt"}


def cells(root: Element) -> dict[str, Element]:
    """Return the cells by their readout."""
    found = {}
    for rect in root.iter(f"{SVG}rect"):
        title = rect.find(f"{SVG}title")
        if title is not None and title.text is not None:
            found[title.text] = rect
    return found


def test_row_zero_is_at_the_bottom_and_cells_are_square(parse: Parse) -> None:
    root = parse(HeatMap([[1.0, 2.0], [3.0, -4.0]]).to_svg())
    found = cells(root)
    bottom = found["layer 0 · position 0 · 1.00"]
    top = found["layer 1 · position 1 · −4.00"]
    assert float(bottom.attrib["y"]) > float(top.attrib["y"])
    assert float(top.attrib["x"]) > float(bottom.attrib["x"])
    assert bottom.attrib["width"] == bottom.attrib["height"]
    assert top.attrib["class"] == "neg"
    assert top.attrib["style"] == "--v:100%"


@pytest.mark.parametrize("width", [340, 1040])
@pytest.mark.parametrize("shape", [(1, 1), (3, 9), (12, 12), (13, 12), (30, 40), (48, 128)])
def test_cells_are_at_least_14_px_and_inside_the_drawing(
    parse: Parse, shape: tuple[int, int], width: int
) -> None:
    view = HeatMap(np.arange(np.prod(shape), dtype=float).reshape(shape))
    root = parse(view.to_svg(width))
    boxes = [r for r in root.iter(f"{SVG}rect") if r.attrib.get("class") in TONES]
    grid = [r for r in boxes if r.attrib["width"] == r.attrib["height"]]
    assert len(grid) == shape[0] * shape[1]
    assert all(float(r.attrib["width"]) + 1 >= 14 for r in grid)
    assert max(float(r.attrib["x"]) + float(r.attrib["width"]) for r in grid) <= float(
        root.attrib["width"]
    )
    assert min(float(r.attrib["x"]) for r in grid) >= 0


@pytest.mark.parametrize(("shape", "inside"), [((12, 12), 144), ((13, 2), 0), ((2, 13), 0)])
def test_numbers_stand_inside_up_to_twelve_by_twelve(
    parse: Parse, shape: tuple[int, int], inside: int
) -> None:
    root = parse(HeatMap(np.full(shape, -0.5)).to_svg())
    texts = [t for t in root.iter(f"{SVG}text") if "inside" in t.attrib["class"]]
    assert len(texts) == inside
    assert all(t.text == "−0.500" for t in texts)


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 0.5, 3.0, 1e3, 98765.0, 1e12])
def test_numbers_fit_their_cells(parse: Parse, scale: float) -> None:
    root = parse(HeatMap([[-scale, scale / 3]]).to_svg())
    side = max(float(r.attrib["width"]) for r in cells(root).values())
    for text in root.iter(f"{SVG}text"):
        if "inside" in text.attrib["class"]:
            assert len(text.text or "") * 0.602 * 10.5 <= side


def test_absent_and_zero_cells_are_marked_and_explained(parse: Parse) -> None:
    values = np.array([[np.nan, 0.0], [1.0, 2.0]])
    zero = np.array([[False, True], [False, False]])
    root = parse(HeatMap(values, zero=zero, highlight=((1, 1),)).to_svg())
    found = cells(root)
    assert found["layer 0 · position 0 · not computed"].attrib["class"] == "absent"
    assert "layer 0 · position 1 · 0 by construction" in found
    hatch = [p for p in root.iter(f"{SVG}path") if p.attrib.get("class") == "hatch"]
    assert any("M" in p.attrib["d"] for p in hatch)
    texts = [t.text for t in root.iter(f"{SVG}text")]
    for words in ("not computed", "zero by construction", "in the circuit"):
        assert words in texts
    outlines = [r for r in root.iter(f"{SVG}rect") if r.attrib.get("class") == "outline"]
    assert len(outlines) == 2, "one on the map, one in the key"


def test_keys_appear_only_where_they_are_needed(parse: Parse) -> None:
    texts = [t.text for t in parse(HeatMap([[1.0]]).to_svg()).iter(f"{SVG}text")]
    assert "not computed" not in texts
    assert "in the circuit" not in texts


def test_color_bar_states_symmetric_limits(parse: Parse) -> None:
    texts = [
        t.text for t in parse(HeatMap([[0.5, -2.0]], unit="logits").to_svg()).iter(f"{SVG}text")
    ]
    assert {"−2.00", "0", "+2.00", "effect (logits)"} <= set(texts)
    amounts = [t.text for t in parse(HeatMap([[0.5]], signed=False).to_svg()).iter(f"{SVG}text")]
    assert "−0.500" not in amounts


def test_printed_in_gray_negative_cells_carry_a_dash(parse: Parse) -> None:
    values = np.full((13, 13), 1.0)
    values[3, 4] = -1.0
    root = parse(HeatMap(values).to_svg())
    dashes = "".join(
        p.attrib["d"] for p in root.iter(f"{SVG}path") if "printed" in p.attrib.get("class", "")
    )
    assert dashes.count("M") == 1


@pytest.mark.parametrize(
    "values",
    [
        [[math.nan]],
        [[0.0]],
        [[math.inf, -math.inf, 1.0]],
        np.full((3, 3), 0.25),
        np.full((14, 14), math.nan),
        [[1, 2], [3, 4]],
        [[True, False]],
    ],
)
def test_odd_values_are_drawn(parse: Parse, values: object) -> None:
    view = HeatMap(values)  # type: ignore[arg-type]
    for width in (340, 1040):
        assert "nan" not in view.to_svg(width)
        parse(view.to_svg(width))
    assert len(view.table().rows) == np.shape(values)[0]


def test_infinite_cells_take_the_end_colors(parse: Parse) -> None:
    found = cells(parse(HeatMap([[math.inf, -math.inf, 1.0]]).to_svg()))
    assert found["layer 0 · position 0 · ∞"].attrib["style"] == "--v:100%"
    assert found["layer 0 · position 1 · −∞"].attrib["class"] == "neg"


def test_hostile_and_long_labels(parse: Parse) -> None:
    labels = ["<script>", '"', "\u202e", "x" * 400, " שלום", "👩‍🔬"]
    view = HeatMap(np.ones((1, 6)), col_labels=labels)
    root = parse(view.to_svg())
    assert not list(root.iter(f"{SVG}script"))
    shown = [t.text for t in root.iter(f"{SVG}text")]
    assert "<script>" in shown
    assert all(len(text or "") < 60 for text in shown)
    assert float(root.attrib["width"]) < 800


@pytest.mark.parametrize("width", [340, 1040])
def test_column_labels_do_not_leave_the_drawing(parse: Parse, width: int) -> None:
    root = parse(gallery_data.position_map().to_svg(width))
    for text in root.iter(f"{SVG}text"):
        transform = text.attrib.get("transform", "")
        if "rotate(-45)" in transform:
            x = float(transform.split("(")[1].split()[0])
            assert x - len(text.text or "") * 0.602 * 11 * math.sqrt(0.5) >= -1


def test_table_is_the_matrix_upside_down() -> None:
    table = HeatMap([[1.0, 2.0], [3.0, 4.0]], row_labels=("a", "b"), col_labels=("x", "y")).table()
    assert table.columns == ["layer \\ position", "x", "y"]
    assert table.rows == [["b", 3.0, 4.0], ["a", 1.0, 2.0]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"values": [1.0, 2.0]}, r"got shape \(2,\)"),
        ({"values": np.zeros((0, 3))}, r"got shape \(0, 3\)"),
        ({"values": [[1.0]], "row_labels": ("a", "b")}, "row_labels has 2 entries"),
        ({"values": [[1.0]], "col_labels": ()}, "col_labels has 0 entries"),
        ({"values": [[1.0]], "zero": [[True, False]]}, r"zero has shape \(1, 2\)"),
        ({"values": [[1.0]], "highlight": ((0, 1),)}, r"\(0, 1\) lies outside"),
    ],
)
def test_mismatched_input_is_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        HeatMap(**arguments)  # type: ignore[arg-type]
