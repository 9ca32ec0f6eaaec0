"""microtome, through its public interface alone: ``generic`` leaves out the fast rule."""

from __future__ import annotations

from typing import Any

import torch
import xarray  # noqa: F401  # the first result loads it; it counts as import, not as sweep
from transformers import GPT2LMHeadModel

import microtome as mt
from benchmarks.peers import common
from benchmarks.peers.common import Inputs, Ready
from benchmarks.peers.task import Task
from microtome.attribution import attribution_patching
from microtome.behaviors import Example, Examples
from microtome.sweeps import RULES, sweep
from microtome.tracing.model import Model

KEPT = ("resid_pre", "attn.out", "mlp.out", "resid_post")


def examples(clean: torch.Tensor, corrupt: torch.Tensor) -> Examples:
    """Return pairs of prompts ``[B, T]`` as examples."""
    pairs = zip(clean.tolist(), corrupt.tolist(), strict=True)
    return Examples(
        tuple(
            Example(
                index=number,
                clean=tuple(a),
                corrupt=tuple(b),
                answers=((common.RIGHT,),),
                wrongs=((common.WRONG,),),
                cluster=str(number),
                template="random",
                split="test",
                roles={},
                features={},
                text="",
            )
            for number, (a, b) in enumerate(pairs)
        )
    )


class Subject:
    """The workloads, and what the last sweep's certificate said."""

    def __init__(self, task: Task, model: Model, inputs: Inputs) -> None:
        self.task, self.model, self.inputs = task, model, inputs
        self.rules: Any = (
            None if task.variant == "fast" else [rule for rule in map(str, RULES) if rule != "fast"]
        )
        self.said: dict[str, Any] = {}

    def forward(self) -> torch.Tensor:
        """Workload a."""
        logits = self.model.trace(self.inputs.big).logits
        assert logits is not None
        return logits[:, -1]

    def capture(self) -> torch.Tensor:
        """Workload b."""
        trace = self.model.trace(self.inputs.big, capture=KEPT)
        return trace[f"blocks.{self.task.layers - 1}.resid_post"][:, -1]

    def swept(self, site: str, over: Any) -> torch.Tensor:
        """Workloads c and d, ``[prompts, L, columns]`` (without the first axis for one)."""
        pairs = examples(*self.inputs.pairs(self.task.prompts))
        found = sweep(self.model, pairs, site, over=over, base="corrupt", rules=self.rules)
        self.said = dict(found.certificate)
        grid = torch.from_numpy(found.values.to_numpy())
        return grid[0] if len(grid) == 1 else grid

    def attribution(self) -> torch.Tensor:
        """Workload e."""
        inputs = self.inputs
        pairs = examples(inputs.cleans[: common.MANY], inputs.corrupts[: common.MANY])
        scores = attribution_patching(self.model, pairs, base="corrupt")
        return torch.from_numpy(scores.values).sum(0).view(self.task.layers, -1)

    def extra(self) -> dict[str, Any]:
        """Return what the certificate says, so far as it says it."""
        names = {
            "seconds_certifying": "certificate_s",
            "rules": "rules",
            "difference": "certified",
            "tolerance": "tolerance",
            "passed": "passed",
            "fell_back_from": "fell_back_from",
        }
        return {new: self.said[old] for old, new in names.items() if old in self.said}


def wrap(task: Task, model: GPT2LMHeadModel, inputs: Inputs) -> Ready:
    """Return the workloads of one variant."""
    subject = Subject(task, mt.load(model), inputs)
    return Ready(
        mt.__version__,
        {
            "a": subject.forward,
            "b": subject.capture,
            "c": lambda: subject.swept("resid_pre", "pos"),
            "d": lambda: subject.swept("attn.z", "head"),
            "e": subject.attribution,
        },
        extra=subject.extra,
    )


if __name__ == "__main__":
    common.main("microtome", wrap)
