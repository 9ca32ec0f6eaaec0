"""Activation maximization: optimized texts against the corpus maximum and a random unit."""

from __future__ import annotations

import os
import time

import numpy as np
import torch
from specimens.python_code.corpus import standard_library

from microtome.attribution import Maximization, maximize, optimize_pixels
from microtome.core.seeds import rng
from microtome.models.digits import digits
from microtome.tracing.opening import load

LAYERS = (2, 3)
PER_LAYER = 5
CHARACTERS = 4000
"""Characters that are read of each file."""

CHANNEL = "module:conv3:out[neuron=3]"


def corpus() -> list[str]:
    """Return the beginnings of the library's files that no training saw."""
    files = [f for f in standard_library() if f.split == "test" and "encodings" not in f.path]
    return [f.text[:CHARACTERS] for f in files]


def table() -> str:
    """Return ten neurons of the Python-code specimen and a channel of the digits network."""
    torch.set_num_threads(1)
    model, texts, began = load("python-code"), corpus(), time.perf_counter()
    stream = rng(0, "benchmark neurons")
    found: list[Maximization] = []
    for layer in LAYERS:
        for neuron in sorted(stream.choice(model.anatomy.d_mlp, PER_LAYER, replace=False)):  # type: ignore[union-attr]
            unit = f"blocks.{layer}.mlp.act[neuron={neuron}]"
            found.append(maximize(model, unit, texts=texts, iterations=32, children=12))
    first = found[0]
    lines = [
        f"Activation maximization, python-code, texts of 12 tokens, corpus of "
        f"{first.corpus.n_tokens} held-out tokens, one thread, load {os.getloadavg()[0]:.1f}",
        f"Median cross-entropy of the corpus's windows of 12 tokens: "
        f"{first.median_cross_entropy:.2f} nats; the optimized text may have {first.limit:.2f}.",
        f"{'':27s}{'optimized':>16s}{'corpus maximum':>18s}{'random texts':>14s}"
        f"{'a random unit':>22s}",
        f"{'neuron':27s}{'act.':>8s}{'nats':>8s}{'act.':>10s}{'nats':>8s}{'act.':>14s}"
        f"{'own':>8s}{'corpus':>8s}{'here':>6s}",
        *(_row(f) for f in found),
        *_summary(found),
        f"  {time.perf_counter() - began:.0f} s",
        *_pixels(),
    ]
    return "\n".join(lines) + "\n"


def _row(f: Maximization) -> str:
    top = f.corpus.maximum
    return (
        f"{f.unit:27s}{f.best.activation:8.2f}{f.best.cross_entropy:8.2f}"
        f"{top.activation:10.2f}{top.cross_entropy or np.nan:8.2f}"
        f"{f.optimized.random.activation:14.2f}{f.random_best.activation:8.2f}"
        f"{f.random_corpus.maximum.activation:8.2f}{f.random_on_best:6.2f}\n"
        f"    {f.best.text!r}\n    corpus: {top.text[-60:]!r}"
    )


def _summary(found: list[Maximization]) -> list[str]:
    ratios = [f.best.activation / f.corpus.maximum.activation for f in found]
    fluent = sum((f.best.cross_entropy or 0) <= f.limit for f in found)
    above = sum(r > 1 for r in ratios)
    medians = [
        t.activation / f.corpus.maximum.activation
        for f in found
        if (t := f.optimized.best(f.median_cross_entropy)).cross_entropy is not None
        and t.cross_entropy <= f.median_cross_entropy
    ]
    return [
        f"  within twice the corpus median: {fluent} of {len(found)}; above the corpus maximum: "
        f"{above} of {len(found)}; median ratio to it {np.median(ratios):.2f}",
        f"  texts as fluent as the corpus median: for {len(medians)} neurons, median ratio "
        f"{np.median(medians) if medians else float('nan'):.2f}",
    ]


def _pixels() -> list[str]:
    began = time.perf_counter()
    f = optimize_pixels(load("digits-cnn"), CHANNEL, images=digits().images)
    return [
        f"Pixels, digits-cnn, {CHANNEL}: optimized {f.activation:.2f}, best training image "
        f"{f.best_activation:.2f}; random unit {f.random_unit}: optimized "
        f"{f.random_activation:.2f}, best training image {f.random_best_activation:.2f}, on this "
        f"image {f.random_on_image:.2f}",
        f"  total variation {f.total_variation:.3f}, data median {f.median_total_variation:.3f}; "
        f"{time.perf_counter() - began:.0f} s",
    ]
