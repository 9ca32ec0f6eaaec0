"""The sweeps in code written for GPT-2 alone: what is practically possible on this model.

Suffixes of unequal length are packed into one flat list of live tokens [N, D]; only attention
scatters them into [R, T, D]. The entry block takes its new queries, keys and values from the clean
run, the last block runs at the last position, and the unembedding is one direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GPT2LMHeadModel

from benchmarks.peers import common
from benchmarks.peers.common import Inputs
from benchmarks.peers.raw_restart import Restart
from benchmarks.peers.task import Task

no_grad = torch.no_grad()
Part = Any
"""A part of GPT-2: torch knows no types of a module's attributes."""


@dataclass(frozen=True, eq=False)
class Stage:
    """What one block of a plain run computed: the streams ``[B T, D]``, q, k, v ``[B, T, D]``."""

    before: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    z: torch.Tensor
    between: torch.Tensor


@dataclass(frozen=True, eq=False)
class Packing:
    """Which tokens are live: flat (row, position) of each, and the place of each row's last."""

    rows: int
    live: torch.Tensor
    last: torch.Tensor


def affine(x: torch.Tensor, layer: Part) -> torch.Tensor:
    """Apply one of GPT-2's layers, whose weights are ``[in, out]``."""
    return torch.addmm(layer.bias, x, layer.weight)


def norm(x: torch.Tensor, layer: Part) -> torch.Tensor:
    """Apply a layer norm."""
    return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, layer.eps)


def mlp(x: torch.Tensor, block: Part) -> torch.Tensor:
    """Return what the MLP adds; the fused form of GELU."""
    hidden = F.gelu(affine(norm(x, block.ln_2), block.mlp.c_fc), approximate="tanh")
    return affine(hidden, block.mlp.c_proj)


