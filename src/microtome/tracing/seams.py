"""Where each site's value can be seen and replaced: hooks on the model's own modules.

Hooks are ordinary torch hooks on unmodified modules. A site whose value no module returns is made
from two seams: ``resid_mid`` is read where the second norm receives it and written as a change of
what attention adds; ``attn.result`` is formed from z and written behind the output projection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from microtome.models import hf
from microtome.models.anatomy import AttentionAnatomy, BlockAnatomy, HeadColumns
from microtome.tracing.call import Call, Point
from microtome.tracing.layouts import Half, HeadsJoined, Layout, Plain
from microtome.tracing.norms import norm_scale
from microtome.tracing.ports import port_output

CurrentCall = Callable[[], Call | None]


@dataclass(frozen=True)
class Hook:
    """A hook to be registered on a module.

    Attributes:
        path: The module.
        side: ``"in"`` (before it runs) or ``"out"`` (after it ran).
        run: Receives the call and the tensor there, returns the tensor to go on with.
    """

    path: str
    side: str
    run: Callable[[Call, torch.Tensor], torch.Tensor]


def through(
    point: Point, layout: Layout | None = None
) -> Callable[[Call, torch.Tensor], torch.Tensor]:
    """Return a hook body that passes the tensor through a point."""
    chosen = layout or Plain()
    return lambda call, raw: call.through(point, raw, chosen)


def block_hooks(
    module: nn.Module, block: BlockAnatomy, layer: int, points: dict[str, Point]
) -> list[Hook]:
    """Return the hooks of one block's points, other than those inside its attention function.

    Args:
        module: The model.
        block: The block's anatomy.
        layer: Its number.
        points: The wanted points by their name within the block.
    """
    hooks: list[Hook] = []
    for key in ("resid_pre", "resid_post"):
        if key in points:
            side = "in" if key == "resid_pre" else "out"
            hooks.append(Hook(block.path, side, through(points[key])))
    hooks += _added_hooks(block, layer, points)
    hooks += _attention_hooks(module, block, layer, points)
    hooks += _mlp_hooks(block, points)
    hooks += _norm_hooks(module, block, points)
    return hooks


def _added_hooks(block: BlockAnatomy, layer: int, points: dict[str, Point]) -> list[Hook]:
    """Hooks of what attention and MLP add, and of the stream between them."""
    hooks: list[Hook] = []
    attention, mlp = block.attention, block.mlp
    if "attn.out" in points and attention is not None and attention.added is not None:
        hooks.append(
            Hook(
                attention.added.path,
                attention.added.side,
                _scaled(points["attn.out"], attention.scale),
            )
        )
    if "mlp.out" in points and mlp is not None and mlp.added is not None:
        hooks.append(Hook(mlp.added.path, mlp.added.side, _scaled(points["mlp.out"], mlp.scale)))
    point = points.get("resid_mid")
    if point is None or block.mid is None:
        return hooks
    if block.mid.side == "out" or not point.writes:
        hooks.append(Hook(block.mid.path, block.mid.side, through(point)))
        return hooks
    reader = Point(
        point.name, point.key, point.layer, captures=point.captures, sources=point.sources
    )
    writer = replace(point, name=f"{point.name} (written)", captures=[], sources=[])
    hooks.append(Hook(block.path, "in", _keep_stream(layer)))
    if block.mixed is not None:
        hooks.append(
            Hook(block.mixed.path, block.mixed.side, _write_mid(writer, layer, block.mixed_scale))
        )
    hooks.append(Hook(block.mid.path, block.mid.side, through(reader)))
    return hooks


def _scaled(point: Point, scale: float) -> Callable[[Call, torch.Tensor], torch.Tensor]:
    """Pass ``scale * tensor`` through a point; an unchanged tensor comes back as it was."""
    if scale == 1.0:
        return through(point)

    def run(call: Call, raw: torch.Tensor) -> torch.Tensor:
        scaled = raw * scale
        changed = call.through(point, scaled, Plain())
        if call.grad:
            # what was captured has to lie on the way to the logits
            return changed / scale
        return raw if changed is scaled else raw + (changed - scaled) / scale

    return run


def _keep_stream(layer: int) -> Callable[[Call, torch.Tensor], torch.Tensor]:
    def run(call: Call, raw: torch.Tensor) -> torch.Tensor:
        call.scratch["stream", layer] = raw
        return raw

    return run


def _write_mid(
    writer: Point, layer: int, scale: float
) -> Callable[[Call, torch.Tensor], torch.Tensor]:
    """Change what attention adds so that the stream behind it becomes the written value."""

    def run(call: Call, raw: torch.Tensor) -> torch.Tensor:
        stream = call.scratch["stream", layer]
        added = raw.reshape(stream.shape)
        mid = stream + (added if scale == 1.0 else scale * added)
        changed = call.through(writer, mid, Plain())
        if changed is mid:
            return raw
        return (added + (changed - mid) / scale).reshape(raw.shape)

    return run


def _attention_hooks(
    module: nn.Module, block: BlockAnatomy, layer: int, points: dict[str, Point]
) -> list[Hook]:
    attention = block.attention
    if attention is None:
        return []
    hooks: list[Hook] = []
    if "attn.in" in points:
        hooks.append(Hook(attention.path, "in", through(points["attn.in"])))
    for name, columns in attention.projections.items():
        point = points.get(f"attn.in.{name}")
        if point is not None:
            hooks += _port_hooks(module, point, columns)
    if "attn.z" in points and not attention.dispatches and attention.out_proj is not None:
        joined = HeadsJoined(attention.n_heads)
        hooks.append(Hook(attention.out_proj, "in", through(points["attn.z"], joined)))
    if "attn.result" in points and attention.out_proj is not None:
        hooks += _result_hooks(module, attention, layer, points["attn.result"])
    return hooks


def _port_hooks(module: nn.Module, point: Point, columns: HeadColumns) -> list[Hook]:
    """Hooks that recompute the selected heads' columns of a projection from a changed input."""
    projection = module.get_submodule(columns.path)
    seen: dict[int, torch.Tensor] = {}

    def before(call: Call, raw: torch.Tensor) -> torch.Tensor:
        seen[id(call)] = raw
        return raw

    def after(call: Call, raw: torch.Tensor) -> torch.Tensor:
        call.passed[point.name] += 1
        return port_output(point, projection, columns, seen.pop(id(call)), raw, call)

    return [Hook(columns.path, "in", before), Hook(columns.path, "out", after)]


