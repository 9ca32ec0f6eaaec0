"""The color bar: what the colors of a figure mean, with minimum, zero and maximum."""

from __future__ import annotations

from microtome.views import numbers
from microtome.views.glyphs import mono_width, text_width
from microtome.views.markup import Markup, join, tag
from microtome.views.palette import amount_shade, shade
from microtome.views.view import svg

STEP, STEPS, THICK = 8, 21, 10
HEIGHT = 44


def color_bar(limit: float, *, signed: bool = True, title: str = "") -> tuple[Markup, float]:
    """Return the bar as an SVG group at the origin, and its width in pixels; it is 44 px high.

    Args:
        limit: Value of the end color.
        signed: From -limit over zero to limit, or from zero to limit.
        title: What is colored, with its unit.
    """
    length = STEP * STEPS
    steps = []
    for index in range(STEPS):
        share = 2 * index / (STEPS - 1) - 1 if signed else index / (STEPS - 1)
        tone = shade(share, 1.0) if signed else amount_shade(share, 1.0)
        box = {"x": index * STEP, "y": 16, "width": STEP, "height": THICK}
        steps.append(tag("rect", class_=tone.css, style=tone.style, fill=tone.hex, **box))
    frame = tag("rect", x=0, y=16, width=length, height=THICK, class_="frame", fill="none")
    ends = ["0", "", numbers.number(limit)]
    if signed:
        ends = [numbers.MINUS + numbers.number(limit), "0", "+" + numbers.number(limit)]
    anchors = zip((0, length / 2, length), ("start", "middle", "end"), ends, strict=True)
    labels = join(
        tag("text", end, x=x, y=16 + THICK + 14, text_anchor=anchor, class_="num")
        for x, anchor, end in anchors
        if end
    )
    name = tag("text", title, x=0, y=9, class_="label") if title else None
    width = max(length, text_width(title, 12), mono_width(ends[2], 11))
    return tag("g", name, join(steps), frame, labels, class_="bar"), width


def color_bar_svg(limit: float, *, signed: bool = True, title: str = "") -> Markup:
    """Return the color bar as an ``<svg>`` element of its own."""
    group, width = color_bar(limit, signed=signed, title=title)
    end = numbers.number(limit)
    label = f"color scale from {'minus ' if signed else '0 to '}{end}"
    return svg(width, HEIGHT, f"{label} to {end}" if signed else label, group)
