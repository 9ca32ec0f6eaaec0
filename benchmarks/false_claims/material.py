"""The small specimens: compiled programs, whose circuit is known, and the shipped code model."""

from __future__ import annotations

import contextlib
from functools import cache

from microtome.behaviors import Behavior, get
from microtome.circuits.truth.compiling import Compiled, compile_program
from microtome.circuits.truth.planting import Planted, plant, planted_behavior
from microtome.circuits.truth.programs import PROGRAMS, program
from microtome.errors import ConfigError
from microtome.tracing.model import Model
from microtome.tracing.opening import load

NAMES = tuple(PROGRAMS)

CODE = "python-code"
"""The shipped specimen, a trained model of 0.7 million weights."""

TASKS = ("quote-closing", "bracket-closing")

ITEMS, CODE_ITEMS = 120, 60
"""Items of each behavior over its three splits."""

TRIES = 20
"""Seeds that are tried for items that fill all splits."""

COMPILED = 3
"""Models that each program is compiled to, with rotations and decoys of their own."""


def specimen(name: str, number: int) -> tuple[Model, Behavior]:
    """Return a model and a behavior with items of its own.

    Args:
        name: A program, or ``python-code``.
        number: Seed of the items; which of the program's models.
    """
    if name == CODE:
        return _code(), get(TASKS[number % len(TASKS)], n=CODE_ITEMS, seed=number)
    made = compiled(name, number % COMPILED)
    return made.model, drawn(made, number)


def drawn(made: Compiled, seed: int, *, n: int = ITEMS) -> Behavior:
    """Return a program's behavior; of seeds a million apart the first whose items fill all splits.

    Programs with few inputs do not fill them with every division of their templates.
    """
    for attempt in range(TRIES):
        with contextlib.suppress(ConfigError):
            return planted_behavior(made, n=n, seed=seed + attempt * 1_000_000)
    raise ConfigError(f"{made.program.name}: no items for every split from {TRIES} seeds.")


@cache
def compiled(name: str, seed: int) -> Compiled:
    """Return one of the models of a program."""
    return compile_program(program(name), seed=seed)


@cache
def planted(name: str, seed: int) -> Planted:
    """Return a program with its truth, which costs some patching."""
    return plant(name, n=ITEMS, seed=seed)


@cache
def _code() -> Model:
    return load(CODE)
