"""One forward pass under observation: positions, what was captured, and which sites were passed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from microtome.errors import HookError
from microtome.tracing.interventions import Intervention, Selection
from microtome.tracing.joints import JointState, arrived
from microtome.tracing.layouts import Layout
from microtome.tracing.positions import Positions
from microtome.tracing.sites import Site
from microtome.tracing.splicing import State, spliced
from microtome.tracing.vocabulary import axes_of

if TYPE_CHECKING:
    from microtome.tracing.joints import Joint
    from microtome.tracing.splicing import Use


@dataclass(eq=False)
class Point:
    """Everything that is wanted at one site of one block.

    Attributes:
        name: Full name, ``blocks.3.attn.z``.
        key: Name within the block or of the model.
        layer: The block, None outside.
        interventions: What changes the value, in order; those at latents and errors of codecs
            that write here included.
        captures: Sites to keep the value for (with their selectors).
        sources: Transcoders that read here and write elsewhere.
        targets: Codecs that write here, of which more is wanted than their latents.
        joints: Codecs of several sites that read or write here.
    """

    name: str
    key: str
    layer: int | None
    interventions: list[Intervention] = field(default_factory=list)
    captures: list[Site] = field(default_factory=list)
    sources: list[Use] = field(default_factory=list)
    targets: list[Use] = field(default_factory=list)
    joints: list[Joint] = field(default_factory=list)

    @property
    def site(self) -> Site:
        """The site without selectors."""
        return Site(self.key, None if self.layer is None else (self.layer,))

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of the value."""
        return axes_of(self.key)

    @property
    def writes(self) -> bool:
        """Whether another tensor takes the place of the value."""
        changed = any(joint.changes(self.site) for joint in self.joints)
        return bool(self.interventions) or changed or any(use.writes for use in self.targets)


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
        codecs: What attached codecs hold, by the name of their latents.
        joints: What codecs of several sites hold, by name.
    """

    positions: Positions
    to: torch.device | None = None
    dtype: torch.dtype | None = None
    grad: bool = False
    captured: dict[str, Captured] = field(default_factory=dict)
    passed: Counter[str] = field(default_factory=Counter)
    scratch: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    codecs: dict[str, State] = field(default_factory=dict)
    joints: dict[str, JointState] = field(default_factory=dict)

    def through(self, point: Point, raw: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Pass a model's tensor through a site: interventions in order, then captures."""
        self.passed[point.name] += 1
        positions = self._positions(point, raw, layout)
        if point.interventions or point.sources or point.targets or point.joints:
            value = before = layout.view(raw, self.positions.batch)
            value = arrived(self, point.joints, point.site, value)
            if point.targets:
                value = spliced(self, point, value, positions)
            else:
                for intervention in point.interventions:
                    value = intervention.on(value, point.axes, positions, point.name)
            for joint in point.joints:
                value = joint.work(self, point.site, value, positions)
            for use in point.sources:
                use.depart(self, value, positions)
            if value is not before:
                raw = layout.back(value, raw)
        for site in point.captures:
            self.keep(point, site, raw, layout, positions)
        return raw

    def _positions(self, point: Point, raw: torch.Tensor, layout: Layout) -> Positions:
        """Return positions as this tensor has them: keys and values reach back into the cache."""
        if point.key in ("attn.k", "attn.v") and self.positions.offset:
            return self.positions.keys(layout.view(raw, self.positions.batch).shape[1])
        return self.positions

    def keep(
        self, point: Point, site: Site, raw: torch.Tensor, layout: Layout, positions: Positions
    ) -> None:
        """Keep a site's value, or the selected part of it.

        Raises:
            HookError: If it was kept before in this pass.
        """
        label = str(site)
        batch = self.positions.batch
        plain = site == site.whole()
        if plain and self.to is None and self.dtype is None:
            kept = Captured(raw if self.grad else raw.detach(), layout, batch)
        else:
            value = layout.view(raw, batch)
            if not plain:
                value = selected(value, site, point, positions)
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
