"""Planted circuits: a behavior for a compiled program, and the circuit that is its truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microtome.behaviors.behavior import Behavior
from microtome.behaviors.items import Item, Split
from microtome.core.seeds import rng
from microtome.errors import ConfigError

if TYPE_CHECKING:
    from microtome.circuits.results import Circuit, Level
    from microtome.circuits.truth.compiling import Compiled
    from microtome.circuits.truth.ground_truth import GroundTruth
    from microtome.circuits.truth.realism import Realism
    from microtome.tracing.model import Model

Sequence = tuple[str, ...]

SHARES: dict[Split, float] = {"train": 0.5, "validation": 0.2, "test": 0.3}
"""How the items are spread; test has templates of its own."""

TRIES = 40
"""Draws for each item that is wanted, before the space counts as exhausted."""


@dataclass(frozen=True, eq=False)
class Planted:
    """A model, something it does, and the circuit that does it.

    Attributes:
        compiled: The compiled program.
        behavior: Its task as pairs.
        truth: Its edges.
    """

    compiled: Compiled
    behavior: Behavior
    truth: GroundTruth

    @property
    def model(self) -> Model:
        """The model."""
        return self.compiled.model

    def circuit(self, *, level: Level = "node", ablation: str = "resample") -> Circuit:
        """Return the functional circuit: its edges, or the heads and MLPs they leave or enter.

        Args:
            level: ``node`` or ``edge``.
            ablation: Under which ablation.
        """
        from microtome.circuits.graph import ComponentGraph, nodes_on
        from microtome.tracing.components import component_names

        edges = self.truth.functional(ablation)
        if level == "edge":
            return self._circuit(edges, self.truth.universe, level)
        nodes = nodes_on(edges, ComponentGraph.of(self.model))
        return self._circuit(nodes, component_names(self.model), level)

    def arm(self, number: int = 0) -> Circuit:
        """Return the heads and MLPs of one copy of the program.

        Args:
            number: Which copy, from 0; programs without copies have one.

        Raises:
            ConfigError: If there is no such copy.
        """
        from microtome.tracing.components import component_names

        copies = self.compiled.copies
        if not 0 <= number < len(copies):
            raise ConfigError(f"arm({number}): there are {len(copies)} copies, counted from 0.")
        return self._circuit(copies[number], component_names(self.model), "node")

    def _circuit(self, parts: Sequence, universe: Sequence, level: Level) -> Circuit:
        from microtome.circuits.results import Circuit

        chosen = set(parts)
        kept = tuple(p for p in universe if p in chosen)
        return Circuit(kept, universe, "planted", level, model=self.model.fingerprint)


def plant(name: str, *, realism: Realism | None = None, n: int = 200, seed: int = 0) -> Planted:
    """Compile a program and return it with its behavior and its true circuit.

    Args:
        name: Name of a program.
        realism: How it is hidden.
        n: Items of the behavior over all splits.
        seed: For everything that is drawn.

    Raises:
        UnknownNameError: If there is no such program.
    """
    from microtome.circuits.truth.compiling import compile_program
    from microtome.circuits.truth.ground_truth import ground_truth
    from microtome.circuits.truth.programs import program

    compiled = compile_program(program(name), realism=realism, seed=seed)
    behavior = planted_behavior(compiled, n=n, seed=seed)
    return Planted(compiled, behavior, ground_truth(compiled, seed=seed))


def planted_behavior(compiled: Compiled, *, n: int = 200, seed: int = 0) -> Behavior:
    """Return a compiled program's task as pairs of inputs with different answers.

    Clean and corrupt inputs are drawn independently and have one length. A template is a length
    and a first token; test has templates that train has not, validation has clusters of its own.

    Args:
        compiled: The program.
        n: Items over all splits.
        seed: For what is drawn.

    Raises:
        ConfigError: If ``n`` is below 20, or the inputs do not give items for every split.
    """
    if n < 20:
        raise ConfigError(f"n={n} is too small for three splits; expected at least 20.")
    random = rng(seed, "planted", compiled.program.name)
    by_answer = _by_length_and_answer(compiled)
    split_of = _Splits(compiled, by_answer, random)
    wanted = {split: round(n * share) for split, share in SHARES.items()}
    lengths = sorted(by_answer)
    items: dict[tuple[Sequence, Sequence], Item] = {}
    for _ in range(n * TRIES):
        if not any(wanted.values()):
            break
        groups = by_answer[lengths[int(random.integers(len(lengths)))]]
        answer, wrong = (str(a) for a in random.choice(sorted(groups), size=2, replace=False))
        clean, corrupt = (groups[a][int(random.integers(len(groups[a])))] for a in (answer, wrong))
        split = split_of(clean, answer)
        if wanted[split] and (clean, corrupt) not in items:
            wanted[split] -= 1
            items[clean, corrupt] = _item(compiled, clean, corrupt, answer, wrong, split)
    if {i.split for i in items.values()} != set(SHARES):
        raise ConfigError(f"{compiled.program.name}: the inputs do not fill all three splits.")
    return Behavior(
        f"planted-{compiled.program.name}",
        compiled.program.name.replace("-", " ").capitalize(),
        compiled.program.description,
        tuple(items.values()),
        seed=seed,
        misfits="refuse",
    )


def _by_length_and_answer(compiled: Compiled) -> dict[int, dict[str, list[Sequence]]]:
    """Return the inputs by length and answer, lengths with a single answer left out."""
    found: dict[int, dict[str, list[Sequence]]] = {}
    for tokens, answer in compiled.answers.items():
        found.setdefault(len(tokens), {}).setdefault(answer, []).append(tokens)
    return {length: groups for length, groups in found.items() if len(groups) > 1}


def _template(tokens: Sequence) -> str:
    return f"{len(tokens)} tokens, {tokens[0]} first"


class _Splits:
    """Which split an input belongs to: by its template, and its answer within a template."""

    def __init__(
        self,
        compiled: Compiled,
        by_answer: dict[int, dict[str, list[Sequence]]],
        random: np.random.Generator,
    ) -> None:
        inputs = [s for groups in by_answer.values() for group in groups.values() for s in group]
        templates = sorted({_template(s) for s in inputs})
        count = max(1, round(SHARES["test"] * len(templates)))
        self._test = {templates[int(i)] for i in random.permutation(len(templates))[:count]}
        clusters = sorted(
            {(t, compiled.answers[s]) for s in inputs if (t := _template(s)) not in self._test}
        )
        share = SHARES["validation"] / (SHARES["train"] + SHARES["validation"])
        count = max(1, round(share * len(clusters)))
        chosen = random.permutation(len(clusters))[:count]
        self._validation = {clusters[int(i)] for i in chosen}

    def __call__(self, tokens: Sequence, answer: str) -> Split:
        template = _template(tokens)
        if template in self._test:
            return "test"
        return "validation" if (template, answer) in self._validation else "train"


def _item(
    compiled: Compiled, clean: Sequence, corrupt: Sequence, answer: str, wrong: str, split: Split
) -> Item:
    template = _template(clean)
    return Item(
        clean=" ".join(clean),
        corrupt=" ".join(corrupt),
        answers=(f" {answer}",),
        wrongs=(f" {wrong}",),
        cluster=f"{template}/{answer}",
        template=template,
        split=split,
        features={"length": float(len(clean)), "last": clean[-1]},
        source=f"{compiled.program.name} program",
    )
