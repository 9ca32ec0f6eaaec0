"""Finding the parts of one block by the values that flow through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from microtome.errors import HookError
from microtome.models import hf
from microtome.models.anatomy import AttentionAnatomy, BlockAnatomy, MLPAnatomy, Seam
from microtome.models.compare import addition_scale, relative_error, tolerance
from microtome.models.heads import head_columns
from microtome.models.neurons import find_neurons
from microtome.models.probe import AttentionCall, Call, Recording
from microtome.models.softmax import run_eager


@dataclass
class BlockView:
    """One block's calls and values, prepared for the search.

    Attributes:
        module: The whole model.
        recording: Everything that was recorded.
        path: The block.
        stream: Residual stream on entry ``[batch, pos, d_model]``.
        result: Residual stream on exit.
        calls: Calls of the modules inside, by order of ending.
    """

    module: nn.Module
    recording: Recording
    path: str
    stream: torch.Tensor
    result: torch.Tensor
    calls: list[Call]

    def part(self, path: str) -> nn.Module:
        """Return a submodule by its path."""
        return self.module.get_submodule(path)

    def is_norm(self, path: str) -> bool:
        """Return whether the module at a path is a normalization, by class or attribute name.

        A module that holds a projection is none, whatever its name says.
        """
        if any(hf.is_projection(part) for part in self.part(path).modules()):
            return False
        name = path.rsplit(".", 1)[-1].lower()
        return "norm" in type(self.part(path)).__name__.lower() or "norm" in name

    def same(self, a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
        """Return whether two values are equal up to reshaping, within tolerance."""
        if a is None or b is None or a.numel() != b.numel() or not a.is_floating_point():
            return False
        return relative_error(a.reshape(b.shape), b) <= tolerance(b.dtype)


@dataclass(frozen=True)
class Addition:
    """A sum found in the residual stream: ``total = base + scale * value of seam``."""

    seam: Seam
    scale: float
    order: int
    mid: Seam | None = None
    mid_value: torch.Tensor | None = None
    mid_order: int = 0


def find_block(module: nn.Module, recording: Recording, path: str) -> BlockAnatomy:
    """Find attention, MLP, norms and additions of one block.

    Args:
        module: The whole model.
        recording: A forward pass of it.
        path: Path of the block.

    Returns:
        The block's anatomy; what was not found is absent with a reason.
    """
    call = recording.only(path)
    if call is None:
        times = len(recording.calls.get(path, []))
        return _unknown(path, f"the block ran {times} times in one forward pass")
    if call.input is None or call.result is None or call.input.ndim != 3:
        shape = None if call.input is None else tuple(call.input.shape)
        return _unknown(path, f"the block's input has shape {shape}, not (batch, pos, d_model)")
    if call.result.shape != call.input.shape:
        return _unknown(
            path, f"the block maps {tuple(call.input.shape)} to {tuple(call.result.shape)}"
        )
    view = BlockView(module, recording, path, call.input, call.result, recording.below(path))
    return _assemble(view)


def _unknown(path: str, reason: str) -> BlockAnatomy:
    return BlockAnatomy(path, "unknown", None, None, None, reasons={"*": reason})


def _assemble(view: BlockView) -> BlockAnatomy:
    core, entry = find_core(view)
    out_proj = find_out_projection(view, core, entry) if core else None
    start = out_proj.end if out_proj else (core.end if core else view.calls[0].start)
    reasons: dict[str, str] = {}
    attended = find_mid(view, start)
    placement: str = "sequential"
    mlp_added: Addition | None = None
    if attended is not None and attended.mid_value is not None:
        base, mid, post = _middle(view, attended)
        mlp_added = find_last_addition(view, base, attended.mid_order)
        placement = "post-addition" if post else "sequential"
    else:
        mid = None
        both = find_parallel(view, core, start)
        if both is not None:
            placement, (attended, mlp_added) = "parallel", both
            reasons["resid_mid"] = (
                "attention and MLP run in parallel: there is no stream between them"
            )
        else:
            placement = "unknown"
            reasons["resid_mid"] = "no module of the block receives block input + attention output"
    norms: dict[str, str] = {}
    attention = None
    if core is not None:
        attention = _attention(view, core, entry, out_proj, attended, norms)
    else:
        reasons["attn"] = "this block has no attention"
    mlp = _mlp(view, core, attended, mlp_added, placement, norms, reasons)
    if placement == "post-addition":
        norms["mlp.after"] = _last_norm(view)
    if attention is not None and attended is None:
        reasons["attn.out"] = "the value that attention adds to the stream is no module's output"
    return BlockAnatomy(
        view.path,
        placement,  # type: ignore[arg-type]
        attention,
        mlp,
        mid,
        None if attended is None else attended.seam,
        1.0 if attended is None else attended.scale,
        norms,
        reasons,
    )


def _middle(view: BlockView, attended: Addition) -> tuple[torch.Tensor, Seam | None, bool]:
    """Return the stream that the MLP's output is added to, its seam, and if it is normed itself."""
    seam = attended.mid
    value = attended.mid_value
    if seam is None or value is None:
        return view.stream, None, False
    call = view.recording.only(seam.path)
    normed = call.result if call is not None and view.is_norm(seam.path) else None
    last = view.calls[-1]
    ends_in_norm = any(
        c.result is not None and view.same(c.result, view.result) and view.is_norm(c.path)
        for c in view.calls
    )
    if normed is not None and ends_in_norm and last.result is not None:
        return normed, Seam(seam.path, "out"), True
    return value, seam, False


