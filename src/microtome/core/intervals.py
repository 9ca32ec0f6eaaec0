"""An estimate with its confidence interval."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from microtome.core.plain import plain


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        value: The estimate.
        low: Lower bound; minus infinity where the data cannot bound it.
        high: Upper bound; infinity where the data cannot bound it.
        level: Coverage of the interval, 0.95 by default.
        n: Number of values behind the estimate.
        clusters: Number of independent clusters they fall into.
        method: How the bounds were computed.

    Example:
        >>> print(Interval(0.9123, 0.88, 0.94, n=200, clusters=12))
        0.912 [0.88, 0.94]
    """

    value: float
    low: float
    high: float
    level: float = field(default=0.95, kw_only=True)
    n: int = field(default=0, kw_only=True)
    clusters: int = field(default=0, kw_only=True)
    method: str = field(default="", kw_only=True)

    def __str__(self) -> str:
        """Return the estimate and bounds with three significant digits."""
        return f"{three_digits(self.value)} [{three_digits(self.low)}, {three_digits(self.high)}]"

    def __contains__(self, value: float) -> bool:
        """Return whether a number lies inside the bounds."""
        return self.low <= value <= self.high

    def within(self, low: float, high: float) -> bool:
        """Return whether the whole interval lies inside the closed range given."""
        return low <= self.low and self.high <= high

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values; bounds that are not finite become None."""
        names = ("value", "low", "high", "level", "n", "clusters", "method")
        return {name: plain(getattr(self, name)) for name in names}


def three_digits(value: float) -> str:
    """Return a number with three significant digits, and all digits of its whole part.

    Example:
        >>> three_digits(0.00012345), three_digits(0.9), three_digits(12345.6)
        ('0.000123', '0.9', '12346')
    """
    text = f"{float(value) + 0.0:.3g}"
    return f"{value:.0f}" if "e+" in text and abs(value) < 1e9 else text
