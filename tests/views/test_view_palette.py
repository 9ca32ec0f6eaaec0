"""Colors: zero is the paper, everything can be read."""

from __future__ import annotations

import math

import numpy as np
import pytest

from microtome.views.palette import (
    DARK,
    LIGHT,
    OKABE_ITO,
    Theme,
    amount_shade,
    category_color,
    contrast,
    mix,
    shade,
    symmetric_limit,
    variables,
)

THEMES = [LIGHT, DARK]


def test_contrast_of_black_and_white() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#777777") == 1.0


def test_mix_is_what_browsers_compute() -> None:
    # Known values of color-mix(in oklab, white, black) and of the ends.
    assert mix("#ffffff", "#000000", 0.5) == "#636363"
    assert mix("#fcfcfa", "#0072B2", 0.0) == "#fcfcfa"
    assert mix("#fcfcfa", "#0072B2", 1.0) == "#0072b2"


def test_zero_is_paper_and_the_scale_is_symmetric() -> None:
    assert shade(0.0, 1.0).css == "zero"
    assert shade(0.0, 1.0).hex == LIGHT.paper
    assert shade(0.001, 1.0).css == "zero"
    up, down = shade(0.4, 1.0), shade(-0.4, 1.0)
    assert (up.css, down.css) == ("pos", "neg")
    assert up.amount == down.amount == 40.0
    assert up.style == "--v:40%"


@pytest.mark.parametrize("value", [math.inf, 7.0, 1.0])
def test_values_beyond_the_limit_take_the_end_color(value: float) -> None:
    assert shade(value, 1.0).hex == LIGHT.positive.lower()
    assert shade(-value, 1.0).hex == LIGHT.negative.lower()


def test_absent_and_amounts() -> None:
    assert shade(math.nan, 1.0).css == "absent"
    assert shade(math.nan, 1.0).style is None
    assert amount_shade(math.nan, 1.0).css == "absent"
    assert amount_shade(0.5, 1.0).css == "amt"
    assert amount_shade(-3.0, 1.0).css == "zero"
    assert amount_shade(1.0, 1.0).hex == LIGHT.negative.lower()


def test_a_scale_of_zero_width() -> None:
    assert shade(2.0, 0.0).amount == 100.0
    assert shade(0.0, 0.0).css == "zero"


def test_symmetric_limit_ignores_what_is_not_finite() -> None:
    assert symmetric_limit([1, -3, np.nan, np.inf]) == 3.0
    assert symmetric_limit([0.0], []) == 1.0
    assert symmetric_limit([1.0], [-2.0]) == 2.0


@pytest.mark.parametrize("place", [0, 1])
def test_numbers_on_every_cell_can_be_read(place: int) -> None:
    theme = THEMES[place]
    inks = {"i": theme.ink, "k": "#000000", "w": "#ffffff"}
    for percentage in range(-100, 101):
        tone = shade(percentage / 100, 1.0)
        end = theme.positive if percentage > 0 else theme.negative
        ground = mix(theme.paper, end, abs(percentage) / 100)
        letters = tone.ink.removeprefix("ink-")
        assert contrast(inks[letters[place]], ground) >= 4.5, (percentage, ground)
        assert variables(theme)[f"--mt-on-{letters}"] == inks[letters[place]]


@pytest.mark.parametrize("theme", THEMES)
def test_text_and_marks_stand_out(theme: Theme) -> None:
    named = variables(theme)
    for ground in (named["--mt-paper"], named["--mt-wash"]):
        assert contrast(named["--mt-ink"], ground) >= 7
        assert contrast(named["--mt-soft"], ground) >= 4.5
    for name in ("gray", "pos", "neg", *(f"c{index}" for index in range(8))):
        assert contrast(named[f"--mt-{name}"], theme.paper) >= 3, name


def test_categories_are_the_eight_in_a_fixed_order() -> None:
    light = [category_color(index, LIGHT) for index in range(8)]
    assert len(set(light)) == 8
    assert light[0] == OKABE_ITO[5].lower()
    assert light[1] == OKABE_ITO[3].lower()
    assert category_color(8, LIGHT) == light[0]