def _last_norm(view: BlockView) -> str:
    """Return the norm whose output is the block's."""
    found = [
        c.path for c in view.calls if view.is_norm(c.path) and view.same(c.result, view.result)
    ]
    return found[-1]


def find_core(view: BlockView) -> tuple[Call | None, AttentionCall | None]:
    """Return the call that computes attention, and its entry call if it dispatches."""
    for call in view.calls:
        entries = view.recording.attention.get(id(view.part(call.path)), [])
        if len(entries) == 1:
            return call, entries[0]
    labelled = hf.recorded_classes(view.module).get("attentions", set())
    innermost: Call | None = None
    for call in view.calls:
        name = type(view.part(call.path)).__name__
        holds = any(hf.is_projection(child) for child in view.part(call.path).children())
        if (
            holds
            and (name in labelled or "attention" in name.lower())
            and "output" not in name.lower()
            and (innermost is None or call.path.startswith(innermost.path + "."))
        ):
            innermost = call
    return innermost, None


def find_out_projection(view: BlockView, core: Call, entry: AttentionCall | None) -> Call | None:
    """Return the projection whose input is z; for modules that do not dispatch, their last one."""
    projections = [
        c for c in view.calls if hf.is_projection(view.part(c.path)) and c.start > core.start
    ]
    if entry is not None:
        return next((c for c in projections if view.same(c.input, entry.z)), None)
    inside = [c for c in projections if c.path.startswith(core.path + ".")]
    width = view.stream.shape[-1]
    last = [c for c in inside if c.result is not None and c.result.shape[-1] == width]
    return last[-1] if last else None


def find_mid(view: BlockView, start: int) -> Addition | None:
    """Find ``mid = stream + s * a``: a module's input that is the stream plus an earlier output."""
    receivers = sorted((c for c in view.calls if c.start > start), key=lambda c: c.start)
    for receiver in receivers:
        if receiver.input is None or receiver.input.numel() != view.stream.numel():
            continue
        mid = receiver.input.reshape(view.stream.shape)
        added = _added(view, mid, view.stream, start, receiver.start)
        if added is not None:
            return Addition(
                added.seam, added.scale, added.order, Seam(receiver.path, "in"), mid, receiver.start
            )
    return None


def _added(
    view: BlockView, total: torch.Tensor, base: torch.Tensor, start: int, stop: int
) -> Addition | None:
    """Return the latest module output between two times that turns ``base`` into ``total``."""
    for call in reversed(view.calls):
        if not start <= call.end < stop or call.result is None:
            continue
        if call.result.numel() != total.numel() or not call.result.is_floating_point():
            continue
        scale = addition_scale(total, base, call.result)
        if scale is not None:
            return Addition(Seam(call.path, "out"), scale, call.end)
    return None


def find_last_addition(view: BlockView, base: torch.Tensor, start: int) -> Addition | None:
    """Find ``total = base + s * b``; total is the block's output or what its last norm reads."""
    latest = max(c.end for c in view.calls) + 1
    direct = _added(view, view.result, base, start, latest)
    if direct is not None:
        return direct
    for call in reversed(view.calls):
        normed = call.input is not None and view.is_norm(call.path)
        if normed and view.same(call.result, view.result) and call.input is not None:
            return _added(view, call.input.reshape(base.shape), base, start, call.start)
    return None


