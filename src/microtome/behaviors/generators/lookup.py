"""Behaviors of looking something up: an argument of a docstring, the letter of a color."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from microtome.behaviors.behavior import Behavior
from microtome.behaviors.generators.frames import Draft, Template, Words, generate
from microtome.behaviors.generators.words import (
    ATTRACTORS,
    COLORS,
    COMMON,
    FUNCTIONS,
    IDENTIFIERS,
    OBJECTS,
    unique,
)
from microtome.behaviors.items import Feature
from microtome.errors import ConfigError, nearest

LETTERS = "ABCD"

ArgumentCorruption = Literal["signature", "description"]
ColorCorruption = Literal["color", "order"]


def docstring_arguments(
    n: int = 200, *, seed: int = 0, corruption: ArgumentCorruption = "signature"
) -> Behavior:
    """Document the next argument: "def f(self, size, path): ... :param size: ... :param" path.

    Args:
        n: Examples over all splits.
        seed: Same seed, same items.
        corruption: ``signature`` (two arguments of the signature change places) or ``description``
            (the argument described last is another one). After Heimersheim and Janiak (2023).

    Returns:
        Pairs of the same tokens (``signature``), or that differ in one name.

    Raises:
        ConfigError: If there is no such corruption.
    """
    _known(corruption, ("signature", "description"))

    def of(described: int, after: int, **options: str) -> Callable[[Words], Draft]:
        return lambda w: _documented(w, described, after, corruption, **options)

    return generate(
        "docstring-arguments",
        title="Documenting the next argument",
        description="In a docstring that describes a function's arguments in order, predict the "
        "next one. The task's rule: the argument that follows the one described last.",
        train={
            "one described": of(1, 3),
            "two described": of(2, 2),
            "method": of(2, 2, first="self, "),
            "one of four": of(1, 2, first="self, "),
            "two of five": of(2, 3),
            "with type": of(1, 2, mark=":type"),
        },
        test={
            "three described": of(3, 2),
            "at sign": of(2, 2, mark="@param"),
            "method, three": of(3, 2, first="self, "),
        },
        lists={"name": unique(IDENTIFIERS), "function": FUNCTIONS, "word": unique(COMMON)},
        n=n,
        seed=seed,
    )


def _known(name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ConfigError(f"No corruption {name!r}{nearest(name, known)}.")


def _documented(
    w: Words, described: int, after: int, corruption: str, *, first: str = "", mark: str = ":param"
) -> Draft:
    names = w.some("name", described + after)
    words = [w.some("word", 2) for _ in range(described + 1)]
    function = w.one("function")
    right, wrong = names[described], names[described + 1]

    def text(order: list[str], last: str) -> str:
        before, rest = order[: described - 1], order[described:]
        marked = [
            *before,
            f"⟦argument before:{order[described - 1]}⟧",
            f"⟦next argument:{rest[0]}⟧",
        ]
        listing = ", ".join([*marked, *rest[1:]])
        lines = "".join(
            f"    {mark} {name}: {' '.join(about)}\n"
            for name, about in zip(before, words, strict=False)
        )
        return (
            f'def {function}({first}{listing}):\n    """{" ".join(words[-1])}\n\n{lines}'
            f"    {mark} ⟦described last:{last}⟧: {' '.join(words[described - 1])}\n    {mark}"
        )

    swapped = list(names)
    swapped[described], swapped[described + 1] = wrong, right
    clean = text(names, names[described - 1])
    if corruption == "signature":
        corrupt = text(swapped, names[described - 1])
    else:
        # describing the right answer's own argument asks for the one behind it
        corrupt = text(names, right)
    features: dict[str, Feature] = {
        "described": float(described),
        "arguments": float(len(names)),
    }
    return Draft(clean, corrupt, f" {right}", f" {wrong}", right, features)


def color_choice(n: int = 200, *, seed: int = 0, corruption: ColorCorruption = "color") -> Behavior:
    """Choose the letter of a color: "The box is red. ... A. blue B. red ... Answer:" B.

    Args:
        n: Examples over all splits.
        seed: Same seed, same items.
        corruption: ``color`` (the thing has the color of another option) or ``order`` (two options
            change places).

    Returns:
        Pairs with four options each, the right one at every place as often.

    Raises:
        ConfigError: If there is no such corruption.
    """
    _known(corruption, ("color", "order"))
    train = {
        "what color": "The {x} is {c}. What color is the {x}?\n{options}Answer:",
        "which color": "The {x} is {c}. Which color does the {x} have?\n{options}Answer:",
        "there is": "There is a {c} {x}. What color is the {x}?\n{options}Answer:",
        "question": "Question: A {x} is {c}. What color is a {x}?\n{options}Answer:",
        "saw": "I saw a {c} {x}. What color was the {x}?\n{options}Answer:",
        "painted": "The {x} was painted {c}. What color is it?\n{options}Answer:",
    }
    test = {
        "choose": "The {x} is {c}. Choose the color of the {x}.\n{options}Answer:",
        "looks": "The {x} looks {c}. How does the {x} look?\n{options}Answer:",
        "has": "She has a {c} {x}. The color of the {x} is\n{options}Answer:",
    }

    def templates(shapes: dict[str, str]) -> dict[str, Template]:
        return {k: partial(_chosen, shape=s, corruption=corruption) for k, s in shapes.items()}

    return generate(
        "color-choice",
        title="The letter of a color",
        description="After a thing's color and four colors with letters, predict the letter. The "
        "task's rule: the letter of the option that names the thing's color.",
        train=templates(train),
        test=templates(test),
        lists={"thing": unique((*OBJECTS, *ATTRACTORS)), "color": COLORS},
        n=n,
        seed=seed,
        # small vocabularies spell colors in different numbers of tokens
        pool=16,
    )


def _chosen(w: Words, shape: str, corruption: str) -> Draft:
    thing = w.one("thing")
    colors = w.some("color", len(LETTERS))
    right, wrong = (int(i) for i in w.random.choice(len(LETTERS), size=2, replace=False))

    def text(color: str, order: list[str]) -> str:
        options = "".join(
            f"{letter}. {'⟦right option:' + c + '⟧' if n == right else c}\n"
            for n, (letter, c) in enumerate(zip(LETTERS, order, strict=True))
        )
        return shape.format(x=thing, c=f"⟦color:{color}⟧", options=options)

    swapped = list(colors)
    swapped[right], swapped[wrong] = colors[wrong], colors[right]
    clean = text(colors[right], colors)
    corrupt = text(colors[wrong], colors) if corruption == "color" else text(colors[right], swapped)
    features: dict[str, Feature] = {"letter": LETTERS[right], "color": colors[right]}
    return Draft(clean, corrupt, f" {LETTERS[right]}", f" {LETTERS[wrong]}", thing, features)


GENERATORS: dict[str, Callable[..., Behavior]] = {
    "docstring-arguments": docstring_arguments,
    "color-choice": color_choice,
}
"""Generators of look-up behaviors by name."""
