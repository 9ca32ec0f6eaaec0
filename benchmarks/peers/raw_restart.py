"""Sweeps by replaying the model's own blocks: no knowledge of what is inside a block."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2LMHeadModel

from benchmarks.peers import common
from benchmarks.peers.common import Inputs
from benchmarks.peers.task import Task

no_grad = torch.no_grad()
Call = tuple[tuple[Any, ...], dict[str, Any]]


class Prefix:
    """The part of a cache that a block uses: hands back kept keys and values up to a position."""

    def __init__(self, kept: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.kept, self.start = kept, 0

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the kept keys and values before the start, then the new ones."""
        if not self.start:
            return keys, values
        rows = len(keys)
        before = [x[:, :, : self.start].expand(rows, -1, -1, -1) for x in self.kept[layer]]
        return torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)

    def get_seq_length(self, *_: object) -> int:
        """Return how many positions are kept."""
        return self.start


class Restart:
    """Sweeps that start at the patched block, and at the patched position."""

    def __init__(self, task: Task, model: GPT2LMHeadModel, inputs: Inputs) -> None:
        self.task, self.inputs = task, inputs
        self.model: Any = model
        self.blocks: list[Any] = list(model.transformer.h)
        weight = model.lm_head.weight
        self.direction = (weight[common.RIGHT].float() - weight[common.WRONG].float()).detach()

    def calls(self, ids: torch.Tensor) -> list[Call]:
        """Return the arguments each block was called with."""
        return self._record(ids, self.blocks)

    def _record(self, ids: torch.Tensor, modules: list[nn.Module]) -> list[Call]:
        found: list[Call] = []
        handles = [
            m.register_forward_pre_hook(lambda _m, a, k: found.append((a, k)), with_kwargs=True)
            for m in modules
        ]
        try:
            self.model(ids, use_cache=False, logits_to_keep=1)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def finish(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the metric of each row from the last stream at the last position ``[R, D]``."""
        norm = self.model.transformer.ln_f
        normed = F.layer_norm(stream, (self.task.width,), norm.weight, norm.bias, norm.eps)
        return normed.float() @ self.direction

    def _rest(self, stream: torch.Tensor, calls: list[Call], first: int) -> torch.Tensor:
        for block, (args, kwargs) in zip(self.blocks[first:], calls[first:], strict=True):
            stream = block(stream, *args[1:], **kwargs)
        return self.finish(stream[:, -1])

    @no_grad
    def positions(self) -> torch.Tensor:
        """Workload c."""
        grid, places = common.empty(self.task), torch.arange(self.task.positions)
        clean, corrupt = self.calls(self.inputs.clean), self.calls(self.inputs.corrupt)
        for layer, ((source, *_), _) in enumerate(clean):
            stream = corrupt[layer][0][0].expand(len(places), -1, -1).clone()
            stream[places, places] = source[0]
            grid[layer] = self._rest(stream, corrupt, layer)
        return grid

    def _sources(self) -> list[torch.Tensor]:
        """Return the clean run's z of every block ``[H, T, D / H]``."""
        outputs = [block.attn.c_proj for block in self.blocks]
        shape = (self.task.positions, self.task.heads, -1)
        return [
            a[0].view(shape).transpose(0, 1) for a, _ in self._record(self.inputs.clean, outputs)
        ]

    def _entering(
        self, layer: int, stream: torch.Tensor, source: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Run a block while the last rows' z is replaced, a head in each."""
        heads = torch.arange(self.task.heads)

        def patch(_m: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            z = inputs[0].clone().view(-1, source.shape[1], self.task.heads, source.shape[2])
            z[len(z) - self.task.heads + heads, :, heads] = source
            return (z.view(inputs[0].shape), *inputs[1:])

        handle = self.blocks[layer].attn.c_proj.register_forward_pre_hook(patch)
        try:
            return self.blocks[layer](stream, *args, **kwargs)
        finally:
            handle.remove()

    @no_grad
    def heads(self) -> torch.Tensor:
        """Workload d."""
        grid, sources = common.empty(self.task), self._sources()
        calls = self.calls(self.inputs.corrupt)
        for layer, source in enumerate(sources):
            args, kwargs = calls[layer]
            stream = args[0].expand(self.task.heads, -1, -1)
            stream = self._entering(layer, stream, source, *args[1:], **kwargs)
            grid[layer] = self._rest(stream, calls, layer + 1)
        return grid

    def prefix(self) -> Prefix:
        """Return the corrupt run's keys and values."""
        run = self.model(self.inputs.corrupt, use_cache=True, logits_to_keep=1)
        return Prefix([(layer.keys, layer.values) for layer in run.past_key_values.layers])

    def _mask(self, start: int) -> torch.Tensor:
        """Return which keys a suffix sees ``[1, 1, T - start, T]``."""
        width, dtype = self.task.positions, self.model.dtype
        mask = torch.full((width - start, width), torch.finfo(dtype).min, dtype=dtype)
        return mask.triu(start + 1)[None, None].to(self.task.device)

    @no_grad
    def positions_suffix(self) -> torch.Tensor:
        """Workload c: position outermost; the runs of a block join those on their way."""
        grid, prefix = common.empty(self.task), self.prefix()
        clean, corrupt = self.calls(self.inputs.clean), self.calls(self.inputs.corrupt)
        for start in range(self.task.positions):
            prefix.start, mask = start, self._mask(start)
            stream = corrupt[0][0][0].new_empty(0, self.task.positions - start, self.task.width)
            for layer, block in enumerate(self.blocks):
                new = corrupt[layer][0][0][:, start:].clone()
                new[0, 0] = clean[layer][0][0][0, start]
                stream = torch.cat([stream, new])
                stream = block(stream, past_key_values=prefix, attention_mask=mask)
            grid[:, start] = self.finish(stream[:, -1])
        return grid

    @no_grad
    def heads_suffix(self) -> torch.Tensor:
        """Workload d: from the first position at which the prompts differ."""
        start = int((self.inputs.clean != self.inputs.corrupt)[0].nonzero()[0])
        prefix, mask, sources = self.prefix(), self._mask(start), self._sources()
        calls = self.calls(self.inputs.corrupt)
        prefix.start = start
        stream = calls[0][0][0].new_empty(0, self.task.positions - start, self.task.width)
        for layer, source in enumerate(sources):
            new = calls[layer][0][0][:, start:].expand(self.task.heads, -1, -1)
            stream = self._entering(
                layer, torch.cat([stream, new]), source[:, start:],
                past_key_values=prefix, attention_mask=mask,
            )  # fmt: skip
        return self.finish(stream[:, -1]).view(self.task.layers, self.task.heads)
