"""What happens at a site that a codec is attached to: latents and error are read, or written.

The value ``x`` of the site is ``decode(f) + bypass + e``. Changes are made in the order given: one
of the site itself changes ``x``, and the codec reads it anew; one of the latents adds
``decode(new) - decode(old)`` where they differ and keeps ``e``; one of the error puts
``decode(f) + bypass + new`` where it differs and keeps ``f``. Everything else keeps its bits.

For gradients, latents and error are two summands of ``x`` (Marks et al., 2024, arXiv 2403.19647):
the slope at ``f`` is what ``x`` hands back through the decoder, that at ``e`` what it hands back as
it is, and what lies before the site gets the model's own gradient.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from microtome.errors import HookError
from microtome.tracing.attachments import Attachment
from microtome.tracing.layouts import Plain
from microtome.tracing.vocabulary import codec_of, is_error

if TYPE_CHECKING:
    from microtome.tracing.call import Call, Point
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.positions import Positions


@dataclass(eq=False)
class State:
    """What a codec holds at its sites in one pass.

    Attributes:
        old: Latents that the target's value stands for ``[batch, pos, d_sae]``.
        latents: Latents with what was written to them since.
        past: What passes by the latents ``[batch, pos, d_out]``, or None.
        seen: The target's value that latents and error belong to.
        error: The error, shaped like that value, where it is wanted.
        node: The latents as they were captured, where they are differentiated.
    """

    old: torch.Tensor
    latents: torch.Tensor
    past: torch.Tensor | None
    seen: torch.Tensor | None = None
    error: torch.Tensor | None = None
    node: torch.Tensor | None = None


@dataclass(eq=False)
class Use:
    """What is wanted of one attached codec.

    Attributes:
        attachment: The codec and its sites.
        latents: Its latents, with the changes and captures asked for.
        error: Its error, likewise.
        grad: Whether what is captured has to lie on the way to the logits.
    """

    attachment: Attachment
    latents: Point
    error: Point
    grad: bool

    @property
    def wants_error(self) -> bool:
        """Whether the error is read or written."""
        return bool(self.error.interventions or self.error.captures)

    @property
    def writes(self) -> bool:
        """Whether another tensor takes the place of the target's value."""
        changed = bool(self.latents.interventions or self.error.interventions)
        return changed or (self.grad and bool(self.latents.captures or self.error.captures))

    def depart(self, call: Call, value: torch.Tensor, positions: Positions) -> None:
        """Encode what a transcoder reads, and change its latents; its target is passed later."""
        state = self._encoded(value)
        if self.writes or self.wants_error:
            call.codecs[self.latents.name] = state
        for change in self.latents.interventions:
            self._write_latents(state, change, positions)
        self._keep_latents(call, state, positions)

    def arrive(self, call: Call, value: torch.Tensor) -> torch.Tensor:
        """Add what a transcoder's changed latents change of its target's value.

        Raises:
            HookError: If the source was not passed before in this pass.
        """
        state = call.codecs.get(self.latents.name)
        if state is None:
            raise HookError(
                f"{self.attachment.to} was passed without {self.attachment.at} before it, so "
                f"{self.attachment.name} has no latents for it in this pass."
            )
        self._look(state, value)
        return self.settled(state, value, call.grad)

    def read(self, call: Call, value: torch.Tensor) -> State:
        """Return the state that belongs to the target's value as it is now."""
        name = self.latents.name
        state = call.codecs.get(name)
        if state is not None and state.seen is value:
            return state
        if state is None or not self.attachment.two_sites:
            state = call.codecs[name] = self._encoded(value)
        self._look(state, value)
        return state

    def write(
        self, call: Call, change: Intervention, value: torch.Tensor, positions: Positions
    ) -> torch.Tensor:
        """Change latents or error; return the target's value, still without changed latents."""
        state = self.read(call, value)
        if not is_error(change.site.name):
            self._write_latents(state, change, positions)
            return value
        value = self.settled(state, value, call.grad)
        old = self._error(state, value)
        new = change.on(old, self.error.axes, positions, self.error.name)
        found, where = value, (new != old).flatten(2).any(-1)
        if bool(where.any()):
            rows = where.nonzero(as_tuple=True)
            whole = self._decoded(state.old[rows]) + new[rows].flatten(1)
            if state.past is not None:
                whole = whole + state.past[rows]
            found = value.index_put(rows, whole.reshape(value[rows].shape).to(value.dtype))
        if call.grad:
            found = carried(found, self._decoded(state.old), state.past, new)
        state.error, state.seen = new, found
        return found

    def settled(self, state: State, value: torch.Tensor, grad: bool) -> torch.Tensor:
        """Return the target's value with what was written to the latents so far."""
        if state.latents is state.old:
            return value
        found, where = value, (state.latents != state.old).any(-1)
        if bool(where.any()):
            rows = where.nonzero(as_tuple=True)
            picked = value[rows]
            change = self._decoded(state.latents[rows]) - self._decoded(state.old[rows])
            moved = picked + change.reshape(picked.shape)
            found = value.index_put(rows, moved.to(value.dtype))
        if grad:
            found = carried(found, value, self._decoded(state.latents), -self._decoded(state.old))
        state.old, state.seen = state.latents, found
        return found

    def finish(self, call: Call, value: torch.Tensor, positions: Positions) -> torch.Tensor:
        """Capture what is wanted, and return the value to go on with."""
        call.passed[self.error.name] += 1
        if self.attachment.two_sites and not self.wants_error and not self.grad:
            return value
        state = self.read(call, value)
        if not self.attachment.two_sites:
            self._keep_latents(call, state, positions)
        captures = self.error.captures
        error = self._error(state, value) if captures else None
        if not call.grad or (state.node is None and error is None):
            self._keep(call, self.error, error, positions)
            return value
        rest = [value] if state.node is None else [value, -self._decoded(state.old)]
        if error is not None:
            error = carried(error, *rest)
            self._keep(call, self.error, error, positions)
            rest = [error]
        if state.node is not None:
            rest.append(self._decoded(state.node))
        return carried(value, *rest)

    def _encoded(self, value: torch.Tensor) -> State:
        latents = self.attachment.encode(value)
        return State(latents, latents, self.attachment.bypass(value))

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        return self.attachment.decode(latents)

    def _look(self, state: State, value: torch.Tensor) -> None:
        """Let a state belong to a value; where the error is wanted it is what is left over."""
        state.seen, state.error = value, None
        if self.wants_error:
            self._error(state, value)

    def _error(self, state: State, value: torch.Tensor) -> torch.Tensor:
        if state.error is None:
            found = value.flatten(2) - self._decoded(state.old)
            found = found if state.past is None else found - state.past
            state.error = found.reshape(value.shape)
        return state.error

    def _write_latents(self, state: State, change: Intervention, positions: Positions) -> None:
        axes, name = self.latents.axes, self.latents.name
        state.latents = change.on(state.latents, axes, positions, name)

    def _keep_latents(self, call: Call, state: State, positions: Positions) -> None:
        call.passed[self.latents.name] += 1
        if self.latents.captures:
            shown = state.latents
            if call.grad:
                # latents that a change set to constants begin the graph
                fresh = shown.view_as(shown) if shown.requires_grad else shown.detach().clone()
                shown = state.node = fresh.requires_grad_()
            self._keep(call, self.latents, shown, positions)

    @staticmethod
    def _keep(call: Call, point: Point, value: torch.Tensor | None, positions: Positions) -> None:
        if value is not None:
            for site in point.captures:
                call.keep(point, site, value, Plain(value.ndim), positions)


