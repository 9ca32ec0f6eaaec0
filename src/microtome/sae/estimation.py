"""Estimates of the encoder's product in 8-bit or 16-bit numbers, where they are faster.

A processor with AVX2 alone multiplies bytes more than twice as fast as float32 and bfloat16 slower;
one with AMX, or a GPU, is fastest in bfloat16. What is true here is measured once, in a few
milliseconds.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, cast

import torch
from torch import Tensor

Precision = Literal["float32", "bfloat16", "int8"]

Estimate = Callable[[Tensor], Tensor]


def estimator(precision: Precision, encoder: Tensor, bias: Tensor) -> Estimate | None:
    """Return a function from inputs ``[row, d_in]`` to estimates of ``inputs @ encoder.T + bias``.

    Args:
        precision: Of the products; float32 has none to estimate.
        encoder: ``[d_sae, d_in]``, float32.
        bias: ``[d_sae]``.

    Returns:
        The function, None if this torch or these weights have no such product.
    """
    if precision == "bfloat16":
        short, offset = encoder.to(torch.bfloat16).T, bias.to(torch.bfloat16)
        return lambda inputs: torch.addmm(offset, inputs.to(torch.bfloat16), short)
    if precision == "int8":
        return _bytes(encoder, bias)
    return None


def _bytes(encoder: Tensor, bias: Tensor) -> Estimate | None:
    """Return the product with weights in 8 bits and inputs in 7, which cannot overflow."""
    scale = float(encoder.abs().amax() / 127)
    if encoder.device.type != "cpu" or not 0 < scale < float("inf"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that torch means to move these products elsewhere
            short = torch.quantize_per_tensor(encoder, scale, 0, torch.qint8)
            packed = _packed(short, bias)
        product = torch.ops.quantized.linear_dynamic
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    return lambda inputs: cast(Tensor, product(inputs, packed, True))


def _packed(short: Tensor, bias: Tensor) -> Any:
    """Return the weights as the product wants them; oneDNN packs five times faster than others."""
    before = torch.backends.quantized.engine
    try:
        if "onednn" in torch.backends.quantized.supported_engines:
            torch.backends.quantized.engine = "onednn"
        return torch.ops.quantized.linear_prepack(short, bias)
    finally:
        torch.backends.quantized.engine = before


@cache
def fastest_precision(device: str) -> Precision:
    """Return the precision in which this device multiplies fastest."""
    where = torch.device(device)
    inputs, encoder = torch.ones(64, 512, device=where), torch.ones(1024, 512, device=where)
    bias = torch.zeros(1024, device=where)
    took: dict[Precision, float] = {"float32": _seconds(lambda x: x @ encoder.T, inputs)}
    for precision in ("bfloat16", "int8"):
        estimate = estimator(precision, encoder, bias)
        if estimate is not None and _right(estimate, inputs):
            took[precision] = 1.25 * _seconds(estimate, inputs)  # candidates cost something, too
    return min(took, key=lambda name: took[name])


def _right(estimate: Estimate, inputs: Tensor) -> bool:
    """Return whether a product of ones comes out as it must."""
    return bool(((estimate(inputs).float() / inputs.shape[1] - 1).abs() < 0.02).all())


def _seconds(product: Estimate, inputs: Tensor) -> float:
    """Return the least time of a few tries."""
    product(inputs)
    found = []
    for _ in range(3):
        began = time.perf_counter()
        float(product(inputs)[0, 0])
        found.append(time.perf_counter() - began)
    return min(found)
