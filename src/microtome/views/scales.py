"""Axes of drawings: value to pixel, and the round numbers that are marked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from microtome.errors import ConfigError


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map from values to pixels.

    Attributes:
        low: Value at the start.
        high: Value at the end; above ``low``.
        start: Pixel of ``low``.
        end: Pixel of ``high``.
        log: Whether equal ratios are equal distances.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value; infinite values come out at the ends."""
        if math.isinf(value):
            return self.end if value > 0 else self.start
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Return about ``count`` round values inside the scale."""
        return (
            _log_ticks(self.low, self.high) if self.log else round_ticks(self.low, self.high, count)
        )


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` multiples of 1, 2 or 5 times a power of ten between two values."""
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Round away the last bits: 3 * 0.1 must be printed, and placed, as 0.3.
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 4 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    return [float(f"{tick:.12g}") for tick in ticks if low * 0.999 <= tick <= high * 1.001]


def span(values: list[float], *, margin: float = 0.05, log: bool = False) -> tuple[float, float]:
    """Return the range of the finite values with a margin; a constant or nothing gets a unit range.

    Args:
        values: The values that must lie inside.
        margin: Share of the range added at both ends.
        log: Whether the range is for a logarithmic scale; the values must then be positive.

    Raises:
        ConfigError: A logarithmic scale was asked for values that are not all positive.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return (1.0, 10.0) if log else (0.0, 1.0)
    low, high = min(finite), max(finite)
    if log:
        if low <= 0:
            raise ConfigError(
                f"a logarithmic axis needs values above 0, but the smallest is {low:g}; "
                "set log_x=False or drop it"
            )
        factor = (high / low) ** margin if high > low else 2.0
        return low / factor, high * factor
    room = (high - low) * margin if high > low else (abs(high) or 1.0) * 0.5
    return low - room, high + room
