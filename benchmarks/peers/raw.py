"""PyTorch on the untouched model: from hooks by hand to what is practically possible.

========  ===================================================================================
naive     one hooked forward pass for each patched run
batched   the runs of one layer share a hooked forward pass
restart   batched, and only the blocks from the patched one on
kv        restart, and only the positions from the patched one on, against kept keys and values
smart     code for GPT-2 alone: see ``raw_smart.py``
========  ===================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from transformers import GPT2LMHeadModel

from benchmarks.peers import common, raw_restart, raw_smart
from benchmarks.peers.common import Inputs, Ready, Terms, Workload
from benchmarks.peers.task import Task

Hook = tuple[nn.Module, bool, Callable[..., object]]
"""A module, whether before it (or after it), and what is called."""

no_grad = torch.no_grad()


class Hooked:
    """The workloads by hooks that are registered for each forward pass."""

    def __init__(self, task: Task, model: GPT2LMHeadModel, inputs: Inputs) -> None:
        self.task, self.inputs = task, inputs
        self.model: Any = model
        self.blocks: list[Any] = list(model.transformer.h)

    def run(self, ids: torch.Tensor, hooks: list[Hook], keep: int = 0) -> torch.Tensor:
        """Return the logits of one forward pass under hooks."""
        handles = [
            m.register_forward_pre_hook(f) if before else m.register_forward_hook(f)
            for m, before, f in hooks
        ]
        try:
            return self.model(ids, use_cache=False, logits_to_keep=keep).logits
        finally:
            for handle in handles:
                handle.remove()

    @no_grad
    def forward(self) -> torch.Tensor:
        """Workload a."""
        return self.model(self.inputs.big, use_cache=False).logits[:, -1]

    @no_grad
    def capture(self) -> torch.Tensor:
        """Workload b."""
        kept: dict[tuple[str, int], torch.Tensor] = {}

        def before(key: tuple[str, int], _m: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            kept[key] = args[0]

        def after(key: tuple[str, int], _m: nn.Module, _a: object, out: Any) -> None:
            kept[key] = out[0] if isinstance(out, tuple) else out

        hooks: list[Hook] = []
        for layer, block in enumerate(self.blocks):
            hooks += [
                (block, True, partial(before, ("resid_pre", layer))),
                (block.attn, False, partial(after, ("attn.out", layer))),
                (block.mlp, False, partial(after, ("mlp.out", layer))),
                (block, False, partial(after, ("resid_post", layer))),
            ]
        self.run(self.inputs.big, hooks)
        return kept["resid_post", self.task.layers - 1][:, -1]

    def store(self, ids: torch.Tensor, modules: list[nn.Module]) -> list[torch.Tensor]:
        """Return what went into each module."""
        kept: list[torch.Tensor] = []
        self.run(ids, [(m, True, lambda _m, args: kept.append(args[0])) for m in modules], keep=1)
        return kept

    @no_grad
    def positions(self, together: bool) -> torch.Tensor:
        """Workload c, for each pair ``[prompts, L, T]`` (without the first axis for one)."""
        pairs = zip(*self.inputs.pairs(self.task.prompts), strict=True)
        grids = [self._positions(a[None], b[None], together) for a, b in pairs]
        return grids[0] if len(grids) == 1 else torch.stack(grids)

    def _positions(
        self, clean: torch.Tensor, corrupt: torch.Tensor, together: bool
    ) -> torch.Tensor:
        grid, kept = common.empty(self.task), self.store(clean, list(self.blocks))
        for layer, block in enumerate(self.blocks):
            for places in common.chosen(self.task, together=together):

                def patch(_m, args, layer=layer, places=places):  # type: ignore[no-untyped-def]
                    stream = args[0].clone()
                    stream[torch.arange(len(places)), places] = kept[layer][0, places]
                    return (stream, *args[1:])

                logits = self.run(corrupt.expand(len(places), -1), [(block, True, patch)])
                grid[layer, places] = common.logit_difference(logits).float()
        return grid

    @no_grad
    def heads(self, together: bool) -> torch.Tensor:
        """Workload d ``[L, H]``."""
        grid, clean, corrupt = common.empty(self.task), self.inputs.clean, self.inputs.corrupt
        outputs = [block.attn.c_proj for block in self.blocks]
        kept = self.store(clean, outputs)
        for layer, module in enumerate(outputs):
            source = kept[layer].view(self.task.positions, self.task.heads, -1)
            for heads in common.chosen(self.task, together=together):

                def patch(_m, args, source=source, heads=heads):  # type: ignore[no-untyped-def]
                    z = args[0].clone().view(len(heads), *source.shape)
                    z[torch.arange(len(heads)), :, heads] = source[:, heads].transpose(0, 1)
                    return (z.view(args[0].shape), *args[1:])

                logits = self.run(corrupt.expand(len(heads), -1), [(module, True, patch)])
                grid[layer, heads] = common.logit_difference(logits).float()
        return grid

    def attribution(self) -> torch.Tensor:
        """Workload e."""
        with torch.no_grad():
            clean = self._components(self.inputs.cleans, grad=False)[0]
        corrupt, metric = self._components(self.inputs.corrupts, grad=True)
        metric.backward()
        terms: list[Terms] = [(a, b, b.grad) for a, b in zip(clean, corrupt, strict=True)]  # type: ignore[misc]
        return common.attribution(self.task, terms[::2], terms[1::2])

    def _components(
        self, ids: torch.Tensor, *, grad: bool
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return z and the MLP's output of each block in turn, and the metric's sum."""
        kept: list[torch.Tensor] = []

        def keep(value: torch.Tensor) -> None:
            if grad:
                if not value.requires_grad:
                    value.requires_grad_()
                value.retain_grad()
            kept.append(value)

        hooks: list[Hook] = []
        for block in self.blocks:
            hooks.append((block.attn.c_proj, True, lambda _m, args: keep(args[0])))
            hooks.append((block.mlp, False, lambda _m, _a, out: keep(out)))
        return kept, common.logit_difference(self.run(ids, hooks)[: common.MANY]).sum()


def wrap(task: Task, model: GPT2LMHeadModel, inputs: Inputs) -> Ready:
    """Return the workloads of one variant."""
    model.requires_grad_(False)
    hooked = Hooked(task, model, inputs)
    restart = raw_restart.Restart(task, model, inputs)
    smart = raw_smart.Smart(task, model, inputs)
    sweeps: dict[str, tuple[Workload, Workload]] = {
        "naive": (partial(hooked.positions, False), partial(hooked.heads, False)),
        "batched": (partial(hooked.positions, True), partial(hooked.heads, True)),
        "restart": (restart.positions, restart.heads),
        "kv": (restart.positions_suffix, restart.heads_suffix),
        "smart": (smart.positions, smart.heads),
    }
    positions, heads = sweeps[task.variant]
    return Ready(
        f"torch {torch.__version__}, transformers {transformers.__version__}",
        {
            "a": hooked.forward,
            "b": hooked.capture,
            "c": positions,
            "d": heads,
            "e": smart.attribution if task.variant == "smart" else hooked.attribution,
        },
        setup=task.prompts,
    )


if __name__ == "__main__":
    common.main("raw", wrap)
