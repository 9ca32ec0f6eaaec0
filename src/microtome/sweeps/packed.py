"""Waves of packed tokens through the two commonest block shapes, GPT-2's and Llama's.

All live tokens of all runs lie in one flat list, whatever position each run starts at. Norms,
projections and MLPs are the model's own modules, called on that list; only attention is computed
here, with the recorded keys and values where a run has not changed them. Each block is compared
with the recorded pass before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from microtome.models import hf
from microtome.models.probe import first_tensor
from microtome.sweeps.groups import Group, same_stream
from microtome.sweeps.schedule import Wave
from microtome.tracing.condition import Remembered

if TYPE_CHECKING:
    from microtome.models.anatomy import BlockAnatomy
    from microtome.sweeps.entries import Part
    from microtome.tracing.model import Model
    from microtome.tracing.replay import BaseRun

Angles = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the rotary embedding ``[batch, pos, d_head]``."""


Heads = Callable[[torch.Tensor], Any]
"""From normed tokens ``[n, d_model]`` to one or two tensors ``[n, head, d_head]``."""


@dataclass(frozen=True, eq=False)
class PackedBlock:
    """One block as functions of a flat list of tokens.

    Attributes:
        norm: Before attention.
        queries: From normed tokens ``[n, d_model]`` to queries ``[n, head, d_head]``.
        others: Likewise to keys and values.
        out: Output projection.
        mid_norm: Before the MLP.
        mlp: The MLP.
        heads: Query heads.
        kv_heads: Key/value heads.
        scaling: Factor on the scores.
        rotary: Whether queries and keys are rotated by position.
        scales: Factors on what attention and MLP add.
    """

    norm: nn.Module
    queries: Heads
    others: Heads
    out: nn.Module
    mid_norm: nn.Module
    mlp: Callable[[torch.Tensor], torch.Tensor]
    heads: int
    kv_heads: int
    scaling: float
    rotary: bool
    scales: tuple[float, float] = (1.0, 1.0)


_reasons: Remembered[str] = Remembered()


def packed_reason(model: Model) -> str:
    """Return why the fast path does not fit a model; empty where it does. Measured once."""
    return _reasons.of(model.module, lambda: _found_reason(model))


def _found_reason(model: Model) -> str:
    anatomy = model.anatomy
    if anatomy is None:
        return "the module is not a transformer"
    try:
        blocks = [packed_block(model, b) for b in anatomy.blocks]
    except LookupError as error:
        return str(error.args[0])
    length = min(anatomy.context or 12, 12)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, anatomy.vocab, (2, length), generator=generator)
    base = model.record(ids, keys=True, logits="last")
    for number, block in enumerate(blocks):
        run, pos = torch.arange(2).repeat_interleave(length), torch.arange(length).repeat(2)
        flat = Flat(base.streams[number].flatten(0, 1), run, pos)
        try:
            with torch.no_grad():
                found = run_block(block, flat, base, number, torch.arange(2), 0)
        except Exception as error:
            # whatever a stranger's module raises, its own block runs it instead
            return f"block {number} is not of GPT-2's or Llama's shape ({type(error).__name__})"
        if not same_stream(found.unflatten(0, (2, length)), base.streams[number + 1]):
            return f"block {number} is not of GPT-2's or Llama's shape: its output differs"
    return ""


def packed_block(model: Model, block: BlockAnatomy) -> PackedBlock:
    """Return a block as functions of flat tokens.

    Raises:
        LookupError: If it has not the parts of either shape.
    """
    attention, mlp = block.attention, block.mlp
    whole = attention is not None and mlp is not None and mlp.path is not None
    if not whole or block.placement != "sequential" or attention is None or mlp is None:
        raise LookupError("a block is not attention followed by an MLP")
    names = {"attn.norm", "mlp.norm"}
    if not names <= block.norms.keys() or {"attn.post_norm", "mlp.post_norm"} & block.norms.keys():
        raise LookupError("a block is not normed once before attention and once before its MLP")
    part = model.module.get_submodule
    core = part(attention.path)
    heads, kv_heads, size = attention.n_heads, attention.n_kv_heads, attention.d_head
    projections = _fused(core, heads, size) or _separate(core, heads, kv_heads, size)
    if projections is None or attention.out_proj is None:
        raise LookupError("attention has neither one projection for q, k and v nor one for each")
    return PackedBlock(
        norm=part(block.norms["attn.norm"]),
        queries=projections[0],
        others=projections[1],
        out=part(attention.out_proj),
        mid_norm=part(block.norms["mlp.norm"]),
        mlp=_mlp(part(mlp.path or "")),
        heads=heads,
        kv_heads=kv_heads,
        scaling=float(getattr(core, "scaling", None) or size**-0.5),
        rotary=not hasattr(core, "c_attn"),
        scales=(attention.scale, mlp.scale),
    )


