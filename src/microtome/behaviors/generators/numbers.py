"""Behaviors of numbers: years that come later, and the sum of two numbers of two digits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from microtome.behaviors.behavior import Behavior
from microtome.behaviors.generators.frames import Draft, Template, Words, generate
from microtome.behaviors.generators.words import EVENTS
from microtome.behaviors.items import Feature
from microtome.errors import ConfigError, nearest

POOL = 48
"""Items in the pool for each one wanted: tokenizers cut numbers in many ways."""

YEARS = tuple(f"{year:02d}" for year in range(2, 98))
CENTURIES = tuple(str(century) for century in range(11, 19))
NUMBERS = tuple(str(number) for number in range(10, 100))

YearCorruption = Literal["01-year", "other-year"]
Operand = Literal["first", "second", "either"]


def greater_than(
    n: int = 200, *, seed: int = 0, corruption: YearCorruption = "01-year"
) -> Behavior:
    """Finish with a later year: "The war lasted from the year 1732 to the year 17" 33 to 99.

    The answers are the set of all later years of the century and the wrong answers that of all
    others (Hanna et al., 2023, arXiv 2305.00586). Where a tokenizer writes years digit by digit,
    the sets are those of the first digits that tell.

    Args:
        n: Examples over all splits.
        seed: Same seed, same items.
        corruption: ``01-year`` (the first year of the century, which rules out almost nothing) or
            ``other-year`` (any other year).

    Returns:
        Pairs that differ in the year it began; the metric is the probability of later years minus
        that of others.

    Raises:
        ConfigError: If there is no such corruption.
    """
    _known(corruption, ("01-year", "other-year"))
    train = {
        "lasted": "The {noun} lasted from the year {c}{y} to the year {c}",
        "began": "The {noun} began in {c}{y} and ended in {c}",
        "went on": "The {noun} went on from {c}{y} until {c}",
        "between": "The {noun} took place between {c}{y} and {c}",
        "started": "It was {c}{y} when the {noun} started, and it ended in {c}",
        "years of": "The years of the {noun} were {c}{y} to {c}",
    }
    test = {
        "dated": "The {noun} is dated from {c}{y} to {c}",
        "ran": "Starting in {c}{y}, the {noun} ran until the year {c}",
        "over": "The {noun} of {c}{y} was over in {c}",
    }

    def templates(shapes: dict[str, str]) -> dict[str, Template]:
        return {k: partial(_later, shape=s, corruption=corruption) for k, s in shapes.items()}

    return generate(
        "greater-than",
        title="A later year",
        description="After the year in which something began and the century in which it ended, "
        "predict the rest of the year. The task's rule: it ended later than it began.",
        train=templates(train),
        test=templates(test),
        lists={"noun": EVENTS, "century": CENTURIES, "year": YEARS},
        n=n,
        seed=seed,
        pool=POOL,
        metric="probability_difference",
    )


def _known(name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ConfigError(f"No corruption {name!r}{nearest(name, known)}.")


def _later(w: Words, shape: str, corruption: str) -> Draft:
    noun, century, year = w.one("noun"), w.one("century"), w.one("year")
    other = "01"
    while corruption == "other-year" and (other == "01" or other == year):
        other = w.one("year")

    def text(start: str) -> str:
        return shape.format(noun=noun, c=century, y=f"⟦start year:{start}⟧")

    begun = int(year)
    # in a random order, so that the first of a set, which baselines learn, tells as little
    years = [f"{int(y):02d}" for y in w.random.permutation(100)]
    features: dict[str, Feature] = {
        "start year": float(begun),
        "decade": float(begun // 10),
        "century": century,
    }
    return Draft(
        text(year),
        text(other),
        tuple(y for y in years if int(y) > begun),
        tuple(y for y in years if int(y) <= begun),
        noun,
        features,
        sets=True,
    )


def two_digit_addition(n: int = 200, *, seed: int = 0, corruption: Operand = "either") -> Behavior:
    """Add two numbers of two digits: "23 + 45 =" 68.

    Args:
        n: Examples over all splits.
        seed: Same seed, same items.
        corruption: Which number the corrupt prompt exchanges: ``first``, ``second`` or ``either``.

    Returns:
        Pairs whose sums have equally many digits. A tokenizer that writes numbers digit by digit
        keeps those whose first digits differ.

    Raises:
        ConfigError: If there is no such corruption.
    """
    _known(corruption, ("first", "second", "either"))
    train = {
        "bare": ("{a}+{b}=", ""),
        "named": ("sum={a}+{b}=", ""),
        "spaced": ("{a} + {b} =", " "),
        "question": ("Q: What is {a} plus {b}? A:", " "),
        "sum": ("The sum of {a} and {b} is", " "),
        "adds": ("{a} and {b} add up to", " "),
        "plus": ("{a} plus {b} is", " "),
    }
    test = {
        "brackets": ("({a}+{b})=", ""),
        "answer": ("answer:{a}+{b}=", ""),
        "equals": ("{a} plus {b} equals", " "),
        "added": ("{b} added to {a} makes", " "),
        "result": ("Adding {a} and {b} gives", " "),
    }

    def templates(shapes: dict[str, tuple[str, str]]) -> dict[str, Template]:
        return {
            k: partial(_added, shape=s, space=space, corruption=corruption)
            for k, (s, space) in shapes.items()
        }

    return generate(
        "two-digit-addition",
        title="Adding two numbers",
        description="After two numbers of two digits, predict their sum. The task's rule: the sum.",
        train=templates(train),
        test=templates(test),
        lists={"number": NUMBERS},
        n=n,
        seed=seed,
        pool=POOL,
    )


def _added(w: Words, shape: str, space: str, corruption: str) -> Draft:
    first = corruption == "first" or (corruption == "either" and w.chance(0.5))
    a, b, c, d = 0, 0, 0, 0
    # all three are drawn again: for some sums no other number of the split fits
    while a + b == c + d or len(str(a + b)) != len(str(c + d)):
        a, b, other = (int(x) for x in w.some("number", 3))
        c, d = (other, b) if first else (a, other)
    total, wrong = a + b, c + d

    def text(one: int, two: int) -> str:
        return shape.format(a=f"⟦first number:{one}⟧", b=f"⟦second number:{two}⟧")

    features: dict[str, Feature] = {
        "sum": float(total),
        "carry": (a % 10) + (b % 10) >= 10,
        "exchanged": "first" if first else "second",
    }
    return Draft(
        text(a, b), text(c, d), f"{space}{total}", f"{space}{wrong}", f"{min(a, b)}", features
    )


GENERATORS: dict[str, Callable[..., Behavior]] = {
    "greater-than": greater_than,
    "two-digit-addition": two_digit_addition,
}
"""Generators of number behaviors by name."""
