"""Curves and distributions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from xml.etree.ElementTree import Element

import gallery_data
import numpy as np
import pytest
from gallery_data import SVG

from microtome.errors import ConfigError, ShapeError
from microtome.views import Curve, Distribution, NullBand, Sample, Series
from microtome.views.curve_drawing import spread, tick_labels
from microtome.views.distribution import density, swarm
from microtome.views.scales import Scale, round_ticks, span

Parse = Callable[[str], Element]


def _curve(y: object, **more: object) -> Curve:
    x = np.arange(1, np.size(y) + 1)
    return Curve((Series("line", x, y),), x_label="x", y_label="y", **more)  # type: ignore[arg-type]


def _texts(root: Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def test_scale_is_linear_or_logarithmic() -> None:
    linear = Scale(0, 10, 100, 200)
    assert [linear(v) for v in (0, 5, 10)] == [100, 150, 200]
    log = Scale(1, 100, 0, 200, log=True)
    assert [log(v) for v in (1, 10, 100)] == pytest.approx([0, 100, 200])
    assert log(0) == 0
    assert linear(math.inf) == 200
    assert linear(-math.inf) == 100


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-0.3, 0.7), (1e-7, 3e-7), (0, 123456), (-1e9, 1e9), (0.1, 0.4)]
)
def test_ticks_are_round_inside_and_few(low: float, high: float) -> None:
    ticks = round_ticks(low, high)
    assert 3 <= len(ticks) <= 8
    step = ticks[1] - ticks[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - good) for good in (1, 2, 5, 10)) < 1e-6
    assert all(low - 1e-9 * step <= t <= high + 1e-9 * step for t in ticks)
    assert len(set(tick_labels(ticks))) == len(ticks)


def test_log_ticks() -> None:
    assert Scale(1, 36, 0, 1, log=True).ticks() == [1, 2, 5, 10, 20]
    assert Scale(1, 1e8, 0, 1, log=True).ticks()[:3] == [1, 10, 100]


def test_span_of_odd_values() -> None:
    assert span([]) == (0.0, 1.0)
    assert span([math.nan, math.inf]) == (0.0, 1.0)
    assert span([2.0, 2.0]) == (1.0, 3.0)
    assert span([0.0]) == (-0.5, 0.5)
    low, high = span([1.0, 100.0], log=True)
    assert 0 < low < 1 < 100 < high


def test_direct_labels_keep_their_distance_and_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        wanted = sorted(rng.uniform(0, 300, 8))
        places = spread(wanted, 16, 0, 300)
        assert all(b - a >= 16 - 1e-9 for a, b in zip(places, places[1:], strict=False))
        assert min(places) >= -1e-9
        assert max(places) <= 300 + 1e-9
    assert spread([10, 100], 16, 0, 300) == [10, 100]


@pytest.mark.parametrize("width", [340, 1040])
def test_curve_shows_everything_it_is_given(parse: Parse, width: int) -> None:
    root = parse(gallery_data.curve().to_svg(width))
    texts = _texts(root)
    for words in ("this circuit", "searched nulls, n = 20", "chosen: 9", "asked for: [0.8, 1.2]"):
        assert words in texts
    classes = {node.attrib.get("class", "").split()[0] for node in root.iter() if node.get("class")}
    assert {"null", "series", "interval", "target", "chosen"} <= classes
    lines = [p for p in root.iter(f"{SVG}path") if p.get("class", "").startswith("series")]
    dashes = {p.get("stroke-dasharray") for p in lines}
    assert len(dashes) == 2, "lines differ by dash as well as by color"
    assert float(root.attrib["width"]) <= width


def test_curve_places_values_where_they_belong(parse: Parse) -> None:
    view = _curve([0.0, 1.0, 0.5])
    circles = [c for c in parse(view.to_svg()).iter(f"{SVG}circle")]
    y = [float(c.attrib["cy"]) for c in circles]
    assert y[1] < y[2] < y[0]
    assert y[2] == pytest.approx((y[0] + y[1]) / 2, abs=0.02)


def test_missing_values_break_the_line(parse: Parse) -> None:
    root = parse(_curve([1.0, 2.0, math.nan, 3.0, 4.0]).to_svg())
    lines = [p for p in root.iter(f"{SVG}path") if p.get("class", "").startswith("series")]
    assert len(lines) == 2
    assert len(list(root.iter(f"{SVG}circle"))) == 4


@pytest.mark.parametrize(
    "y",
    [
        [1.0],
        [0.0, 0.0],
        [math.nan],
        [math.nan, 1.0],
        [math.inf, 1.0, -math.inf],
        [1e-12, 2e-12],
        [1e15, 2e15],
    ],
)
def test_odd_curves_are_drawn(parse: Parse, y: list[float]) -> None:
    for width in (340, 1040):
        svg = _curve(y, target=(0.8, 1.2)).to_svg(width)
        parse(svg)
        assert not re.search(r'[ "M](nan|inf)', svg)


def test_null_band_leaves_out_what_is_not_finite() -> None:
    null = NullBand([1, 2, 3], [0, math.nan, 0], [1, 1, math.inf], n=20)
    assert null.edges == [(1.0, 0.0, 1.0)]
    view = Curve((Series("a", [1], [1.0]),), "x", "y", null=NullBand([1], [math.nan], [1], n=3))
    assert "nan" not in view.to_svg()


def test_curve_table() -> None:
    table = gallery_data.curve().table()
    assert table.columns[0] == "series"
    assert len(table.rows) == 30
    assert table.rows[0][:2] == ["this circuit", 1]
    assert table.rows[-1][0] == "searched nulls (n = 20)"


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: Series("a", [1, 2], [1.0]), ShapeError, "'x': 2, 'y': 1"),
        (lambda: Series("a", [], []), ShapeError, "lengths of at least 1"),
        (lambda: Series("a", [1], [1.0], low=[0.5]), ShapeError, "give low and high"),
        (lambda: NullBand([1], [1, 2], [1], n=2), ShapeError, "'low': 2"),
        (lambda: Curve((), "x", "y"), ShapeError, "at least one series"),
        (lambda: _curve([1.0], chosen=math.nan), ConfigError, "chosen is nan"),
        (lambda: _curve([1.0], target=(1.2, 0.8)), ConfigError, r"target is \(1\.2, 0\.8\)"),
        (lambda: _curve([1.0], y_range=(0, math.inf)), ConfigError, "y_range"),
        (
            lambda: Curve((Series("a", [0, 1], [1, 2]),), "x", "y", log_x=True),
            ConfigError,
            "smallest is 0",
        ),
    ],
)
def test_bad_curves_are_refused(
    build: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        build()


@pytest.mark.parametrize(("count", "points"), [(1, 1), (99, 99), (100, 0), (640, 0)])
def test_points_below_a_hundred_then_a_density(parse: Parse, count: int, points: int) -> None:
    values = np.random.default_rng(0).normal(size=count)
    root = parse(Distribution((Sample("a", values),), 0.0, "x").to_svg())
    circles = [c for c in root.iter(f"{SVG}circle") if "point" in c.attrib["class"]]
    curves = [p for p in root.iter(f"{SVG}path") if "density" in p.get("class", "")]
    assert len(circles) == points
    assert len(curves) == (0 if points else 1)


@pytest.mark.parametrize("width", [340, 1040])
def test_the_baseline_is_always_there(parse: Parse, width: int) -> None:
    assert "corrupt prompt" in _texts(parse(gallery_data.operation().to_svg(width)))
    assert "no change: 0" in _texts(parse(gallery_data.drift().to_svg(width)))


def test_density_integrates_to_one_and_peaks_where_the_values_are() -> None:
    values = np.random.default_rng(1).normal(2.0, 0.5, 4000)
    grid = np.linspace(-1, 5, 601)
    heights = density(values, grid)
    assert float(np.sum(heights) * (grid[1] - grid[0])) == pytest.approx(1.0, abs=1e-3)
    assert grid[int(np.argmax(heights))] == pytest.approx(2.0, abs=0.15)
    # A normal density of this width peaks at 0.798; the kernel smooths it a little.
    assert float(heights.max()) == pytest.approx(0.78, abs=0.06)


def test_a_swarm_does_not_overlap_where_there_is_room() -> None:
    places = sorted(np.random.default_rng(2).normal(0, 20, 60))
    shifts, fits = swarm(places, 6.5, most=1e9)
    assert fits
    points = np.stack([places, shifts], axis=1)
    distance = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1))
    assert distance[~np.eye(60, dtype=bool)].min() >= 6.5 - 1e-3
    assert swarm([0.0, 0.0, 0.0], 6, most=1)[1] is False


def test_distribution_counts_what_it_leaves_out() -> None:
    view = Distribution((Sample("a", [1.0, math.nan, math.inf, 3.0]),), 0.0, "x")
    assert view.table().rows[0][:4] == ["a", 2, 2, 2.0]
    assert "nan" not in view.to_svg()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Distribution((), 0.0, "x"), "at least one sample"),
        (lambda: Distribution((Sample("a", []),), 0.0, "x"), "0 values, none of them finite"),
        (lambda: Distribution((Sample("a", [1.0]),), math.nan, "x"), "baseline is nan"),
        (lambda: Distribution((Sample("a", [1.0]),), Sample("b", [math.nan]), "x"), "'b' has 1"),
    ],
)
def test_bad_distributions_are_refused(build: Callable[[], object], words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        build()
