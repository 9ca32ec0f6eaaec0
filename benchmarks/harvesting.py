"""Harvesting activations into shards and reading them back, against a bare loop over the model."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.maximization import corpus
from microtome.sae import ActivationStore, harvest
from microtome.tracing.model import Model
from microtome.tracing.opening import load

CONTEXT = 128
BATCH = 32
TOKENS = 65_536
READ = 300
"""Batches of 2,048 rows that are read back."""


def pieces(model: Model) -> list[list[int]]:
    """Return full rows of tokens, so that both ways run the same passes."""
    rows: list[list[int]] = []
    for text in corpus():
        ids = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        rows += [ids[i : i + CONTEXT] for i in range(0, len(ids) - CONTEXT + 1, CONTEXT)]
    return rows[: TOKENS // CONTEXT]


def bare(model: Model, rows: list[list[int]], layer: int, path: Path) -> float:
    """Run the whole model with one hook, keep what it sees and write one file; CPU-seconds."""
    kept: list[torch.Tensor] = []
    part = model.module.get_submodule(f"transformer.h.{layer}.mlp")
    hook = part.register_forward_hook(lambda _m, _a, output: kept.append(output.half()))
    begun = time.process_time()
    with torch.no_grad():
        for start in range(0, len(rows), BATCH):
            model.module(torch.tensor(rows[start : start + BATCH]), logits_to_keep=1)
    save_file({"acts": torch.cat(kept).flatten(0, 1)}, path)
    hook.remove()
    return time.process_time() - begun


def reading(store: ActivationStore) -> str:
    """Return a line about shuffled batches of a store."""
    with contextlib.closing(store.batches(2048, seed=0)) as stream:
        next(stream)
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in itertools.islice(stream, READ):
            pass
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    width = store.width(store.sites[0])
    return (
        f"  {READ} shuffled batches of 2,048 rows [{width}] float32 from "
        f"{len(store.manifest.shards)} shards: {1e3 * cpu / READ:.2f} ms of CPU each, "
        f"{1e3 * wall / READ:.2f} ms of wall time, {READ * 2048 / cpu / 1e6:.1f} million rows "
        "per CPU-second"
    )


def table() -> str:
    """Return tokens per CPU-second by block, and what a batch costs."""
    torch.set_num_threads(1)
    model = load("python-code")
    rows = pieces(model)
    tokens = sum(map(len, rows))
    lines = [
        f"Harvesting mlp.out of python-code, {tokens:,} tokens, contexts of {CONTEXT}, batches of "
        f"{BATCH}, one thread, load {os.getloadavg()[0]:.1f}; tokens per CPU-second",
        f"{'block':8s}{'bare loop':>12s}{'harvest':>12s}{'ratio':>8s}",
    ]
    with tempfile.TemporaryDirectory() as place:
        bare(model, rows[:BATCH], 0, Path(place) / "warm.safetensors")
        for layer in range(model.anatomy.n_layers):  # type: ignore[union-attr]
            reference = tokens / bare(model, rows, layer, Path(place) / "bare.safetensors")
            folder = Path(place) / str(layer)
            begun = time.process_time()
            store = harvest(
                model, rows, sites=f"blocks.{layer}.mlp.out", folder=folder, batch_size=BATCH
            )
            ours = tokens / (time.process_time() - begun)
            lines.append(f"{layer:<8d}{reference:12,.0f}{ours:12,.0f}{ours / reference:8.2f}")
        lines.append(reading(store))
    return "\n".join(lines) + "\n"