def spliced(call: Call, point: Point, value: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Pass a value through the changes of its site and of the codecs there, in order.

    Args:
        call: The forward pass.
        point: The site.
        value: Its value ``[batch, pos, ...]``.
        positions: Where the rows' tokens lie in it.

    Returns:
        The value to go on with; the same tensor where nothing changed.
    """
    for use in point.targets:
        if use.attachment.two_sites:
            value = use.arrive(call, value)
    pending: Use | None = None
    for change in point.interventions:
        use_here = _use_of(change, point.targets)
        if pending is not None and pending is not use_here:
            value = pending.settled(call.codecs[pending.latents.name], value, call.grad)
        pending = use_here
        if use_here is None:
            value = change.on(value, point.axes, positions, point.name)
        else:
            value = use_here.write(call, change, value, positions)
    if pending is not None:
        value = pending.settled(call.codecs[pending.latents.name], value, call.grad)
    for use in point.targets:
        before, value = value, use.finish(call, value, positions)
        for state in call.codecs.values():
            if state.seen is before:
                state.seen = value
    for use in point.targets:
        # latents are wide, and nothing behind this site needs them
        call.codecs.pop(use.latents.name, None)
    return value


def _use_of(change: Intervention, uses: Iterable[Use]) -> Use | None:
    """Return the codec whose latents or error a change is made to, None for the site itself."""
    name = codec_of(change.site.name)
    return next((use for use in uses if use.attachment.name == name), None)


class _Carried(torch.autograd.Function):
    """A value with the gradient of a sum of terms: what it is stays bit for bit as it was."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, *terms: torch.Tensor) -> torch.Tensor:
        ctx.like = [(term.shape, term.dtype) for term in terms]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (None, *(slopes[0].reshape(shape).to(dtype) for shape, dtype in ctx.like))


def carried(value: torch.Tensor, *terms: torch.Tensor | None) -> torch.Tensor:
    """Return a copy of a value through which the gradient goes to each of some terms."""
    found: torch.Tensor = _Carried.apply(
        value.detach(), *(term for term in terms if term is not None)
    )  # type: ignore[no-untyped-call]
    return found
