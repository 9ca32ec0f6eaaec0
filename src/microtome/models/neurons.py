"""Finding the neurons of a block's MLP: projections, activation, gate or router."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from microtome.models import hf
from microtome.models.anatomy import MLPAnatomy, Seam
from microtome.models.probe import Call

if TYPE_CHECKING:
    from microtome.models.blocks import BlockView


def find_neurons(
    view: BlockView,
    core: Call | None,
    added: Seam,
    scale: float,
    start: int,
    reasons: dict[str, str],
) -> tuple[MLPAnatomy, torch.Tensor | None]:
    """Find the parts of the MLP whose output is added to the stream.

    Args:
        view: The block.
        core: Its attention, whose projections are left out.
        added: Where the value that is added is seen.
        scale: Its multiplier.
        start: Only calls that began at or after this time are looked at.
        reasons: Filled with why a site is absent.

    Returns:
        The MLP's anatomy and the value it receives.
    """
    branch = view.recording.only(added.path)
    raw = _before_norm(view, branch)
    inner = [c for c in view.calls if c.start >= start and not _in_attention(c, core)]
    down = next(
        (
            c
            for c in inner
            if hf.is_projection(view.part(c.path))
            and raw is not None
            and view.same(c.result, raw.result)
        ),
        None,
    )
    path = _root(view, raw)
    router = find_router(view, path)
    if router is not None and not returns_experts(view, router):
        reasons["mlp.router"] = "its router returns no weights for each token and expert"
        return _without_neurons(view, path, added, scale, None, reasons)
    if down is None or router is not None:
        return _without_neurons(view, path, added, scale, router, reasons)
    ups = [
        c
        for c in inner
        if hf.is_projection(view.part(c.path)) and c.end < down.start and c.result is not None
    ]
    received = view.recording.only(path) if path and path != down.path else None
    source = received.input if received is not None else (ups[0].input if ups else None)
    readers = [c for c in ups if view.same(c.input, source)]
    width = 0 if down.input is None else int(down.input.shape[-1])
    activation = _activation(view, readers, inner, down)
    up, gate, fused = _branches(view, readers, width, activation, down)
    if up is None:
        reasons["mlp.pre"] = "no projection of the MLP's input has the width of its neurons"
    if gate is None and fused is None:
        reasons["mlp.gate"] = "the MLP is not gated"
    same = view.same(down.result, branch.result if branch else None)
    into = Seam(path, "in") if path and received is not None else _projection_input(readers)
    mlp = MLPAnatomy(
        path=path if received is not None else None,
        input=into,
        added=added,
        scale=scale,
        up=up,
        gate=gate,
        fused=fused,
        down=down.path,
        activation=None if activation is None else activation.path,
        d_mlp=width,
        neurons_add_up=same,
    )
    return mlp, source


def _projection_input(readers: list[Call]) -> Seam | None:
    """Return the input of the up projection where it alone reads the MLP's input."""
    return Seam(readers[0].path, "in") if len(readers) == 1 else None


def _before_norm(view: BlockView, branch: Call | None) -> Call | None:
    """Return the call whose output the branch's last norm received, or the branch itself."""
    if branch is None or not view.is_norm(branch.path):
        return branch
    earlier = [c for c in view.calls if c.end < branch.start]
    return next((c for c in reversed(earlier) if view.same(c.result, branch.input)), branch)


def _in_attention(call: Call, core: Call | None) -> bool:
    return core is not None and (call.path == core.path or call.path.startswith(core.path + "."))


def _root(view: BlockView, raw: Call | None) -> str | None:
    """Return the outermost module inside the block that returns the MLP's raw output."""
    if raw is None:
        return None
    same = [
        c.path
        for c in view.calls
        if view.same(c.result, raw.result) and not view.is_norm(c.path) and c.start <= raw.start
    ]
    holders = [p for p in same if any(True for _ in view.part(p).children())]
    return min(holders, key=lambda p: p.count("."), default=None)


def find_router(view: BlockView, path: str | None) -> str | None:
    """Return the module that chooses experts inside an MLP, if there is one."""
    if path is None:
        return None
    labelled = hf.recorded_classes(view.module).get("router_logits", set())
    for call in view.calls:
        if not (call.path.startswith(path + ".") or call.path.startswith(view.path + ".")):
            continue
        name = type(view.part(call.path)).__name__
        last = call.path.rsplit(".", 1)[-1]
        if name in labelled or "router" in name.lower() or "router" in last:
            return call.path
    siblings = [n for n, _ in view.part(path).named_children()]
    if "experts" in siblings and "gate" in siblings:
        return f"{path}.gate"
    return None


def returns_experts(view: BlockView, router: str) -> bool:
    """Return whether a router's (first) result has a row of expert weights for each token."""
    call = view.recording.only(router)
    if call is None or call.result is None or not call.result.is_floating_point():
        return False
    batch, width = view.stream.shape[:2]
    return (
        call.result.ndim in (2, 3) and call.result.numel() // call.result.shape[-1] == batch * width
    )


def _without_neurons(
    view: BlockView,
    path: str | None,
    added: Seam,
    scale: float,
    router: str | None,
    reasons: dict[str, str],
) -> tuple[MLPAnatomy, torch.Tensor | None]:
    why = (
        "a mixture of experts: neurons live in experts that see only some tokens"
        if router
        else "no projection returns what the MLP adds"
    )
    for name in ("mlp.pre", "mlp.gate", "mlp.act"):
        reasons[name] = why
    call = view.recording.only(path) if path else None
    into = None if path is None else Seam(path, "in")
    mlp = MLPAnatomy(path=path, input=into, added=added, scale=scale, router=router)
    return mlp, None if call is None else call.input


def _activation(view: BlockView, readers: list[Call], inner: list[Call], down: Call) -> Call | None:
    """Return the call of the non-linearity: a module without weights fed by an up projection."""
    for call in inner:
        if call.end >= down.start or any(True for _ in view.part(call.path).parameters()):
            continue
        if call.input is None or call.result is None or view.same(call.input, call.result):
            continue
        for reader in readers:
            if reader.result is not None and call.input.numel() <= reader.result.numel():
                return call
    return None


def _branches(
    view: BlockView, readers: list[Call], width: int, activation: Call | None, down: Call
) -> tuple[str | None, str | None, str | None]:
    """Return the up projection, the gate projection and the layout of a fused one."""
    wide = [c for c in readers if c.result is not None and c.result.shape[-1] == width]
    double = [c for c in readers if c.result is not None and c.result.shape[-1] == 2 * width]
    gated_input = None if activation is None else activation.input
    if len(wide) == 1:
        return wide[0].path, None, None
    if len(wide) == 2:
        gate = next((c for c in wide if view.same(c.result, gated_input)), None)
        if gate is None:
            gate = next((c for c in wide if "gate" in c.path.rsplit(".", 1)[-1]), None)
        if gate is None:
            return None, None, None
        return next(c.path for c in wide if c is not gate), gate.path, None
    if len(double) == 1 and double[0].result is not None and gated_input is not None:
        first, second = double[0].result.chunk(2, dim=-1)
        if view.same(first, gated_input):
            return double[0].path, double[0].path, "gate-up"
        if view.same(second, gated_input):
            return double[0].path, double[0].path, "up-gate"
    return None, None, None