def find_parallel(
    view: BlockView, core: Call | None, start: int
) -> tuple[Addition, Addition] | None:
    """Find ``result = stream + s * (a + b)`` with a from attention and b from another module."""
    if core is None:
        return None
    outs = [
        c
        for c in view.calls
        if c.result is not None
        and c.result.numel() == view.stream.numel()
        and c.result.is_floating_point()
    ]
    attended = [c for c in outs if c.end >= start and _shares(c.path, core.path, view.path)]
    others = [c for c in outs if not _shares(c.path, core.path, view.path)]
    for a in reversed(attended):
        for b in reversed(others):
            if a.result is None or b.result is None:
                continue
            total = a.result.reshape(view.stream.shape) + b.result.reshape(view.stream.shape)
            scale = addition_scale(view.result, view.stream, total)
            if scale is not None:
                return (
                    Addition(Seam(a.path, "out"), scale, a.end),
                    Addition(Seam(b.path, "out"), scale, b.end),
                )
    return None


def _shares(path: str, core: str, block: str) -> bool:
    """Return whether a path lies under the same child of the block as the attention core."""
    child = core[len(block) + 1 :].split(".", 1)[0]
    return path == f"{block}.{child}" or path.startswith(f"{block}.{child}.")


def _attention(
    view: BlockView,
    core: Call,
    entry: AttentionCall | None,
    out_proj: Call | None,
    attended: Addition | None,
    norms: dict[str, str],
) -> AttentionAnatomy:
    _name_norms(view, core.input, attended, "attn", norms)
    adds_up = False
    if out_proj is not None and attended is not None:
        call = view.recording.only(attended.seam.path)
        adds_up = call is not None and view.same(out_proj.result, call.result)
    q_heads, kv_heads, d_head, d_value = _head_sizes(view, entry, out_proj)
    softmax, sink = (True, False) if entry is None else softmax_of(entry)
    columns = {} if entry is None else head_columns(view.module, view.recording, view.path, entry)
    return AttentionAnatomy(
        path=core.path,
        dispatches=entry is not None,
        out_proj=None if out_proj is None else out_proj.path,
        added=None if attended is None else attended.seam,
        scale=1.0 if attended is None else attended.scale,
        projections=columns,
        n_heads=q_heads,
        n_kv_heads=kv_heads,
        d_head=d_head,
        d_head_v=d_value,
        heads_add_up=adds_up,
        softmax=softmax,
        sink=sink,
    )


def softmax_of(entry: AttentionCall) -> tuple[bool, bool]:
    """Return whether the family's eager function has one softmax, and whether with a sink."""
    widths: list[int] = []

    def note(pattern: torch.Tensor) -> torch.Tensor:
        widths.append(pattern.shape[-1])
        return pattern

    try:
        with torch.no_grad():
            run_eager(
                entry.module, entry.q, entry.k, entry.v, entry.mask, entry.kwargs, pattern=note
            )
    except HookError:
        return False, False
    return True, widths[0] > entry.k.shape[2]


def _head_sizes(
    view: BlockView, entry: AttentionCall | None, out_proj: Call | None
) -> tuple[int, int, int, int]:
    if entry is not None:
        return entry.q.shape[1], entry.k.shape[1], entry.q.shape[-1], entry.z.shape[-1]
    config: Any = getattr(view.module, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = next(
        (
            n
            for k in ("num_attention_heads", "n_head", "num_heads")
            if (n := getattr(text, k, None))
        ),
        1,
    )
    width = 0 if out_proj is None or out_proj.input is None else int(out_proj.input.shape[-1])
    return int(heads), int(heads), width // int(heads), width // int(heads)


def _name_norms(
    view: BlockView,
    received: torch.Tensor | None,
    added: Addition | None,
    kind: str,
    norms: dict[str, str],
) -> None:
    """Name the norm before a part (its output is the part's input) and the one behind it."""
    for call in view.calls:
        if not view.is_norm(call.path) or call.result is None:
            continue
        if isinstance(view.part(call.path), nn.Identity):
            continue
        reads_stream = call.input is not None and call.input.numel() == view.stream.numel()
        if f"{kind}.norm" not in norms and reads_stream and view.same(call.result, received):
            norms[f"{kind}.norm"] = call.path
    if added is not None and view.is_norm(added.seam.path):
        norms[f"{kind}.post_norm"] = added.seam.path


def _mlp(
    view: BlockView,
    core: Call | None,
    attended: Addition | None,
    added: Addition | None,
    placement: str,
    norms: dict[str, str],
    reasons: dict[str, str],
) -> MLPAnatomy | None:
    if added is None:
        reasons["mlp"] = "what the MLP adds to the stream is no module's output"
        return None
    start = attended.mid_order if placement != "parallel" and attended is not None else 0
    mlp, received = find_neurons(view, core, added.seam, added.scale, start, reasons)
    _name_norms(view, received, added, "mlp", norms)
    return mlp
