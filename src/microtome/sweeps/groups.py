"""Rows of one length with their recorded runs, and where the changes of a cell enter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from microtome.behaviors.examples import Examples
from microtome.models.probe import first_tensor
from microtome.sweeps.cells import GROUPED, WHOLE, Cell, canonical, mask_of, read_at
from microtome.sweeps.latents import written_at
from microtome.sweeps.recording import both_runs
from microtome.sweeps.rows import Reader, Row
from microtome.tracing.condition import Remembered
from microtome.tracing.replay import BaseRun
from microtome.tracing.vocabulary import codec_of

if TYPE_CHECKING:
    from microtome.models.anatomy import BlockAnatomy
    from microtome.sweeps.plans import Plan
    from microtome.tracing.model import Model

Mode = Literal["set", "after", "half", "inside"]
"""Where a change enters: ``set`` replaces the stream, ``after`` is added to the stream behind the
block, ``half`` to the stream before its MLP, ``inside`` happens while the block runs."""

SLACK = 1e-5
"""Share of a stream's size that a block run in halves may differ by (float32)."""


@dataclass(frozen=True, eq=False)
class Group:
    """Rows of one length with everything that their cells need.

    Attributes:
        places: Their places among the plan's rows.
        rows: The rows.
        base: The recorded run that is changed, None where nothing is restarted.
        new: Value that is put in, by layer ``[row, pos, unit, size]``; empty for ``zero``.
        old: Value of the run that is changed, likewise.
        mids: Stream before the MLP, for layers entered there ``[row, pos, d_model]``.
        modes: Where changes enter, by layer.
        reader: From last streams to values.
        layers: Number of blocks.
        firsts: First position that each cell changes in each row ``[cell, row]``.
        moved: Whether a cell changes any value in a row ``[cell, row]``.
        ends: Metric of the unchanged run and of the other one ``[2, row]``; NaN where not run.
    """

    places: list[int]
    rows: tuple[Row, ...]
    base: BaseRun | None
    new: dict[int, torch.Tensor]
    old: dict[int, torch.Tensor]
    mids: dict[int, torch.Tensor]
    modes: dict[int, Mode]
    reader: Reader
    layers: int
    firsts: np.ndarray
    moved: np.ndarray
    ends: np.ndarray

    @property
    def width(self) -> int:
        """Tokens of each row."""
        return len(self.rows[0].base)

    @property
    def end(self) -> int:
        """Last position that is read."""
        return self.rows[0].reads[-1]

    def mask(self, cell: Cell) -> torch.Tensor:
        """Return the positions of a cell ``[row, pos]``."""
        return mask_of(cell, Examples(tuple(r.example for r in self.rows)), self.width)

    def entry(self, cell: Cell, site: str) -> int:
        """Return the first block that a cell's rows run whole."""
        mode = self.modes.get(cell.layer, "inside")
        behind = mode in ("after", "half") or site == "resid_post"
        return cell.layer + 1 if behind else cell.layer


def group_of(plan: Plan, places: Sequence[int]) -> Group:
    """Record what the cells of some rows need."""
    rows = tuple(plan.lines[p] for p in places)
    model, site = plan.model, plan.site
    layers = sorted({cell.layer for cell in plan.cells})
    names = {layer: f"blocks.{layer}.{read_at(site)}" for layer in layers}
    modes = {layer: _mode(plan, layer) for layer in layers}
    halves = [f"blocks.{layer}.resid_mid" for layer, mode in modes.items() if mode == "half"]
    ran = both_runs(plan, rows, tuple(names.values()), halves)
    old = {layer: _canonical(plan, ran.here[name], layer) for layer, name in names.items()}
    new = {layer: _canonical(plan, ran.there[n], layer) for layer, n in names.items() if ran.there}
    if plan.operation == "mean":
        means = {layer: _canonical(plan, plan.means[layer], layer) for layer in names}
        new = {layer: mean.expand_as(old[layer]) for layer, mean in means.items()}
    mids = {}
    for layer, mode in modes.items():
        if mode == "half" and ran.base is not None:
            mids[layer] = ran.here[f"blocks.{layer}.resid_mid"]
            if not _half_is_exact(model, layer, mids[layer], ran.base):
                modes[layer] = "inside"
    found = Group(
        places=list(places),
        rows=rows,
        base=ran.base,
        new=new,
        old=old,
        mids=mids,
        modes=modes,
        reader=Reader.of(model, plan.metric, rows, narrow="narrow" in plan.rules),
        layers=0 if model.anatomy is None else model.anatomy.n_layers,
        firsts=np.zeros(0),
        moved=np.zeros(0),
        ends=ran.ends,
    )
    firsts, moved = _reach(plan, found)
    return replace(found, firsts=firsts, moved=moved)


def _canonical(plan: Plan, value: torch.Tensor, layer: int) -> torch.Tensor:
    anatomy = plan.model.anatomy
    attention = anatomy.blocks[layer].attention if anatomy is not None else None
    heads = 0
    if attention is not None:
        heads = attention.n_kv_heads if plan.site in GROUPED else attention.n_heads
    return canonical(value, plan.site, heads)


