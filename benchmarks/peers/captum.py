"""captum: patching is ablation of a layer towards the clean run's values.

``default`` runs one ablation in a forward pass, ``batched`` all of a layer. Every unit of a layer
is ablated, so a sweep cannot be sampled. A plain forward pass is that of the unwrapped model.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from captum._utils.gradient import compute_layer_gradients_and_eval
from captum.attr import LayerActivation, LayerFeatureAblation
from torch import nn
from transformers import GPT2LMHeadModel

from benchmarks.peers import common
from benchmarks.peers.common import Inputs, Ready, Terms
from benchmarks.peers.task import Task

no_grad = torch.no_grad()


def only(value: Any) -> torch.Tensor:
    """Return the one tensor that captum wraps in a tuple."""
    return value[0] if isinstance(value, tuple) else value


class Subject:
    """The workloads."""

    def __init__(self, task: Task, model: GPT2LMHeadModel, inputs: Inputs) -> None:
        self.task, self.model, self.inputs = task, model, inputs
        self.trunk: Any = model.transformer
        self.blocks = list[Any](model.transformer.h)
        self.outputs = [block.attn.c_proj for block in self.blocks]

    def metric(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the metric of each row."""
        return common.logit_difference(self.model(ids, use_cache=False).logits)

    @no_grad
    def forward(self) -> torch.Tensor:
        """Workload a."""
        return self.model(self.inputs.big, use_cache=False).logits[:, -1]

    @no_grad
    def capture(self) -> torch.Tensor:
        """Workload b; a stream after a block is the one before the next, so 37 tensors suffice."""
        kept: list[nn.Module] = [self.trunk.drop]
        for block in self.blocks:  # it cannot copy the pair that attention modules return
            kept += [block.attn.resid_dropout, block.mlp, block]

        def logits(ids: torch.Tensor) -> torch.Tensor:
            return self.model(ids, use_cache=False).logits

        return LayerActivation(logits, kept).attribute(self.inputs.big)[-1][:, -1]

    def _ablate(self, layer: nn.Module, mask: torch.Tensor, *, entering: bool) -> torch.Tensor:
        """Return by how much each unit's patch lowers the metric ``[T, D]``."""
        clean = LayerActivation(self.metric, layer).attribute(
            self.inputs.clean, attribute_to_layer_input=entering
        )
        together = self.task.columns if self.task.variant == "batched" else 1
        effect = LayerFeatureAblation(self.metric, layer).attribute(
            self.inputs.corrupt,
            layer_baselines=clean,
            layer_mask=mask,
            attribute_to_layer_input=entering,
            perturbations_per_eval=together,
        )
        return only(effect).view(self.task.positions, self.task.width)

    def _mask(self, units: torch.Tensor) -> torch.Tensor:
        shape = (1, self.task.positions, self.task.width)
        return units.to(self.task.device).expand(shape).contiguous()

    @no_grad
    def positions(self) -> torch.Tensor:
        """Workload c: the stream into a block is what the module before it gives."""
        grid, base = common.empty(self.task), self.metric(self.inputs.corrupt)
        mask = self._mask(torch.arange(self.task.positions).view(1, -1, 1))
        for row, layer in enumerate([self.trunk.drop, *self.blocks[:-1]]):
            grid[row] = (base - self._ablate(layer, mask, entering=False)[:, 0]).float()
        return grid

    @no_grad
    def heads(self) -> torch.Tensor:
        """Workload d."""
        grid, base = common.empty(self.task), self.metric(self.inputs.corrupt)
        each = self.task.width // self.task.heads
        mask = self._mask(torch.arange(self.task.heads).repeat_interleave(each).view(1, 1, -1))
        for row, layer in enumerate(self.outputs):
            grid[row] = (base - self._ablate(layer, mask, entering=True)[0, ::each]).float()
        return grid

    def _terms(self, layers: list[nn.Module], *, entering: bool) -> list[Terms]:
        with torch.no_grad():
            clean = LayerActivation(self.metric, layers).attribute(
                self.inputs.cleans, attribute_to_layer_input=entering
            )
        slopes, corrupt = compute_layer_gradients_and_eval(
            self.metric, layers, self.inputs.corrupts, attribute_to_layer_input=entering
        )[:2]
        return [(only(a), only(b), only(c)) for a, b, c in zip(clean, corrupt, slopes, strict=True)]

    def attribution(self) -> torch.Tensor:
        """Workload e: two backward passes, for inputs of layers and outputs are apart."""
        heads = self._terms(self.outputs, entering=True)
        mlps = self._terms([block.mlp for block in self.blocks], entering=False)
        return common.attribution(self.task, heads, mlps)


def wrap(task: Task, model: GPT2LMHeadModel, inputs: Inputs) -> Ready:
    """Return the workloads of one variant."""
    subject = Subject(task, model, inputs)
    return Ready(
        version("captum"),
        {
            "a": subject.forward,
            "b": subject.capture,
            "c": subject.positions,
            "d": subject.heads,
            "e": subject.attribution,
        },
    )


if __name__ == "__main__":
    common.main("captum", wrap)
