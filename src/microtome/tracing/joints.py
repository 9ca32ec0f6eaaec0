"""What happens in one pass at the sites of a codec that reads or writes several of them.

Latents are known as soon as the last of the sites they read is passed; of a crosscoder that is its
last source, of a cross-layer transcoder the one source that each of its latents reads.

* A change of latents adds ``decode(new) - decode(old)`` at every target from there on: at a later
  one before the changes of that site itself, at the very site where they become known behind them.
  What was passed before stays as it was.
* The error of a target is what all latents that write there leave over. A change of it puts the sum
  of what they stand for, what passes by them, and the new error, behind the site's own changes. At
  a target that lies before the latents are known, the error can be read, not written.
* Everything else keeps its bits, and an unchanged latent changes nothing.

For gradients, the latents that write a target and its error are summands of its value: the slope at
latents is what all their targets from there on hand back through the decoder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from microtome.errors import HookError
from microtome.tracing.attachments import Attachment
from microtome.tracing.layouts import Plain
from microtome.tracing.sites import Site
from microtome.tracing.splicing import carried

if TYPE_CHECKING:
    from microtome.tracing.call import Call, Point
    from microtome.tracing.positions import Positions


@dataclass(eq=False)
class Held:
    """What one part of a codec holds in one pass.

    Attributes:
        old: Latents as they were encoded ``[batch, pos, d_sae]``.
        new: Latents with what was written to them.
        past: What passes by them ``[batch, pos, d_out]``, or None.
        node: The latents as they were captured, where they are differentiated.
        decoded: What latents stand for at all targets, by which latents.
    """

    old: torch.Tensor
    new: torch.Tensor
    past: torch.Tensor | None
    node: torch.Tensor | None = None
    decoded: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class JointState:
    """What a codec of several sites holds in one pass.

    Attributes:
        read: Values of the sites that are read, by site.
        held: What each part holds whose latents are known, by the site of its latents.
        early: Values of targets that were passed before latents were known, by site.
    """

    read: dict[Site, torch.Tensor] = field(default_factory=dict)
    held: dict[Site, Held] = field(default_factory=dict)
    early: dict[Site, torch.Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class Joint:
    """What is wanted of a codec of several sites.

    Attributes:
        name: Its name.
        parts: Its parts.
        latents: What is wanted of latents, by their site.
        errors: What is wanted of errors, by the site of the value.
        grad: Whether what is captured has to lie on the way to the logits.
    """

    name: str
    parts: tuple[Attachment, ...]
    latents: dict[Site, Point]
    errors: dict[Site, Point]
    grad: bool

    def sites(self) -> tuple[Site, ...]:
        """Return the sites that have to serve it."""
        found = [site for part in self._needed() for site in part.reads]
        found += [site for part in self.parts for site in part.writes if self._touches(part, site)]
        return tuple(dict.fromkeys((*found, *(s for s in self.errors if self._wants(s)))))

    def changes(self, site: Site) -> bool:
        """Return whether another tensor takes the place of a site's value."""
        touched = any(site in p.writes and self._touches(p, site) for p in self.parts)
        return touched or self._works_on(site)

    def changes_last(self, site: Site) -> bool:
        """Return whether it changes the value behind the changes of the site itself."""
        known = any(
            p.at == site and site in p.writes and self._touches(p, site) for p in self.parts
        )
        nodes = self.grad and any(site in p.writes and self._touches(p, site) for p in self.parts)
        return known or nodes or self._works_on(site)

    def arrive(self, call: Call, site: Site, value: torch.Tensor) -> torch.Tensor:
        """Add what latents that were known before have changed of a target's value."""
        state = call.joints.setdefault(self.name, JointState())
        for part in self._writers(site):
            if part.latents in state.held and part.at != site:
                value = self._settled(call, state, part, site, value)
        return value

    def work(
        self, call: Call, site: Site, value: torch.Tensor, positions: Positions
    ) -> torch.Tensor:
        """Read a site's value, encode what can be, and change and capture what is wanted there."""
        state = call.joints.setdefault(self.name, JointState())
        state.read[site] = value
        for part in self._needed():
            if part.at == site:
                self._encode(call, state, part, positions)
        for part in self._writers(site):
            if part.at == site and part.latents in state.held:
                value = self._settled(call, state, part, site, value)
        writers = self._writers(site)
        if all(part.latents in state.held for part in writers):
            value = self._finish(call, state, site, value, positions)
        elif self._wants(site):
            state.early[site] = value
        for passed in [s for s in state.early if self._known(state, s)]:
            error = self._error(state, passed, state.early.pop(passed))
            self._keep(call, self.errors[passed], error, positions)
        return value

    def _needed(self) -> list[Attachment]:
        """Return the parts whose latents have to be known."""
        return [
            part
            for part in self.parts
            if self._asked(part) or any(self._wants(site) for site in part.writes)
        ]

    def _writers(self, site: Site) -> list[Attachment]:
        needed = self._needed()
        return [part for part in needed if site in part.writes]

    def _asked(self, part: Attachment) -> bool:
        point = self.latents.get(part.latents)
        return point is not None and bool(point.interventions or point.captures)

    def _touches(self, part: Attachment, site: Site) -> bool:
        """Return whether latents are written, or differentiated, at a target."""
        point = self.latents.get(part.latents)
        if point is None or not part.in_time(site):
            return False
        return bool(point.interventions or (self.grad and point.captures))

    def _wants(self, site: Site) -> bool:
        point = self.errors.get(site)
        return point is not None and bool(point.interventions or point.captures)

    def _works_on(self, site: Site) -> bool:
        point = self.errors.get(site)
        if point is None:
            return False
        return bool(point.interventions or (self.grad and point.captures))

    def _known(self, state: JointState, site: Site) -> bool:
        return all(part.latents in state.held for part in self._writers(site))

    def _encode(self, call: Call, state: JointState, part: Attachment, places: Positions) -> None:
        missing = [site for site in part.reads if site not in state.read]
        if missing:
            raise HookError(
                f"{part.at} was passed without {missing[0]} before it, so {self.name} has no "
                "latents in this pass."
            )
        value = torch.cat([state.read[site].flatten(2) for site in part.reads], -1)
        latents = part.encode(value)
        held = state.held[part.latents] = Held(latents, latents, part.bypass(value))
        point = self.latents.get(part.latents)
        if point is None:
            return
        for change in point.interventions:
            held.new = change.on(held.new, point.axes, places, point.name)
        call.passed[point.name] += 1
        if point.captures:
            shown = held.new
            if call.grad:
                shown = held.node = shown.view_as(shown)
            self._keep(call, point, shown, places, count=False)

    def _settled(
        self, call: Call, state: JointState, part: Attachment, site: Site, value: torch.Tensor
    ) -> torch.Tensor:
        """Return a target's value with what was written to the latents of one part."""
        held = state.held[part.latents]
        if held.new is held.old:
            return value
        found, where = value, (held.new != held.old).any(-1)
        new, old = (self._stands_for(part, held, which, site) for which in ("new", "old"))
        if bool(where.any()):
            rows = where.nonzero(as_tuple=True)
            picked = value[rows]
            moved = picked + (new[rows] - old[rows]).reshape(picked.shape)
            found = value.index_put(rows, moved.to(value.dtype))
        return carried(found, value, new, -old) if call.grad else found

    def _finish(
        self,
        call: Call,
        state: JointState,
        site: Site,
        value: torch.Tensor,
        positions: Positions,
    ) -> torch.Tensor:
        """Change and capture a target's error; return the value to go on with."""
        point = self.errors.get(site)
        error = None
        if point is not None and self._wants(site):
            error = self._error(state, site, value)
            for change in point.interventions:
                old, error = error, change.on(error, point.axes, positions, point.name)
                value = self._put(call, state, site, value, old, error)
        nodes = [
            (part, held)
            for part in self._writers(site)
            if (held := state.held[part.latents]).node is not None
        ]
        shown = error if point is not None and point.captures else None
        if call.grad and (nodes or shown is not None):
            rest = [value, *(-self._stands_for(p, h, "new", site) for p, h in nodes)]
            if shown is not None:
                shown = carried(shown, *rest)
                rest = [shown]
            rest += [self._stands_for(p, h, "node", site) for p, h in nodes]
            value = carried(value, *rest)
        if point is not None and self._wants(site):
            self._keep(call, point, shown, positions)
        return value

    def _put(
        self,
        call: Call,
        state: JointState,
        site: Site,
        value: torch.Tensor,
        old: torch.Tensor,
        new: torch.Tensor,
    ) -> torch.Tensor:
        """Return a target's value with another error."""
        found, where = value, (new != old).flatten(2).any(-1)
        terms = self._terms(state, site)
        if bool(where.any()):
            rows = where.nonzero(as_tuple=True)
            whole = new[rows].flatten(1)
            for term in terms:
                whole = whole + term[rows]
            found = value.index_put(rows, whole.reshape(value[rows].shape).to(value.dtype))
        return carried(found, *terms, new) if call.grad else found

    def _error(self, state: JointState, site: Site, value: torch.Tensor) -> torch.Tensor:
        """Return what the latents that write a target leave over of its value."""
        found = value.flatten(2)
        early = site in state.read and any(not p.in_time(site) for p in self._writers(site))
        for term in self._terms(state, site, "old" if early else "new"):
            found = found - term
        return found.reshape(value.shape)

    def _terms(self, state: JointState, site: Site, which: str = "new") -> list[torch.Tensor]:
        """Return what stands for a target's value beside its error, part by part."""
        found = []
        for part in self._writers(site):
            held = state.held[part.latents]
            found.append(self._stands_for(part, held, which, site))
            if held.past is not None:
                found.append(held.past[..., part.part_of(site)])
        return found

    @staticmethod
    def _stands_for(part: Attachment, held: Held, which: str, site: Site) -> torch.Tensor:
        """Return what old, new or captured latents of a part stand for at a target."""
        if which not in held.decoded:
            held.decoded[which] = part.decode(getattr(held, which))
        return held.decoded[which][..., part.part_of(site)]

    @staticmethod
    def _keep(
        call: Call,
        point: Point,
        value: torch.Tensor | None,
        positions: Positions,
        *,
        count: bool = True,
    ) -> None:
        call.passed[point.name] += int(count)
        if value is not None:
            for site in point.captures:
                call.keep(point, site, value, Plain(value.ndim), positions)


def arrived(call: Call, joints: Iterable[Joint], site: Site, value: torch.Tensor) -> torch.Tensor:
    """Return a site's value with what codecs of several sites have changed of it before."""
    for joint in joints:
        value = joint.arrive(call, site, value)
    return value
