"""pyvene: ``default`` is one location for each call, ``batched`` one call for each layer.

It has no attribution patching, and a plain forward pass is that of the unwrapped model. Collecting
needs ``max_number_of_units``: without it, 6 of 768 dimensions come back and nothing is said.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pyvene
import torch
from transformers import GPT2LMHeadModel

from benchmarks.peers import common
from benchmarks.peers.common import Inputs, Ready
from benchmarks.peers.task import Task

no_grad = torch.no_grad()
COMPONENTS = ("block_input", "attention_output", "mlp_output", "block_output")


class Subject:
    """The workloads; the clean prompt is the source, the corrupt one the base."""

    def __init__(self, task: Task, model: GPT2LMHeadModel, inputs: Inputs) -> None:
        self.task, self.model, self.inputs = task, model, inputs
        self.streams = [self._exchange(n, "block_input", "pos") for n in range(task.layers)]

    def _exchange(self, layer: int, component: str, unit: str) -> Any:
        place = {"layer": layer, "component": component, "unit": unit}
        kind = {"intervention_type": pyvene.VanillaIntervention}
        return pyvene.IntervenableModel(pyvene.IntervenableConfig([{**place, **kind}]), self.model)

    @no_grad
    def forward(self) -> torch.Tensor:
        """Workload a."""
        return self.model(self.inputs.big, use_cache=False).logits[:, -1]

    @no_grad
    def capture(self) -> torch.Tensor:
        """Workload b."""
        config = [
            {
                "layer": layer,
                "component": component,
                "unit": "pos",
                "max_number_of_units": common.LONG,
                "intervention_type": pyvene.CollectIntervention,
            }
            for layer in range(self.task.layers)
            for component in COMPONENTS
        ]
        model = pyvene.IntervenableModel(pyvene.IntervenableConfig(config), self.model)
        everywhere = [[list(range(common.LONG))] * common.MANY] * len(config)
        (_, kept), _ = model({"input_ids": self.inputs.big}, unit_locations={"base": everywhere})
        return kept[-1].reshape(common.MANY, common.LONG, self.task.width)[:, -1]

    def _run(self, model: Any, rows: int, locations: Any) -> torch.Tensor:
        _, found = model(
            {"input_ids": self.inputs.corrupt.expand(rows, -1)},
            [{"input_ids": self.inputs.clean.expand(rows, -1)}],
            {"sources->base": (locations, locations)},
        )
        return common.logit_difference(found.logits).float()

    def _groups(self) -> list[torch.Tensor]:
        return common.chosen(self.task, together=self.task.variant == "batched")

    @no_grad
    def positions(self) -> torch.Tensor:
        """Workload c."""
        grid = common.empty(self.task)
        for layer in range(self.task.layers):
            for places in self._groups():
                locations = [[[place] for place in places.tolist()]]
                grid[layer, places] = self._run(self.streams[layer], len(places), locations)
        return grid

    @no_grad
    def heads(self) -> torch.Tensor:
        """Workload d."""
        grid, everywhere = common.empty(self.task), list(range(self.task.positions))
        for layer in range(self.task.layers):
            model = self._exchange(layer, "head_attention_value_output", "h.pos")
            for heads in self._groups():
                rows = len(heads)
                locations = [[[[head] for head in heads.tolist()], [everywhere] * rows]]
                grid[layer, heads] = self._run(model, rows, locations)
        return grid


def wrap(task: Task, model: GPT2LMHeadModel, inputs: Inputs) -> Ready:
    """Return the workloads of one variant."""
    subject = Subject(task, model, inputs)
    return Ready(
        version("pyvene"),
        {
            "a": subject.forward,
            "b": subject.capture,
            "c": subject.positions,
            "d": subject.heads,
        },
        setup=0,
    )


if __name__ == "__main__":
    common.main("pyvene", wrap, attention="eager")
