"""nnsight: ``default`` is one trace for each patched run, ``batched`` one for each layer."""

from __future__ import annotations

from importlib.metadata import version

import torch
from nnsight import NNsight, save
from transformers import GPT2LMHeadModel

from benchmarks.peers import common
from benchmarks.peers.common import Inputs, Ready
from benchmarks.peers.task import Task

no_grad = torch.no_grad()


class Subject:
    """The workloads. Bodies of a trace are compiled anew, so they stay plain."""

    def __init__(self, task: Task, model: NNsight, inputs: Inputs) -> None:
        self.task, self.model, self.inputs = task, model, inputs
        self.together = task.variant == "batched"

    @no_grad
    def forward(self) -> torch.Tensor:
        """Workload a."""
        with self.model.trace(input_ids=self.inputs.big, use_cache=False):
            logits = save(self.model.output.logits)
        return logits[:, -1]

    @no_grad
    def capture(self) -> torch.Tensor:
        """Workload b."""
        model, layers = self.model, self.task.layers
        with model.trace(input_ids=self.inputs.big, use_cache=False):
            kept = save({})
            for layer in range(layers):
                block = model.transformer.h[layer]
                kept["resid_pre", layer] = block.input
                kept["attn.out", layer] = block.attn.output[0]
                kept["mlp.out", layer] = block.mlp.output
                kept["resid_post", layer] = block.output
        return kept["resid_post", layers - 1][:, -1]

    @no_grad
    def positions(self) -> torch.Tensor:
        """Workload c."""
        model, grid, layers = self.model, common.empty(self.task), self.task.layers
        with model.trace(input_ids=self.inputs.clean, use_cache=False):
            kept = save({})
            for layer in range(layers):
                kept[layer] = model.transformer.h[layer].input
        for layer in range(layers):
            for places in common.chosen(self.task, together=self.together):
                ids = self.inputs.corrupt.expand(len(places), -1)
                rows = torch.arange(len(places))
                with model.trace(input_ids=ids, use_cache=False):
                    model.transformer.h[layer].input[rows, places] = kept[layer][0, places]
                    metric = save(common.logit_difference(model.output.logits))
                grid[layer, places] = metric.float()
        return grid

    @no_grad
    def heads(self) -> torch.Tensor:
        """Workload d."""
        model, grid, layers = self.model, common.empty(self.task), self.task.layers
        with model.trace(input_ids=self.inputs.clean, use_cache=False):
            kept = save({})
            for layer in range(layers):
                kept[layer] = model.transformer.h[layer].attn.c_proj.input
        for layer in range(layers):
            source = kept[layer].view(self.task.positions, self.task.heads, -1)
            for heads in common.chosen(self.task, together=self.together):
                rows = torch.arange(len(heads))
                ids = self.inputs.corrupt.expand(len(heads), -1)
                with model.trace(input_ids=ids, use_cache=False):
                    z = model.transformer.h[layer].attn.c_proj.input.clone()
                    split = z.view(len(heads), *source.shape)
                    split[rows, :, heads] = source[:, heads].transpose(0, 1)
                    model.transformer.h[layer].attn.c_proj.input = split.view(z.shape)
                    metric = save(common.logit_difference(model.output.logits))
                grid[layer, heads] = metric.float()
        return grid

    def attribution(self) -> torch.Tensor:
        """Workload e."""
        model, layers = self.model, self.task.layers
        with torch.no_grad(), model.trace(input_ids=self.inputs.cleans, use_cache=False):
            clean = save([])
            for layer in range(layers):
                clean.append(model.transformer.h[layer].attn.c_proj.input)
                clean.append(model.transformer.h[layer].mlp.output)
        with model.trace(input_ids=self.inputs.corrupts, use_cache=False):
            corrupt = save([])
            for layer in range(layers):
                corrupt.append(model.transformer.h[layer].attn.c_proj.input)
                corrupt.append(model.transformer.h[layer].mlp.output)
            metric = save(common.logit_difference(model.output.logits).sum())
        slopes = torch.autograd.grad(metric, corrupt)
        terms = list(zip(clean, corrupt, slopes, strict=True))
        return common.attribution(self.task, terms[::2], terms[1::2])


def wrap(task: Task, model: GPT2LMHeadModel, inputs: Inputs) -> Ready:
    """Return the workloads of one variant."""
    subject = Subject(task, NNsight(model), inputs)
    return Ready(
        version("nnsight"),
        {
            "a": subject.forward,
            "b": subject.capture,
            "c": subject.positions,
            "d": subject.heads,
            "e": subject.attribution,
        },
    )


if __name__ == "__main__":
    common.main("nnsight", wrap)
