"""The main table once more at a billion parameters in bfloat16, where there is a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks.options import Options
from benchmarks.workloads import compare

BILLION: dict[str, Any] = {
    "layers": 18,
    "heads": 16,
    "width": 2048,
    "dtype": "bfloat16",
    "device": "cuda",
}
"""GPT-2's architecture with 1.01 billion parameters."""


def table(options: Options) -> tuple[str, Any]:
    """Return the table and its data, or one line where there is no GPU."""
    if not torch.cuda.is_available():
        return "A billion parameters in bfloat16: not run, torch sees no GPU here.\n", None
    shape = replace(options.shape(), **(BILLION | options.smaller))
    return compare(shape, options, f"a billion parameters on {torch.cuda.get_device_name()}")