def _result_hooks(
    module: nn.Module, attention: AttentionAnatomy, layer: int, point: Point
) -> list[Hook]:
    """Hooks that form each head's write from z, and add what interventions change of it."""
    path = attention.out_proj or ""
    projection = module.get_submodule(path)

    def before(call: Call, raw: torch.Tensor) -> torch.Tensor:
        heads = HeadsJoined(attention.n_heads).view(raw, call.positions.batch)
        weight = hf.projection_weight(projection).unflatten(0, (attention.n_heads, -1))
        result = torch.einsum("bphk,hkd->bphd", heads, weight) * attention.scale
        changed = call.through(point, result, Plain(4))
        if changed is not result:
            call.scratch["result", layer] = (changed - result).sum(2) / attention.scale
        return raw

    def after(call: Call, raw: torch.Tensor) -> torch.Tensor:
        delta = call.scratch.pop(("result", layer), None)
        return raw if delta is None else raw + delta.reshape(raw.shape)

    return [Hook(path, "in", before), Hook(path, "out", after)]


def _mlp_hooks(block: BlockAnatomy, points: dict[str, Point]) -> list[Hook]:
    mlp = block.mlp
    if mlp is None:
        return []
    hooks: list[Hook] = []
    if "mlp.in" in points and mlp.input is not None:
        hooks.append(Hook(mlp.input.path, mlp.input.side, through(points["mlp.in"])))
    halves: dict[str, Layout] = {"mlp.pre": Plain(), "mlp.gate": Plain()}
    if mlp.fused is not None:
        gate_first = mlp.fused == "gate-up"
        halves = {"mlp.pre": Half(not gate_first), "mlp.gate": Half(gate_first)}
    for key, path in (("mlp.pre", mlp.up), ("mlp.gate", mlp.gate)):
        if key in points and path is not None:
            hooks.append(Hook(path, "out", through(points[key], halves[key])))
    if "mlp.act" in points and mlp.down is not None:
        hooks.append(Hook(mlp.down, "in", through(points["mlp.act"])))
    if "mlp.router" in points and mlp.router is not None:
        hooks.append(Hook(mlp.router, "out", through(points["mlp.router"])))
    return hooks


def _norm_hooks(module: nn.Module, block: BlockAnatomy, points: dict[str, Point]) -> list[Hook]:
    return [
        Hook(path, "in", norm_scale(points[f"{kind}.scale"], module.get_submodule(path)))
        for kind, path in block.norms.items()
        if f"{kind}.scale" in points
    ]
