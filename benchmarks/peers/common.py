"""The model, the inputs, the timing and the report that all workers share.

Shapes: B prompts, T positions, L layers, H heads, D width, R rows of a batch.

==  =============================================================================================
a   plain forward pass, 8 x 128 tokens, logits at every position
b   the same, keeping the stream before and after every block and what attention and MLP write
c   patching of the stream into every block at every position, clean into corrupt, one pair
d   patching of every head's output (z) at all positions, the same pair
e   attribution patching of all heads (z) and MLPs (outputs), 8 pairs
f   import, building and wrapping
==  =============================================================================================
"""

from __future__ import annotations

import gc
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.peers import STARTED
from benchmarks.peers.task import Task, parse

RIGHT, WRONG = 1000, 2000
"""The metric is the difference of these two tokens' logits at the last position."""

LONG, MANY = 128, 8
"""Positions of workloads a and b; prompts of a, b and e."""

CHANGED = (3, 7, 15, 20)
"""Where a corrupt prompt of 32 tokens differs; other lengths in proportion."""

Workload = Callable[[], Any]


@dataclass(frozen=True)
class Ready:
    """A package, wrapped around the model.

    Attributes:
        version: Of the package.
        workloads: By letter; a letter that is missing has no form in this package.
        setup: Forward passes a sweep makes once, however many cells it runs.
        extra: Read after the timed runs and added to the report.
    """

    version: str
    workloads: Mapping[str, Workload]
    setup: int = 1
    extra: Callable[[], dict[str, Any]] = field(default=dict)


@dataclass(frozen=True, eq=False)
class Inputs:
    """Token ids, drawn in a fixed order from one generator.

    Attributes:
        big: ``[8, 128]``.
        clean: ``[1, T]``.
        corrupt: Its twin.
        cleans: ``[B, T]``.
        corrupts: Their twins.
    """

    big: torch.Tensor
    clean: torch.Tensor
    corrupt: torch.Tensor
    cleans: torch.Tensor
    corrupts: torch.Tensor

    def pairs(self, prompts: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the clean and corrupt prompts of the sweeps ``[prompts, T]``."""
        if prompts == 1:
            return self.clean, self.corrupt
        return self.cleans[:prompts], self.corrupts[:prompts]


def build(task: Task, attention: str = "sdpa") -> GPT2LMHeadModel:
    """Return the random model, its weights enlarged so that patches move the metric."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=task.layers,
        n_head=task.heads,
        n_embd=task.width,
        vocab_size=task.vocabulary,
        bos_token_id=task.vocabulary - 1,
        eos_token_id=task.vocabulary - 1,
        attn_implementation=attention,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("c_attn.weight"):
                weight.mul_(4)
            elif name.endswith(("c_proj.weight", "c_fc.weight")):
                weight.mul_(2)
    return model.to(device=task.device, dtype=getattr(torch, task.dtype))


def draw(task: Task) -> Inputs:
    """Draw the inputs of a task."""
    source = torch.Generator().manual_seed(1)
    count, width = max(MANY, task.prompts), task.positions
    changed = [place * width // 32 for place in CHANGED]

    def tokens(*shape: int) -> torch.Tensor:
        return torch.randint(0, task.vocabulary, shape, generator=source)

    big, clean = tokens(MANY, LONG), tokens(1, width)
    corrupt = clean.clone()
    for place in changed:
        corrupt[0, place] = tokens()
    cleans = tokens(count, width)
    corrupts = cleans.clone()
    for place in changed:
        corrupts[:, place] = tokens(count)
    return Inputs(*(t.to(task.device) for t in (big, clean, corrupt, cleans, corrupts)))


def logit_difference(logits: torch.Tensor) -> torch.Tensor:
    """Return the metric of each row."""
    return logits[..., -1, RIGHT] - logits[..., -1, WRONG]


def empty(task: Task) -> torch.Tensor:
    """Return the grid of a sweep ``[L, columns]``, nothing known yet."""
    return torch.full((task.layers, task.columns), torch.nan, device=task.device)


def chosen(task: Task, *, together: bool) -> list[torch.Tensor]:
    """Return the columns that are run in every layer, in groups that share a forward pass."""
    columns = torch.arange(0, task.columns, task.every, device=task.device)
    return [columns] if together else list(columns.split(1))


Terms = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""A component's clean value, corrupt value, and gradient in the corrupt run."""


def attribution(task: Task, heads: Iterable[Terms], mlps: Iterable[Terms]) -> torch.Tensor:
    """Return the scores of attribution patching ``[L, H + 1]``, the MLP last."""
    rows = []
    for head, mlp in zip(heads, mlps, strict=True):
        z, m = (((clean - corrupt) * slope).float() for clean, corrupt, slope in (head, mlp))
        z = z.reshape(-1, task.heads, task.width // task.heads)
        rows.append(torch.cat([z.sum((0, 2)), m.sum().view(1)]))
    return torch.stack(rows).detach()


def synchronize(task: Task) -> None:
    """Wait for the device, so that clocks tell the truth."""
    if task.device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_mb() -> float:
    """Return this process's largest resident memory in MB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count the parent's memory before the program started
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def timed(task: Task, work: Workload) -> tuple[Any, list[float], list[float]]:
    """Return the last result and the wall and CPU seconds of each repeat."""
    wall, cpu, found = [], [], None
    for _ in range(task.repeats):
        gc.collect()
        synchronize(task)
        began, used = time.perf_counter(), time.process_time()
        found = work()
        synchronize(task)
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    return found, wall, cpu


def measure(task: Task, ready: Ready) -> dict[str, Any]:
    """Run a task's workload and return its figures; times are scaled to the whole sweep."""
    work = ready.workloads[task.workload]
    # One plain pass settles the allocator; a whole extra sweep would cost too much.
    ready.workloads["a" if task.cells else task.workload]()
    found, wall, cpu = timed(task, work)
    scale = (task.cells + ready.setup) / (task.sampled + ready.setup) if task.cells else 1.0
    if task.save:
        np.save(task.save, torch.as_tensor(found).detach().float().cpu().numpy())
    return {
        "wall_s": [scale * seconds for seconds in wall],
        "cpu_s": [scale * seconds for seconds in cpu],
        "cells": task.cells,
        "sampled": task.sampled,
        **ready.extra(),
    }


def main(
    name: str,
    wrap: Callable[[Task, GPT2LMHeadModel, Inputs], Ready],
    attention: str = "sdpa",
    arguments: list[str] | None = None,
) -> None:
    """Do what the command line asks and print one line of JSON."""
    imported = time.perf_counter()
    task = parse(arguments)
    torch.set_num_threads(task.threads)
    model = build(task, attention)
    built = time.perf_counter()
    inputs = draw(task)
    began = time.perf_counter()
    ready = wrap(task, model, inputs)
    wrapped = time.perf_counter()
    report: dict[str, Any] = {
        "name": name,
        "variant": task.variant,
        "version": ready.version,
        "torch": torch.__version__,
        "workload": task.workload,
        "import_s": imported - STARTED,
        "build_s": built - imported,
        "wrap_s": wrapped - began,
        "loaded_mb": peak_mb(),
    }
    if task.workload != "f":
        report |= measure(task, ready)
        report["median_s"] = statistics.median(report["wall_s"])
    report["peak_mb"] = peak_mb()
    if task.device.startswith("cuda"):
        report["device_mb"] = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps(report), flush=True)
