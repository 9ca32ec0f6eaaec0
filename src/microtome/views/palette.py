"""Colors: two themes, a diverging scale, a scale of amounts, eight categories.

A value becomes a CSS class and a percentage (``Shade``); the style sheet mixes the end color of
the theme into its paper color by that percentage, so zero is the paper in light and in dark. A
plain hex color stands beside it for programs that cannot mix colors, such as an SVG editor.

The hues are blue #0072B2 and vermilion #D55E00 and the eight categories of Okabe and Ito (2008).
In the dark theme the two ends are lifted to the same distance from the paper, and a category that
would stand out less than 3 : 1 from the paper is mixed with ink until it does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import ArrayLike

RGB = tuple[float, float, float]

OKABE_ITO = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
CATEGORY_ORDER = (5, 3, 7, 1, 2, 0, 6, 4)
"""Order in which categories are given out: well apart on paper first, pale yellow last."""


@dataclass(frozen=True)
class Theme:
    """The four colors that everything else of a theme is mixed from.

    Attributes:
        paper: Background; also the color of zero.
        ink: Text.
        negative: End of the scale below zero.
        positive: End of the scale above zero.
    """

    paper: str
    ink: str
    negative: str
    positive: str


LIGHT = Theme(paper="#fcfcfa", ink="#1b1f24", negative="#0072B2", positive="#D55E00")
DARK = Theme(paper="#14171a", ink="#e6e4df", negative="#3d9ad6", positive="#e2762b")


@dataclass(frozen=True)
class Shade:
    """How one value is colored.

    Attributes:
        css: Class name: ``pos``, ``neg``, ``amt`` (an amount), ``zero`` or ``absent``.
        amount: Share of the end color in percent, 0 to 100.
        hex: The color in the light theme.
        ink: Class of the text written on it, ``ink-`` and one letter each for light and dark:
            i ink, k black, w white.
    """

    css: str
    amount: float
    hex: str
    ink: str

    @property
    def style(self) -> str | None:
        """The inline style that sets the amount, or None where there is none."""
        return f"--v:{self.amount:.3g}%" if self.css in ("pos", "neg", "amt") else None


def _channels(color: str) -> RGB:
    red, green, blue = (int(color[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return red, green, blue


def _linear(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else float(((channel + 0.055) / 1.055) ** 2.4)


def _encoded(channel: float) -> float:
    channel = min(1.0, max(0.0, channel))
    return 12.92 * channel if channel <= 0.0031308 else 1.055 * channel ** (1 / 2.4) - 0.055


def luminance(color: str) -> float:
    """Return the relative luminance of a hex color (WCAG 2.2)."""
    red, green, blue = (_linear(channel) for channel in _channels(color))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of two hex colors, 1 to 21 (WCAG 2.2)."""
    bright, dim = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def mix(paper: str, end: str, share: float) -> str:
    """Return the color that lies ``share`` of the way from paper to end in OKLab (Ottosson, 2020).

    It is what a browser computes for ``color-mix(in oklab, ...)``.
    """
    first, second = (
        _TO_LAB @ np.cbrt(_TO_LMS @ np.array([_linear(c) for c in _channels(color)]))
        for color in (paper, end)
    )
    blend = (1 - share) * first + share * second
    linear = np.linalg.solve(_TO_LMS, np.linalg.solve(_TO_LAB, blend) ** 3)
    return "#" + "".join(f"{round(255 * _encoded(float(c))):02x}" for c in linear)


def symmetric_limit(*arrays: ArrayLike) -> float:
    """Return the largest finite magnitude in some arrays, the end of their scale; 1 if none."""
    largest = 0.0
    for values in arrays:
        flat = np.abs(np.asarray(values, dtype=float)).ravel()
        finite = flat[np.isfinite(flat)]
        largest = max(largest, float(finite.max())) if finite.size else largest
    return largest or 1.0


def shade(value: float, limit: float) -> Shade:
    """Return the color of a signed value on a scale from -limit to limit.

    NaN is ``absent``; what lies beyond the limit takes the end color.
    """
    if math.isnan(value):
        return Shade("absent", 0.0, LIGHT.paper, "ink-ii")
    share = max(-1.0, min(1.0, value / limit)) if limit > 0 else float(np.sign(value))
    # Whole percentages: no eye tells them apart finer, and the page stays small.
    amount = round(100 * abs(share))
    if amount == 0:
        return Shade("zero", 0.0, LIGHT.paper, "ink-ii")
    return _shade_of("pos" if share > 0 else "neg", amount)


@cache
def _shade_of(css: str, amount: int) -> Shade:
    letters = ""
    for theme in (LIGHT, DARK):
        end = theme.positive if css == "pos" else theme.negative
        letters += _letter(theme, mix(theme.paper, end, amount / 100))
    end = LIGHT.positive if css == "pos" else LIGHT.negative
    return Shade(css, float(amount), mix(LIGHT.paper, end, amount / 100), f"ink-{letters}")


def amount_shade(value: float, limit: float) -> Shade:
    """Return the color of an amount on a scale from 0 to limit: one hue, from paper to blue.

    NaN is ``absent``; an amount below zero takes the paper color, one above the limit the end
    color.
    """
    if math.isnan(value):
        return Shade("absent", 0.0, LIGHT.paper, "ink-ii")
    cold = shade(-max(0.0, value), limit)
    return Shade("amt" if cold.css == "neg" else cold.css, cold.amount, cold.hex, cold.ink)


def _letter(theme: Theme, ground: str) -> str:
    if contrast(theme.ink, ground) >= 4.5:
        return "i"
    return "k" if contrast("#000000", ground) > contrast("#ffffff", ground) else "w"


def visible(color: str, theme: Theme, *, ratio: float = 3.0) -> str:
    """Return a color, mixed with ink just as far as it takes to reach a contrast with the paper."""
    share = 0.0
    while contrast(mixed := mix(color, theme.ink, share), theme.paper) < ratio and share < 1:
        share += 0.02
    return mixed


def category_color(index: int, theme: Theme) -> str:
    """Return the color of the category with this number in a theme; numbers repeat after eight."""
    base = OKABE_ITO[CATEGORY_ORDER[index % len(OKABE_ITO)]]
    if base == "#000000":
        return theme.ink
    # Light marks on dark paper look thinner than dark ones on light paper: they get more contrast.
    return visible(base, theme, ratio=3.0 if theme == LIGHT else 4.5)


def variables(theme: Theme) -> dict[str, str]:
    """Return the CSS custom properties of a theme, name to color."""
    shares = {"soft": 0.72, "gray": 0.45, "faint": 0.22, "line": 0.12, "wash": 0.05}
    named = {
        "paper": theme.paper,
        "ink": theme.ink,
        "neg": theme.negative,
        "pos": theme.positive,
    }
    named |= {name: mix(theme.paper, theme.ink, share) for name, share in shares.items()}
    named |= {f"c{index}": category_color(index, theme) for index in range(len(OKABE_ITO))}
    written = {"i": theme.ink, "k": "#000000", "w": "#ffffff"}
    place = 0 if theme == LIGHT else 1
    # What is written on a cell: the first letter counts in the light theme, the second in the dark.
    for letters in product("ikw", repeat=2):
        named[f"on-{''.join(letters)}"] = written[letters[place]]
    return {f"--mt-{name}": color for name, color in named.items()}
