"""One forward pass under observation: positions, what was captured, and which sites were passed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch

from microtome.errors import HookError
from microtome.tracing.interventions import Intervention, Selection
from microtome.tracing.layouts import Layout
from microtome.tracing.positions import Positions
from microtome.tracing.sites import BLOCK_SITES, MODEL_SITES, Site


@dataclass
class Point:
    """Everything that is wanted at one site of one block.

    Attributes:
        name: Full name, ``blocks.3.attn.z``.
        key: Name within the block or of the model.
        layer: The block, None outside.
        interventions: What changes the value, in order.
        captures: Sites to keep the value for (with their selectors).
    """

    name: str
    key: str
    layer: int | None
    interventions: list[Intervention] = field(default_factory=list)
    captures: list[Site] = field(default_factory=list)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of the value."""
        return BLOCK_SITES.get(self.key) or MODEL_SITES.get(self.key) or ()


@dataclass
class Captured:
    """A captured tensor: the model's own tensor and how to see the site's value in it."""

    raw: torch.Tensor
    layout: Layout | None
    batch: int

    def value(self) -> torch.Tensor:
        """Return the site's value."""
        return self.raw if self.layout is None else self.layout.view(self.raw, self.batch)


@dataclass
class Call:
    """One forward pass.

    Attributes:
        positions: Where the rows' tokens lie.
        to: Device for captured values, None for where they are.
        dtype: Type for captured values, None for the model's.
        grad: Whether captured tensors stay in the graph.
        captured: What was captured, by text form of the site.
        passed: How often each site was passed.
        scratch: Values kept for a later seam of the same pass.
    """

    positions: Positions
    to: torch.device | None = None
    dtype: torch.dtype | None = None
    grad: bool = False
    captured: dict[str, Captured] = field(default_factory=dict)
    passed: Counter[str] = field(default_factory=Counter)
    scratch: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)

    def through(self, point: Point, raw: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Pass a model's tensor through a site: interventions in order, then captures."""
        self.passed[point.name] += 1
        if point.interventions:
            positions = self._positions(point, raw, layout)
            value = before = layout.view(raw, self.positions.batch)
            for intervention in point.interventions:
                value = intervention.on(value, point.axes, positions, point.name)
            if value is not before:
                raw = layout.back(value, raw)
        for site in point.captures:
            self._keep(point, site, raw, layout)
        return raw

    def _positions(self, point: Point, raw: torch.Tensor, layout: Layout) -> Positions:
        """Return positions as this tensor has them: keys and values reach back into the cache."""
        if point.key in ("attn.k", "attn.v") and self.positions.offset:
            return self.positions.keys(layout.view(raw, self.positions.batch).shape[1])
        return self.positions

    def _keep(self, point: Point, site: Site, raw: torch.Tensor, layout: Layout) -> None:
        label = str(site)
        batch = self.positions.batch
        plain = site == site.whole()
        if plain and self.to is None and self.dtype is None:
            kept = Captured(raw if self.grad else raw.detach(), layout, batch)
        else:
            value = layout.view(raw, batch)
            if not plain:
                value = selected(value, site, point, self._positions(point, raw, layout))
            if not self.grad:
                value = value.detach()
            kept = Captured(value.to(device=self.to, dtype=self.dtype), None, batch)
        if label in self.captured:
            raise HookError(f"{label} was passed more than once in one forward pass.")
        self.captured[label] = kept


def selected(value: torch.Tensor, site: Site, point: Point, positions: Positions) -> torch.Tensor:
    """Return a copy of the part of a value that a site's selectors mean."""
    probe = Intervention(site, "zero")
    return Selection.of(probe, value, point.axes, positions, point.name).take(value).clone()