def _mode(plan: Plan, layer: int) -> Mode:
    """Return where a change of the swept site may enter in one block."""
    site, coded = written_at(plan, layer), bool(codec_of(plan.site))
    if site in ("resid_pre", "resid_post") and not coded:
        return "set"
    anatomy = plan.model.anatomy
    if "low" not in plan.rules or anatomy is None:
        return "inside"
    if site in ("resid_pre", "resid_post"):
        return "set" if site == "resid_pre" else "after"
    block = anatomy.blocks[layer]
    adds_up = block.placement in ("sequential", "parallel")
    attention, mlp = block.attention, block.mlp
    if site in ("mlp.out", "mlp.act"):
        exact = mlp is not None and (site == "mlp.out" or mlp.neurons_add_up)
        return "after" if adds_up and exact else "inside"
    if site in ("attn.out", "attn.z"):
        exact = attention is not None and (site == "attn.out" or attention.heads_add_up)
        if not exact or not adds_up:
            return "inside"
        return "after" if block.placement == "parallel" else _half_mode(block)
    return _half_mode(block) if site == "resid_mid" else "inside"


def _half_mode(block: BlockAnatomy) -> Mode:
    whole = block.mlp is not None and block.mlp.path is not None and "mlp.norm" in block.norms
    return "half" if whole and block.mid is not None else "inside"


def half(model: Model, layer: int, mid: torch.Tensor) -> torch.Tensor:
    """Run the second half of a block, from the stream before its MLP ``[..., pos, d_model]``."""
    block = _block(model, layer)
    mlp = block.mlp
    path = mlp.path if mlp is not None else None
    with torch.no_grad():
        normed = model.module.get_submodule(block.norms["mlp.norm"])(mid)
        added = first_tensor(model.module.get_submodule(path or "")(normed))
        if added is None:
            raise TypeError("the MLP returned no tensor")
        if "mlp.post_norm" in block.norms:
            added = model.module.get_submodule(block.norms["mlp.post_norm"])(added)
    scale = 1.0 if mlp is None else mlp.scale
    return mid + (added if scale == 1.0 else scale * added).reshape(mid.shape)


def _block(model: Model, layer: int) -> BlockAnatomy:
    if model.anatomy is None:
        raise ValueError("the module is not a transformer")
    return model.anatomy.blocks[layer]


_halves: Remembered[dict[int, bool]] = Remembered()


def _half_is_exact(model: Model, layer: int, mid: torch.Tensor, base: BaseRun) -> bool:
    """Return whether the second half of a block gives the recorded stream behind it.

    Measured on the first recorded run of a module and remembered.
    """
    known = _halves.of(model.module, dict)
    if layer not in known:
        try:
            known[layer] = same_stream(half(model, layer, mid), base.streams[layer + 1][: len(mid)])
        except Exception:
            # a module that cannot be called alone is run with its block
            known[layer] = False
    return known[layer]


def same_stream(found: torch.Tensor, recorded: torch.Tensor) -> bool:
    """Return whether two streams agree within rounding."""
    slack = max(SLACK, 4 * torch.finfo(recorded.dtype).eps)
    reach = float(recorded.float().abs().max())
    return float((found.float() - recorded.float()).abs().max()) <= slack * max(reach, 1e-6)


def _reach(plan: Plan, group: Group) -> tuple[np.ndarray, np.ndarray]:
    """Return which cells change a value of which rows at all, and from which position on."""
    anatomy = plan.model.anatomy
    causal = anatomy is not None and anatomy.causal
    shape = (len(plan.cells), len(group.rows))
    firsts, moved = np.zeros(shape, dtype=int), np.ones(shape, dtype=bool)
    masks: dict[int | str | None, torch.Tensor] = {}
    differs: dict[int, torch.Tensor] = {}
    for number, cell in enumerate(plan.cells):
        if cell.place not in masks:
            masks[cell.place] = group.mask(cell)
        if cell.layer not in differs:
            differs[cell.layer] = _differs(plan, group, cell.layer)
        touched = masks[cell.place].clone()
        if "known" in plan.rules:
            units = differs[cell.layer]
            own = units.any(-1) if cell.unit == WHOLE else units[..., cell.unit]
            touched &= own
            if causal:
                touched[:, group.end + 1 :] = False
            if causal and group.entry(cell, plan.site) == group.layers:
                # nothing runs behind the last block, so only what is read there counts
                touched[:, : group.rows[0].reads[0]] = False
            moved[number] = touched.any(1).numpy()
        if "suffix" in plan.rules:
            # what is read has to be computed, also where nothing before it changed
            firsts[number] = touched.int().argmax(1).clamp(max=group.rows[0].reads[0]).numpy()
    return firsts, moved


def _differs(plan: Plan, group: Group, layer: int) -> torch.Tensor:
    """Return where the value that is put in differs from what is there ``[row, pos, unit]``."""
    old = group.old[layer]
    new = group.new[layer] if group.new else torch.zeros_like(old)
    return (new != old).any(-1).cpu()