class Smart:
    """Sweeps and attribution patching by hand."""

    def __init__(self, task: Task, model: GPT2LMHeadModel, inputs: Inputs) -> None:
        self.task, self.inputs = task, inputs
        self.trunk, self.blocks = model.transformer, list[Any](model.transformer.h)
        self.finish = Restart(task, model, inputs).finish
        self.width, self.length = task.width, task.positions

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool
    ) -> torch.Tensor:
        """Return z ``[R Tq, D]`` of q ``[R, Tq, D]`` and k, v ``[R, T, D]``."""
        split = [
            x.view(len(x), -1, self.task.heads, self.width // self.task.heads) for x in (q, k, v)
        ]
        z = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in split), is_causal=causal)
        return z.transpose(1, 2).reshape(-1, self.width)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the first stream ``[B T, D]``."""
        found = self.trunk.wte(ids) + self.trunk.wpe.weight[: self.length]
        return found.view(-1, self.width)

    def stages(self, ids: torch.Tensor) -> list[Stage]:
        """Run the model and keep every block's values."""
        x, found = self.embed(ids), []
        for block in self.blocks:
            qkv = affine(norm(x, block.ln_1), block.attn.c_attn).split(self.width, 1)
            q, k, v = (t.view(len(ids), self.length, self.width) for t in qkv)
            z = self.attend(q, k, v, causal=True)
            between = x + affine(z, block.attn.c_proj)
            found.append(Stage(x, q, k, v, z, between))
            x = between + mlp(between, block)
        return found

    def pack(self, starts: list[int]) -> Packing:
        """Return the packing of rows that live from these positions on."""
        places = torch.arange(self.length)[None] >= torch.tensor(starts)[:, None]
        live, last = places.view(-1).nonzero()[:, 0], places.sum(1).cumsum(0) - 1
        return Packing(len(starts), live.to(self.task.device), last.to(self.task.device))

    def fill(self, base: torch.Tensor, rows: int) -> torch.Tensor:
        """Return the base run's values in every row ``[R T, D]``."""
        return base.expand(rows, self.length, self.width).clone().view(-1, self.width)

    def middle(self, x: torch.Tensor, packing: Packing, layer: int, base: Stage) -> torch.Tensor:
        """Run a block on the live tokens."""
        block, rows = self.blocks[layer], packing.rows
        qkv = affine(norm(x, block.ln_1), block.attn.c_attn).split(self.width, 1)
        filled = [self.fill(b, rows) for b in (base.q, base.k, base.v)]
        for whole, new in zip(filled, qkv, strict=True):
            whole[packing.live] = new
        z = self.attend(*(f.view(rows, self.length, self.width) for f in filled), causal=True)
        x = x + affine(z[packing.live], block.attn.c_proj)
        return x + mlp(x, block)

    def final(self, x: torch.Tensor, packing: Packing, base: Stage) -> torch.Tensor:
        """Run the last block at the last position and return the metric of each row."""
        block, rows, width = self.blocks[-1], packing.rows, self.width
        weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        normed = norm(x, block.ln_1)
        new = torch.addmm(bias[width:], normed, weight[:, width:]).split(width, 1)
        filled = [self.fill(b, rows) for b in (base.k, base.v)]
        for whole, part in zip(filled, new, strict=True):
            whole[packing.live] = part
        q = torch.addmm(bias[:width], normed[packing.last], weight[:, :width])
        k, v = (f.view(rows, self.length, width) for f in filled)
        z = self.attend(q.view(rows, 1, width), k, v, causal=False)
        x = x[packing.last] + affine(z, block.attn.c_proj)
        return self.finish(x + mlp(x, block))

    def onward(
        self, x: torch.Tensor, packing: Packing, first: int, bases: list[Stage]
    ) -> torch.Tensor:
        """Run the blocks from the first on and return the metric of each row."""
        for layer in range(first, self.task.layers - 1):
            x = self.middle(x, packing, layer, bases[layer])
        return self.final(x, packing, bases[-1])

    @no_grad
    def positions(self) -> torch.Tensor:
        """Workload c."""
        clean, corrupt = self.stages(self.inputs.clean), self.stages(self.inputs.corrupt)
        grid, packing = common.empty(self.task), self.pack(list(range(self.length)))
        place = packing.live % self.length
        first = torch.cat([packing.last.new_zeros(1), packing.last[:-1] + 1])
        for layer in range(self.task.layers):
            x = corrupt[layer].before[place].clone()
            x[first] = clean[layer].before
            if layer < self.task.layers - 1:
                x = self._enter(x, packing, layer, clean[layer], corrupt[layer])
            grid[layer] = self.onward(x, packing, layer + 1, corrupt)
        return grid

    def _enter(
        self, x: torch.Tensor, packing: Packing, layer: int, clean: Stage, corrupt: Stage
    ) -> torch.Tensor:
        """Run the patched block: only the patched token has new queries, keys and values."""
        block, each = self.blocks[layer], torch.arange(self.length)
        filled = []
        for old, new in ((corrupt.q, clean.q), (corrupt.k, clean.k), (corrupt.v, clean.v)):
            whole = old.expand(packing.rows, self.length, self.width).clone()
            whole[each, each] = new[0]
            filled.append(whole)
        z = self.attend(*filled, causal=True)
        x = x + affine(z[packing.live], block.attn.c_proj)
        return x + mlp(x, block)

    @no_grad
    def heads(self) -> torch.Tensor:
        """Workload d: a head enters as a low-rank change of the stream between the halves."""
        clean, corrupt = self.stages(self.inputs.clean), self.stages(self.inputs.corrupt)
        start = int((self.inputs.clean != self.inputs.corrupt)[0].nonzero()[0])
        grid, packing = common.empty(self.task), self.pack([start] * self.task.heads)
        shape = (self.length, self.task.heads, -1)
        for layer, block in enumerate(self.blocks):
            moved = (clean[layer].z - corrupt[layer].z).view(shape)[start:].transpose(0, 1)
            weight = block.attn.c_proj.weight.view(self.task.heads, -1, self.width)
            x = (corrupt[layer].between[start:] + torch.bmm(moved, weight)).reshape(-1, self.width)
            if layer == self.task.layers - 1:
                x = x[packing.last]
                grid[layer] = self.finish(x + mlp(x, block))
            else:
                grid[layer] = self.onward(x + mlp(x, block), packing, layer + 1, corrupt)
        return grid

    def attribution(self) -> torch.Tensor:
        """Workload e: no gradients of weights, and the last block only at the last position."""
        with torch.no_grad():
            clean, _ = self._components(self.inputs.cleans, grad=False)
        corrupt, metric = self._components(self.inputs.corrupts, grad=True)
        slopes = torch.autograd.grad(metric, corrupt)
        terms = list(zip(clean, corrupt, slopes, strict=True))
        return common.attribution(self.task, terms[::2], terms[1::2])

    def _components(
        self, ids: torch.Tensor, *, grad: bool
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return z and the MLP's output of each block in turn, and the metric's sum."""
        x, found, shape = self.embed(ids), list[torch.Tensor](), (len(ids), self.length, self.width)
        for layer, block in enumerate(self.blocks):
            last, normed = layer == self.task.layers - 1, norm(x, block.ln_1)
            read = self._read_last if last else self._read
            q, k, v = read(normed.view(shape), block)
            x = x.view(shape)[:, -1] if last else x
            z = self.attend(q, k, v, causal=not last)
            if grad and layer == 0:
                z.requires_grad_()
            x = x + affine(z, block.attn.c_proj)
            written = mlp(x, block)
            found += [z, written]
            x = x + written
        return found, self.finish(x).sum()

    def _read(self, normed: torch.Tensor, block: Part) -> tuple[torch.Tensor, ...]:
        """Return q, k and v of all positions."""
        flat = normed.view(-1, self.width)
        parts = affine(flat, block.attn.c_attn).split(self.width, 1)
        return tuple(part.view(normed.shape) for part in parts)

    def _read_last(self, normed: torch.Tensor, block: Part) -> tuple[torch.Tensor, ...]:
        """Return q of the last position and k, v of all."""
        weight, bias, width = block.attn.c_attn.weight, block.attn.c_attn.bias, self.width
        flat = normed.reshape(-1, width)
        q = torch.addmm(bias[:width], normed[:, -1], weight[:, :width])
        k, v = torch.addmm(bias[width:], flat, weight[:, width:]).split(width, 1)
        return q[:, None], k.view(normed.shape), v.view(normed.shape)