def _fused(core: Any, heads: int, size: int) -> tuple[Heads, Heads] | None:
    """Return queries, and keys with values, of GPT-2's joint projection, or None."""
    joint = getattr(core, "c_attn", None)
    if not isinstance(joint, nn.Module) or not hf.is_projection(joint):
        return None
    width, weight, bias = heads * size, hf.projection_weight(joint), joint.bias

    def part(tokens: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        return torch.addmm(bias[start:stop], tokens, weight[:, start:stop])  # type: ignore[index]

    def others(tokens: torch.Tensor) -> Any:
        both = part(tokens, width, 3 * width)
        return tuple(p.unflatten(-1, (heads, size)) for p in both.chunk(2, -1))

    return lambda tokens: part(tokens, 0, width).unflatten(-1, (heads, size)), others


def _separate(core: Any, heads: int, kv_heads: int, size: int) -> tuple[Heads, Heads] | None:
    """Return queries, and keys with values, of Llama's three projections, or None."""
    q, k, v = (getattr(core, f"{name}_proj", None) for name in "qkv")
    if q is None or not all(isinstance(p, nn.Module) and hf.is_projection(p) for p in (q, k, v)):
        return None
    if hasattr(core, "q_norm") or hasattr(core, "k_norm"):
        return None

    def others(tokens: torch.Tensor) -> Any:
        return tuple(p(tokens).unflatten(-1, (kv_heads, size)) for p in (k, v) if p is not None)

    return lambda tokens: q(tokens).unflatten(-1, (heads, size)), others


def _mlp(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the MLP; GPT-2's composite GELU is computed by torch's own in one pass."""
    act = getattr(module, "act", None)
    up, down = getattr(module, "c_fc", None), getattr(module, "c_proj", None)
    if type(act).__name__ == "NewGELUActivation" and up is not None and down is not None:
        return lambda tokens: down(F.gelu(up(tokens), approximate="tanh"))

    def run(tokens: torch.Tensor) -> torch.Tensor:
        found = first_tensor(module(tokens))
        if found is None:
            raise TypeError("the MLP returned no tensor")
        return found

    return run


@dataclass(frozen=True, eq=False)
class Flat:
    """Live tokens of all runs in one list.

    Attributes:
        stream: ``[n, d_model]``.
        run: Run of each token ``[n]``.
        pos: Position of each token ``[n]``.
    """

    stream: torch.Tensor
    run: torch.Tensor
    pos: torch.Tensor


def run_block(
    block: PackedBlock,
    flat: Flat,
    base: BaseRun,
    number: int,
    rows: torch.Tensor,
    first: int,
    ends: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run a block on flat tokens.

    Args:
        block: The block.
        flat: The tokens.
        base: The recorded run.
        number: The block's number.
        rows: Row of the base run of each run ``[run]``.
        first: Position before which no token is live.
        ends: Tokens whose outputs are wanted ``[k]``; all by default.

    Returns:
        The stream behind the block ``[n, d_model]`` or ``[k, d_model]``.
    """
    width = base.streams[0].shape[1]
    asked = flat if ends is None else Flat(flat.stream[ends], flat.run[ends], flat.pos[ends])
    normed = block.norm(flat.stream)
    q = block.queries(normed if ends is None else normed[ends])
    k, v = block.others(normed)
    if block.rotary:
        q = _rotated(q, _angles(base, number, rows, asked))
        k = _rotated(k, _angles(base, number, rows, flat))
    keys, values = _filled(base, number, rows, flat, (k, v))
    z = _attended(block, q, keys, values, asked, base, number, width, first, ends is not None)
    scale, mlp_scale = block.scales
    added = block.out(z)
    mid: torch.Tensor = asked.stream + (added if scale == 1.0 else scale * added)
    written = block.mlp(block.mid_norm(mid))
    return mid + (written if mlp_scale == 1.0 else mlp_scale * written)


def _filled(
    base: BaseRun,
    number: int,
    rows: torch.Tensor,
    flat: Flat,
    new: tuple[torch.Tensor, torch.Tensor],
) -> list[torch.Tensor]:
    """Return keys and values of whole runs ``[run, pos, head, d_head]``, live tokens replaced."""
    found = []
    for stored, changed in zip((base.keys or {})[number], new, strict=True):
        whole = stored.transpose(1, 2)[rows]
        whole[flat.run, flat.pos] = changed
        found.append(whole)
    return found


def _attended(
    block: PackedBlock,
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    asked: Flat,
    base: BaseRun,
    number: int,
    width: int,
    first: int,
    only_ends: bool,
) -> torch.Tensor:
    """Return z of the asked tokens ``[n, head * d_head]``."""
    runs = keys.shape[0]
    if only_ends:
        # every run asks for the same positions, in the same order
        queries = q.unflatten(0, (runs, -1))
        positions = asked.pos.unflatten(0, (runs, -1))[0]
    else:
        queries = q.new_zeros(runs, width - first, block.heads, q.shape[-1])
        queries[asked.run, asked.pos - first] = q
        positions = torch.arange(first, width, device=q.device)
    mask = _mask(base, number, positions, width)
    z = F.scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=mask,
        scale=block.scaling,
        enable_gqa=block.kv_heads != block.heads,
    ).transpose(1, 2)
    z = z.flatten(0, 1) if only_ends else z[asked.run, asked.pos - first]
    return z.flatten(1)


def _mask(base: BaseRun, number: int, positions: torch.Tensor, width: int) -> torch.Tensor:
    recorded = base.arguments[number].get("attention_mask")
    if isinstance(recorded, torch.Tensor) and recorded.ndim == 4:
        return recorded[:1, :, positions.cpu()]
    return torch.arange(width, device=positions.device) <= positions.unsqueeze(1)


def _angles(base: BaseRun, number: int, rows: torch.Tensor, flat: Flat) -> Angles:
    """Return each token's cosines and sines ``[n, 1, d_head]``.

    Raises:
        KeyError: If the block received none.
    """
    cos, sin = base.arguments[number]["position_embeddings"]
    if cos.shape[0] == 1:
        return cos[0, flat.pos].unsqueeze(1), sin[0, flat.pos].unsqueeze(1)
    row = rows[flat.run]
    return cos[row, flat.pos].unsqueeze(1), sin[row, flat.pos].unsqueeze(1)


def _rotated(value: torch.Tensor, angles: Angles) -> torch.Tensor:
    """Rotate the halves of each head (Su et al., 2021, in Llama's layout)."""
    cos, sin = angles
    a, b = value.chunk(2, -1)
    return value * cos + torch.cat([-b, a], -1) * sin


def packed_wave(model: Model, group: Group, wave: Wave, parts: Sequence[Part]) -> torch.Tensor:
    """Walk the blocks with packed tokens.

    Args:
        model: A model that :func:`packed_reason` finds nothing against.
        group: The group.
        wave: The wave.
        parts: What enters, in order of entry.

    Returns:
        Last streams at the reads ``[run, read, d_model]``, runs in order of the parts.
    """
    anatomy, base = model.anatomy, group.base
    if anatomy is None or base is None:
        raise ValueError("no base run was recorded")
    order = np.concatenate([part.runs for part in parts])
    firsts, rows = torch.as_tensor(wave.firsts[order]), torch.as_tensor(wave.rows[order])
    layers = anatomy.n_layers
    flat = Flat(base.streams[0][:0, 0], rows[:0], rows[:0])
    reads = torch.tensor(group.rows[0].reads)
    number, entered, outputs = 0, 0, None
    with torch.no_grad():
        for number in range(layers):
            for part in (p for p in parts if p.entry == number):
                flat = _joined(flat, part, firsts, wave.first, group.width, entered)
                entered += len(part.runs)
            if not entered:
                continue
            last = number == layers - 1
            ends = _ends(flat, reads, entered, group.width) if last else None
            block = packed_block(model, anatomy.blocks[number])
            stream = run_block(block, flat, base, number, rows[:entered], wave.first, ends)
            if last:
                outputs = stream.unflatten(0, (entered, len(reads)))
            else:
                flat = Flat(stream, flat.run, flat.pos)
        behind = [part.stream[:, reads - wave.first] for part in parts if part.entry == layers]
    return torch.cat([*([] if outputs is None else [outputs]), *behind])


def _joined(
    flat: Flat, part: Part, firsts: torch.Tensor, first: int, width: int, entered: int
) -> Flat:
    """Add the live tokens of a part's runs."""
    own = firsts[entered : entered + len(part.runs)]
    live = torch.arange(first, width) >= own.unsqueeze(1)
    run, pos = live.nonzero(as_tuple=True)
    return Flat(
        torch.cat([flat.stream, part.stream[run, pos]]),
        torch.cat([flat.run, run + entered]),
        torch.cat([flat.pos, pos + first]),
    )


def _ends(flat: Flat, reads: torch.Tensor, runs: int, width: int) -> torch.Tensor:
    """Return the tokens at the reads of every run, run by run."""
    table = torch.full((runs, width), -1)
    table[flat.run, flat.pos] = torch.arange(len(flat.run))
    return table[:, reads].flatten()
