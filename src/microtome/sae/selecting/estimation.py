"""Estimates of the encoder's product in 8-bit or 16-bit numbers, where they are faster.

A processor with AVX2 alone multiplies bytes more than twice as fast as float32 and bfloat16 slower;
one with AMX, or a GPU, is fastest in bfloat16. What is true here is measured once, in a few
milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, cast

import torch
from torch import Tensor

Precision = Literal["float32", "bfloat16", "int8"]

Estimate = Callable[[Tensor], Tensor]

BYTE_ROWS = 256
"""Rows whose products are formed at a time in bytes: they stay in the cache."""

TRIES, SLOWER, EXTRA = 12, 3.0, 1.1
"""Times that each product is tried to find out which is fastest; how many times slower than the
fastest it may be to be tried again; what taking candidates adds to an estimate, as a factor."""

MIDDLE = 64
"""The byte that stands for an input of 0."""


def estimator(precision: Precision, encoder: Tensor, bias: Tensor) -> Estimate | None:
    """Return a function from inputs ``[row, d_in]`` to estimates of ``inputs @ encoder.T + bias``.

    Args:
        precision: Of the products; float32 has none to estimate.
        encoder: ``[d_sae, d_in]``, float32.
        bias: ``[d_sae]``.

    Returns:
        The function, for int8 a :class:`ByteProduct`; None if this torch or these weights have no
        such product.
    """
    if precision == "bfloat16":
        short, offset = encoder.to(torch.bfloat16).T, bias.to(torch.bfloat16)
        return lambda inputs: torch.addmm(offset, inputs.to(torch.bfloat16), short)
    if precision == "int8":
        return ByteProduct.of(encoder, bias)
    return None


@dataclass(frozen=True, eq=False)
class ByteProduct:
    """A product with weights in 8 bits and inputs in 7, which cannot overflow.

    Attributes:
        packed: The weights as oneDNN wants them.
        bias: ``[d_sae]``, float32.
        scale: What a unit of the weights stands for.
    """

    packed: Tensor
    bias: Tensor
    scale: Tensor

    @staticmethod
    def of(encoder: Tensor, bias: Tensor) -> ByteProduct | None:
        """Return the product with an encoder ``[d_sae, d_in]``, None if there is none."""
        scale = _largest(encoder) / 127
        if encoder.device.type != "cpu" or not 0 < scale < float("inf"):
            return None
        short = torch.empty(encoder.shape, dtype=torch.int8)
        for rows, shortened in zip(encoder.split(BYTE_ROWS), short.split(BYTE_ROWS), strict=True):
            shortened.copy_(torch.mul(rows, 1 / scale).round_())
        try:
            packed = torch.ops.onednn.qlinear_prepack(short, [BYTE_ROWS, encoder.shape[1]])
        except (AttributeError, RuntimeError, NotImplementedError):
            return None
        return ByteProduct(packed, bias.float(), torch.tensor([scale]))

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return estimates ``[row, d_sae]``, float32."""
        short, scale = _seven_bits(inputs)
        return self._product(short, scale, 1.0, torch.float32)

    def codes(self, inputs: Tensor, step: float) -> Iterator[Tensor]:
        """Yield estimates as whole numbers of steps from 0 to 255, for some rows after others.

        A byte for each is a quarter of the memory, and compares faster.

        Args:
            inputs: ``[row, d_in]``.
            step: What a unit stands for.
        """
        short, scale = _seven_bits(inputs)
        for rows in short.split(BYTE_ROWS):
            yield self._product(rows, scale, step, torch.uint8)

    def _product(self, short: Tensor, scale: float, step: float, dtype: torch.dtype) -> Tensor:
        zero = torch.zeros(1, dtype=torch.int32)
        product = torch.ops.onednn.qlinear_pointwise
        found = product(
            short, scale, MIDDLE, self.packed, self.scale, zero, self.bias, step, 0, dtype,
            "none", [], "",
        )  # fmt: skip
        return cast(Tensor, found)


def _seven_bits(inputs: Tensor) -> tuple[Tensor, float]:
    """Return inputs as bytes around the middle, and what a unit stands for."""
    scale = _largest(inputs) / (MIDDLE - 1)
    if not 0 < scale < float("inf"):
        scale = 1.0
    whole = torch.mul(inputs, 1 / scale).round_().add_(MIDDLE)
    return whole.nan_to_num_(MIDDLE).clamp_(0, 127).to(torch.uint8), scale


def _largest(values: Tensor) -> float:
    """Return the largest absolute value, without a copy of them all."""
    least, most = values.aminmax()
    return max(-float(least), float(most))


@cache
def fastest_precision(device: str) -> Precision:
    """Return the precision in which this device multiplies fastest."""
    where = torch.device(device)
    inputs = torch.ones(BYTE_ROWS, 512, device=where)
    encoder, bias = torch.ones(1024, 512, device=where), torch.zeros(1024, device=where)
    products: dict[Precision, Estimate] = {"float32": lambda x: x @ encoder.T}
    for precision in ("bfloat16", "int8"):
        estimate = estimator(precision, encoder, bias)
        if estimate is not None and _right(estimate, inputs):
            products[precision] = estimate
    took = {precision: _seconds(product, inputs) for precision, product in products.items()}
    for _ in range(TRIES):  # in turns: other programs disturb all of them alike
        for precision, product in products.items():
            if took[precision] <= SLOWER * min(took.values()):
                took[precision] = min(took[precision], _seconds(product, inputs))
    costs = {n: t if n == "float32" else EXTRA * t for n, t in took.items()}
    return min(costs, key=lambda name: costs[name])


def _right(estimate: Estimate, inputs: Tensor) -> bool:
    """Return whether a product of ones comes out as it must."""
    width = inputs.shape[1]
    found = [estimate(inputs).float()]
    if isinstance(estimate, ByteProduct):
        found += [codes.float() * (width / 100) for codes in estimate.codes(inputs, width / 100)]
    return all(bool(((part / width - 1).abs() < 0.02).all()) for part in found)


def _seconds(product: Estimate, inputs: Tensor) -> float:
    """Return how long a product takes."""
    began = time.perf_counter()
    float(product(inputs)[0, 0])
    return time.perf_counter() - began
