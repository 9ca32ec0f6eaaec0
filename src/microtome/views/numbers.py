"""How numbers are written: three significant digits, true minus, intervals in square brackets.

Example::

    number(-0.12345) -> "−0.123"        number(1234.5) -> "1 230"       count(12000) -> "12 000"
    interval(0.912, 0.88, 0.94) -> "0.912 [0.880, 0.940]"               percent(0.973) -> "97.3 %"
    seconds(92.4) -> "1 min 32 s"       signed(0.5) -> "+0.500"

``Estimate(value, low, high, label, unit)`` is a number with its interval; ``Estimate.of(interval)``
takes anything with ``value``, ``low`` and ``high``, such as ``microtome.core.stats.Interval``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

MINUS = "\u2212"
THIN = "\u202f"  # the thin space that does not break a line
ABSENT = "–"
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


class HasInterval(Protocol):
    """Anything that carries a value and the two ends of its interval."""

    @property
    def value(self) -> float:
        """The estimate."""

    @property
    def low(self) -> float:
        """The lower end."""

    @property
    def high(self) -> float:
        """The upper end."""


def _grouped(text: str) -> str:
    whole, point, fraction = text.partition(".")
    sign = MINUS if whole.startswith("-") else ""
    digits = whole.lstrip("-")
    head = len(digits) % 3
    groups = ([digits[:head]] if head else []) + [
        digits[start : start + 3] for start in range(head, len(digits), 3)
    ]
    return sign + THIN.join(groups) + point + fraction


def decimals_for(magnitude: float, *, digits: int = 3) -> int:
    """Return how many decimals show ``digits`` significant digits of a positive magnitude."""
    if not math.isfinite(magnitude) or magnitude <= 0:
        return digits - 1
    return max(0, digits - 1 - math.floor(math.log10(magnitude)))


def fixed(value: float, decimals: int) -> str:
    """Return a number with a fixed number of decimals, a true minus and thin spaces."""
    if math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return "∞" if value > 0 else MINUS + "∞"
    text = f"{value:.{decimals}f}"
    return _grouped(text.lstrip("-") if not float(text) else text)


def number(value: float, *, digits: int = 3) -> str:
    """Return a number with three significant digits; NaN is a dash, extremes use powers of ten."""
    value = float(value)
    if not math.isfinite(value) or value == 0:
        return fixed(value, 0)
    magnitude = abs(float(f"{value:.{digits - 1}e}"))
    if magnitude >= 1e6 or magnitude < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        power = str(int(exponent)).translate(_SUPERSCRIPT)
        return f"{mantissa.replace('-', MINUS)}{THIN}×{THIN}10{power}"
    places = digits - 1 - math.floor(math.log10(magnitude))
    return fixed(round(value, places), max(0, places))


def signed(value: float, *, digits: int = 3) -> str:
    """Return a number with its sign, plus included; zero has none."""
    text = number(value, digits=digits)
    return f"+{text}" if value > 0 else text


def count(value: int) -> str:
    """Return an exact count with thin spaces between thousands."""
    return _grouped(str(int(value)))


def interval(value: float, low: float, high: float, *, digits: int = 3) -> str:
    """Return an estimate with its interval in square brackets, all to the same decimals.

    The decimals are those that show three significant digits of the largest of the three, so that
    no digit is printed that the interval does not support. Ends that are NaN leave the interval
    out.
    """
    if math.isnan(low) or math.isnan(high):
        return number(value, digits=digits)
    middle, left, right = _aligned((value, low, high), digits)
    return f"{middle} [{left}, {right}]"


def _aligned(values: tuple[float, ...], digits: int = 3) -> list[str]:
    """Return numbers written to the same decimals."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=1.0)
    if largest >= 1e6 or 0 < largest < 1e-4:
        return [number(value, digits=digits) for value in values]
    return [fixed(value, decimals_for(largest, digits=digits)) for value in values]


def percent(value: float, *, digits: int = 3) -> str:
    """Return a share of a stated whole in percent; 1.0 is ``100 %``."""
    return f"{number(100 * value, digits=digits)}{THIN}%"


def seconds(value: float) -> str:
    """Return a duration: milliseconds below one second, minutes and seconds above one minute."""
    if not math.isfinite(value):
        return number(value)
    if abs(value) < 1:
        return f"{number(1000 * value)}{THIN}ms"
    if abs(value) < 60:
        return f"{number(value)}{THIN}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{THIN}min {rest}{THIN}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{THIN}h {minutes}{THIN}min"


@dataclass(frozen=True, eq=False)
class Estimate:
    """A number with its interval, its name and its unit.

    Attributes:
        value: The estimate.
        low: Lower end of the interval, NaN if there is none.
        high: Upper end of the interval, NaN if there is none.
        label: What the number is, in plain words.
        unit: Unit, or "" for a pure number; ``"%"`` shows the value as a percentage.
        note: One short line under the number, such as the range that was asked for.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    label: str = ""
    unit: str = ""
    note: str = ""

    @classmethod
    def of(
        cls, source: HasInterval, *, label: str = "", unit: str = "", note: str = ""
    ) -> Estimate:
        """Return an estimate from anything with ``value``, ``low`` and ``high``."""
        return cls(float(source.value), float(source.low), float(source.high), label, unit, note)

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    def _parts(self) -> list[str]:
        factor = 100.0 if self.unit == "%" else 1.0
        values = (factor * self.value, factor * self.low, factor * self.high)
        if self.has_interval:
            return _aligned(values)
        return [percent(self.value).removesuffix(f"{THIN}%") if factor > 1 else number(self.value)]

    @property
    def head(self) -> str:
        """The value with its unit, without the interval."""
        return self._parts()[0] + (f"{THIN}{self.unit}" if self.unit else "")

    @property
    def ends(self) -> str:
        """The interval in square brackets, or ""."""
        parts = self._parts()
        return f"[{parts[1]}, {parts[2]}]" if self.has_interval else ""

    @property
    def text(self) -> str:
        """Value, interval and unit as one phrase: ``0.912 [0.880, 0.940] logits``."""
        phrase = " ".join(part for part in (self._parts()[0], self.ends) if part)
        return f"{phrase}{THIN}{self.unit}" if self.unit else phrase
