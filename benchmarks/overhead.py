"""What tracing costs: paired runs against the bare model, or hooks written by hand."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.shapes import THREADS, gpt2_small
from microtome.tracing.opening import load

PAIRS = 15


def paired(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float, float]:
    """Return the median seconds of both and the median ratio of paired runs, order alternated."""
    first(), second()
    times: list[tuple[float, float]] = []
    for number in range(PAIRS):
        order = (0, 1) if number % 2 else (1, 0)
        seconds = [0.0, 0.0]
        for which in order:
            began = time.perf_counter()
            (first, second)[which]()
            seconds[which] = time.perf_counter() - began
        times.append((seconds[0], seconds[1]))
    ratio = statistics.median(a / b for a, b in times)
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times), ratio


def by_hand(module: torch.nn.Module, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Capture the residual stream into and out of every block with plain hooks."""
    kept: list[torch.Tensor] = []
    handles = []
    for block in module.transformer.h:  # type: ignore[attr-defined]
        handles.append(block.register_forward_pre_hook(lambda _m, args: kept.append(args[0])))
        handles.append(
            block.register_forward_hook(
                lambda _m, _a, out: kept.append(out if isinstance(out, torch.Tensor) else out[0])
            )
        )
    with torch.no_grad():
        module(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return kept


def table() -> str:
    """Return the table of overheads at the GPT-2-small shape, 8 x 128 tokens."""
    module = gpt2_small()
    model = load(module)
    tokens = torch.randint(0, 50257, (8, 128), generator=torch.Generator().manual_seed(1))

    def bare() -> None:
        with torch.no_grad():
            module(tokens, use_cache=False)

    rows = [
        ("trace without capture", *paired(lambda: model.trace(tokens), bare), "bare forward"),
        (
            "trace with all residual streams",
            *paired(
                lambda: model.trace(tokens, capture=["resid_pre", "resid_post"]),
                lambda: by_hand(module, tokens),
            ),
            "hooks by hand",
        ),
    ]
    lines = [
        f"Overhead, GPT-2-small shape, random weights, 8 x 128 tokens, {THREADS} threads, float32, "
        f"median of {PAIRS} pairs, load {os.getloadavg()[0]:.1f}",
        f"{'':34s}{'seconds':>9s}{'reference':>11s}{'ratio':>8s}",
    ]
    lines += [
        f"{name:34s}{a:9.3f}{b:11.3f}{ratio:8.3f}  {what}" for name, a, b, ratio, what in rows
    ]
    return "\n".join(lines) + "\n"
