"""A circuit of changing size: a slider that moves along its curve, one drawing for all sizes.

Example::

    CircuitSlider(diagram, (Stage(4, nodes, edges, 0.41), Stage(9, more, all_edges, 0.93)),
                  curve, chosen=1)

The diagram holds everything that is shown at any size, so that nothing moves when the size changes;
each stage says what of it is there. Without a script, in print and in notebooks, the chosen stage
is shown and the slider is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from microtome.errors import ShapeError, UnknownNameError
from microtome.views import numbers
from microtome.views.circuit import CROWDED, CircuitDiagram, Edge
from microtome.views.circuit_drawing import CircuitDrawing
from microtome.views.curve import Curve
from microtome.views.curve_drawing import CurveDrawing
from microtome.views.markup import Markup, join, tag
from microtome.views.table import Table
from microtome.views.view import NARROW, WIDE, View, join_variants

BESIDE = 640
"""Width of a drawing that leaves room for the curve beside it, in pixels."""


@dataclass(frozen=True, eq=False)
class Stage:
    """The circuit at one size.

    Attributes:
        size: Number of its parts.
        nodes: Names of the nodes that are shown.
        edges: The edges that are shown.
        value: The curve's value, or NaN.
        low: Lower end of its interval, or NaN.
        high: Upper end, or NaN.
    """

    size: int
    nodes: frozenset[str]
    edges: frozenset[Edge]
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, eq=False)
class CircuitSlider(View):
    """A diagram with a slider over stages, and the curve that they lie on.

    Attributes:
        diagram: Everything that is shown at some stage.
        stages: The stages, by size.
        curve: The curve over sizes, or None.
        chosen: Number of the stage that is shown first.
        unit: What is counted.
        measure: What the stages' values are.

    Raises:
        ShapeError: There is no stage, the chosen one does not exist, or sizes do not grow.
        UnknownNameError: A stage shows a node or edge that the diagram does not have.
    """

    diagram: CircuitDiagram
    stages: Sequence[Stage]
    curve: Curve | None = None
    chosen: int = 0
    unit: str = "edges"
    measure: str = "faithfulness"

    def __post_init__(self) -> None:
        """Check the stages against the diagram."""
        if not 0 <= self.chosen < len(self.stages):
            raise ShapeError(f"stage {self.chosen} is chosen of {len(self.stages)}")
        sizes = [stage.size for stage in self.stages]
        if any(b <= a for a, b in zip(sizes, sizes[1:], strict=False)):
            raise ShapeError(f"sizes are {sizes}; give stages of growing size")
        nodes = {node.name for node in self.diagram.nodes}
        edges = set(self.diagram.edges)
        for stage in self.stages:
            if unknown := sorted(stage.nodes - nodes):
                raise UnknownNameError(f"stage {stage.size} shows the unknown node {unknown[0]!r}")
            if stage.edges - edges:
                raise UnknownNameError(f"stage {stage.size} shows an edge outside the diagram")

    def picture(self) -> Markup:
        """Return slider, sentence, curve and drawing; what is not chosen is hidden."""
        last = len(self.stages) - 1
        slider = tag(
            "input",
            type="range",
            min=0,
            max=last,
            step=1,
            value=self.chosen,
            aria_label=f"size of the circuit in {self.unit}",
        )
        control = tag("label", "Size", slider, class_="mt-slider-control", hidden=True)
        said = join(
            tag("span", self._sentence(stage), **self._shown([number]))
            for number, stage in enumerate(self.stages)
        )
        curve = tag("div", self._curve(), class_="mt-slider-curve") if self.curve else None
        # A wide drawing leaves no room beside it: the curve then stands above, near the slider.
        order = (curve, self._drawing()) if self._crowded else (self._drawing(), curve)
        parts = tag("div", *order, class_="mt-slider-parts")
        now = tag("p", said, class_="mt-slider-now", aria_live="polite")
        return tag("div", control, now, parts, class_="mt-slider", data_slider=True)

    def _sentence(self, stage: Stage) -> str:
        text = f"{numbers.count(stage.size)} {self.unit}"
        if math.isfinite(stage.value):
            ends = math.isfinite(stage.low) and math.isfinite(stage.high)
            shown = (
                numbers.interval(stage.value, stage.low, stage.high)
                if ends
                else numbers.number(stage.value)
            )
            text += f": {self.measure} {shown}"
        return text

    def _shown(self, steps: Iterable[int]) -> dict[str, str]:
        """Attributes of something that is shown at some steps only."""
        steps = list(steps)
        hidden = {} if self.chosen in steps else {"class_": "off"}
        return {"data_steps": " ".join(str(step) for step in steps), **hidden}

    def _stages(self) -> Mapping[str | Edge, Mapping[str, str]]:
        found: dict[str | Edge, Mapping[str, str]] = {}
        parts: list[str | Edge] = [node.name for node in self.diagram.nodes]
        for part in (*parts, *self.diagram.edges):
            steps = [
                number
                for number, stage in enumerate(self.stages)
                if part in (stage.nodes if isinstance(part, str) else stage.edges)
            ]
            if len(steps) < len(self.stages):
                found[part] = self._shown(steps)
        return found

    @property
    def _crowded(self) -> bool:
        return len(self.diagram.drawn) > CROWDED

    def _drawing(self) -> Markup:
        stages = self._stages()
        width = WIDE if self._crowded or not self.curve else BESIDE
        wide = CircuitDrawing(self.diagram, width, stages)
        if self._crowded:
            return tag("div", wide.draw(), class_="mt-scroll")
        return join_variants(wide.draw(), CircuitDrawing(self.diagram, NARROW, stages).draw())

    def _curve(self) -> Markup:
        return tag("div", _SteppedCurve(self, NARROW).draw(), class_="mt-scroll")

    def table(self) -> Table:
        """Return one row for each stage."""
        rows = [[s.size, s.value, s.low, s.high, len(s.nodes)] for s in self.stages]
        return Table((self.unit, self.measure, "low", "high", "nodes shown"), rows)


class _SteppedCurve(CurveDrawing):
    """The curve with a thin vertical for every stage, one of which is shown."""

    def __init__(self, slider: CircuitSlider, width: int) -> None:
        if slider.curve is None:
            raise ShapeError("there is no curve to draw")
        super().__init__(slider.curve, width)
        self.slider = slider

    def _chosen(self) -> Markup:
        return join(
            tag("g", self.vertical(stage.size), **self.slider._shown([number]))
            for number, stage in enumerate(self.slider.stages)
        )
