"""The pairs that edges are scored on: the same tokens in every worker, three positions changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from transformers import GPT2LMHeadModel

from benchmarks.peers import common
from benchmarks.peers.task import Task, parse

CHANGED = (3, 7, 11)
"""Where a corrupt prompt of 16 tokens differs."""


def pairs(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Return clean and corrupt prompts ``[pair, position]``."""
    source = torch.Generator().manual_seed(2)
    clean = torch.randint(0, task.vocabulary, (task.prompts, task.positions), generator=source)
    corrupt = clean.clone()
    places = [place for place in CHANGED if place < task.positions]
    corrupt[:, places] = torch.randint(
        0, task.vocabulary, (task.prompts, len(places)), generator=source
    )
    return clean, corrupt


Way = Callable[[], Any]


def main(
    ways: Callable[[Task, GPT2LMHeadModel], Mapping[str, Way]], *, settle: bool = True
) -> None:
    """Time one way of a worker and print one line of JSON; a matrix of scores is saved.

    Args:
        ways: From the task and the model to the ways by name.
        settle: Run it once before it is timed.
    """
    task = parse()
    torch.set_num_threads(task.threads)
    model = common.build(task)
    work = ways(task, model)[task.variant]
    loaded = common.peak_mb()
    if settle:
        work()
    found, wall, cpu = common.timed(task, work)
    if task.save and found is not None:
        np.save(task.save, np.nan_to_num(np.asarray(found, dtype=np.float64)))
    report = {"variant": task.variant, "wall_s": wall, "cpu_s": cpu, "loaded_mb": loaded}
    print(json.dumps({**report, "peak_mb": common.peak_mb()}), flush=True)
