"""How numbers are written."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from microtome.core.stats import Interval
from microtome.views.numbers import (
    MINUS,
    THIN,
    Estimate,
    count,
    fixed,
    interval,
    number,
    percent,
    seconds,
    signed,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (-0.0, "0"),
        (1, "1.00"),
        (0.9996, "1.00"),
        (9.996, "10.0"),
        (999.6, f"1{THIN}000"),
        (-0.12345, f"{MINUS}0.123"),
        (12.345, "12.3"),
        (1234.5, f"1{THIN}230"),
        (123456, f"123{THIN}000"),
        (0.00012345, "0.000123"),
        (0.000012345, f"1.23{THIN}×{THIN}10⁻⁵"),
        (-9.87e12, f"{MINUS}9.87{THIN}×{THIN}10¹²"),
        (math.nan, "–"),
        (math.inf, "∞"),
        (-math.inf, f"{MINUS}∞"),
    ],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize("value", [0.123, 4.56, 78.9, 123.0, 1230.0, 0.00456, -5.67e8, 3.21e-9])
def test_a_number_of_three_digits_reads_back(value: float) -> None:
    text = number(value).replace(MINUS, "-").replace(THIN, "")
    mantissa, _, power = text.partition("×10")
    back = float(mantissa)
    if power:
        back *= 10.0 ** int(power.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")))
    assert back == pytest.approx(value, rel=1e-9)


def test_counts_are_exact() -> None:
    assert count(999) == "999"
    assert count(1234567) == f"1{THIN}234{THIN}567"
    assert count(-12000) == f"{MINUS}12{THIN}000"


def test_no_negative_zero() -> None:
    assert fixed(-0.0004, 2) == "0.00"
    assert signed(-0.0) == "0"
    assert signed(0.5) == "+0.500"


def test_interval_has_the_decimals_of_its_largest_number() -> None:
    assert interval(0.912, 0.88, 0.94) == "0.912 [0.880, 0.940]"
    assert interval(0.0001, -0.2, 0.2) == f"0.000 [{MINUS}0.200, 0.200]"
    assert interval(12.34, 9.8, 14.0) == "12.3 [9.8, 14.0]"
    assert interval(0.5, math.nan, math.nan) == "0.500"
    assert interval(2e-6, 1e-6, 3e-6).count("10⁻⁶") == 3


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "100"), (0.9731, "97.3"), (0.05, "5.00"), (0, "0"), (0.0004, "0.0400")],
)
def test_percent(value: float, text: str) -> None:
    assert percent(value) == f"{text}{THIN}%"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123, f"12.3{THIN}ms"),
        (12.3, f"12.3{THIN}s"),
        (92.4, f"1{THIN}min 32{THIN}s"),
        (3725, f"1{THIN}h 2{THIN}min"),
    ],
)
def test_seconds(value: float, text: str) -> None:
    assert seconds(value) == text


def test_estimate_shows_value_and_interval_to_the_same_decimals() -> None:
    estimate = Estimate(0.912, 0.858, 0.951, "kept", "%")
    assert estimate.head == f"91.2{THIN}%"
    assert estimate.ends == "[85.8, 95.1]"
    assert estimate.text == f"91.2 [85.8, 95.1]{THIN}%"
    assert Estimate(2.0, unit="logits").text == f"2.00{THIN}logits"
    assert Estimate(2.0).ends == ""


def test_estimate_of_any_interval() -> None:
    @dataclass
    class Other:
        value: float = 0.5
        low: float = 0.4
        high: float = 0.6

    estimate = Estimate.of(Other(), label="x", note="asked")
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.4, 0.6)
    assert (estimate.label, estimate.note) == ("x", "asked")


def test_estimate_of_a_bootstrap_interval() -> None:
    found = Interval(0.912, 0.88, 0.94, n=480, clusters=24, method="cluster bootstrap")
    assert Estimate.of(found).text == "0.912 [0.880, 0.940]"
