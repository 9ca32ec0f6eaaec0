"""A harvest that is killed at random moments ends with the bytes of one that was not."""

from __future__ import annotations

import json
import os
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from microtome.sae import harvest
from microtome.tracing.model import Model

from ..small import code_model
from .test_harvesting import contents

KILLS = 10


def run(model: Model, folder: Path) -> None:
    stream = np.random.default_rng(0)
    texts = [stream.integers(1, 300, n).tolist() for n in stream.integers(1, 300, 60)]
    harvest(
        model, texts, sites=["mlp.in", "mlp.out"], folder=folder, context=32, shard_rows=400,
        batch_size=4, resume=True,
    )  # fmt: skip


def start(model: Model, folder: Path) -> int:
    """Harvest in a process of its own and return its number."""
    with warnings.catch_warnings():
        # the parent waits in one thread and only ends the child
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if process == 0:
        code = 1
        try:
            run(model, folder)
            code = 0
        finally:
            os._exit(code)
    return process


def listed(folder: Path) -> tuple[int, bool]:
    """Shards that the manifest lists, and whether these are all."""
    path = folder / "manifest.json"
    if not path.exists():
        return 0, False
    document = json.loads(path.read_text())
    return len(document["shards"]), document["complete"]


@pytest.mark.skipif(os.name != "posix", reason="signals are sent to a process")
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_harvests_end_with_the_same_bytes(tmp_path: Path, seed: int) -> None:
    model = code_model()
    begun = time.monotonic()
    run(model, tmp_path / "whole")
    whole_s = time.monotonic() - begun
    stream, folder = np.random.default_rng(seed), tmp_path / "killed"
    before, cut_short = 0, 0
    for _ in range(KILLS):
        process = start(model, folder)
        time.sleep(stream.uniform(0, whole_s / 4))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        shards, complete = listed(folder)
        cut_short += os.WIFSIGNALED(status) and not complete
        assert shards >= before
        before = shards
    assert cut_short >= 3
    run(model, folder)
    assert contents(folder) == contents(tmp_path / "whole")


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    model, folder = code_model(), tmp_path / "harvest"
    run(model, folder)
    whole = contents(folder)
    for name in (".tmpA1b2C3", ".acts-00000.safetensors.0a1b2c3d4e5f.tmp"):
        (folder / name).write_bytes(b"part")
    run(model, folder)
    assert contents(folder) == whole
