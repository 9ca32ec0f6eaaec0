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
    from microtome.circuits.truth.known_edges import GroundTruth
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
    from microtome.circuits.truth.known_edges import ground_truth
    from microtome.circuits.truth.programs import program

    compiled = compile_program(program(name), realism=realism, seed=seed)
    behavior = planted_behavior(compiled, n=n, seed=seed)
    return Planted(compiled, behavior, ground_truth(compiled, seed=seed))


def planted_behavior(compiled: Compiled, *, n: int = 200, seed: int = 0) -> Behavior:
    """Return a compiled program's task as pairs of inputs with different answers.

    Two inputs of one length and split are drawn independently and make two items, each being the
    clean one once, so that no constant preference among the answers does better than chance. A
    template is a length and a first token, a cluster also a second and a last one. Test has
    templates that train has not, validation has clusters of its own.

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
    pools = _pools(compiled, random)
    items: dict[tuple[Sequence, Sequence], Item] = {}
    for split, share in SHARES.items():
        groups = pools[split]
        wanted = len(items) + 2 * round(n * share / 2)
        for _ in range(n * TRIES):
            if len(items) >= wanted or not groups:
                break
            group = groups[int(random.integers(len(groups)))]
            answers = [str(a) for a in random.choice(sorted(group), size=2, replace=False)]
            one, two = (group[a][int(random.integers(len(group[a])))] for a in answers)
            for clean, corrupt in ((one, two), (two, one)):
                items.setdefault((clean, corrupt), _item(compiled, clean, corrupt, split))
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


Group = dict[str, list[Sequence]]
"""Inputs of one length and split by their answer."""


def _pools(compiled: Compiled, random: np.random.Generator) -> dict[Split, list[Group]]:
    """Return the inputs of each split, in groups from which pairs can be drawn."""
    split_of = _splits(compiled, random)
    groups: dict[tuple[Split, int], Group] = {}
    for tokens, answer in compiled.answers.items():
        split = split_of[_cluster(tokens)]
        groups.setdefault((split, len(tokens)), {}).setdefault(answer, []).append(tokens)
    pools: dict[Split, list[Group]] = {split: [] for split in SHARES}
    for (split, _), group in sorted(groups.items()):
        if len(group) > 1:
            pools[split].append(group)
    return pools


def _template(tokens: Sequence) -> str:
    return f"{len(tokens)} tokens, {tokens[0]} first"


def _cluster(tokens: Sequence) -> str:
    return f"{_template(tokens)}/{tokens[1]} second, {tokens[-1]} last"


def _splits(compiled: Compiled, random: np.random.Generator) -> dict[str, Split]:
    """Return the split of each cluster; whole templates go to test if they have two answers."""
    answers: dict[str, set[str]] = {}
    for tokens, answer in compiled.answers.items():
        answers.setdefault(_template(tokens), set()).add(answer)
    mixed = sorted(t for t, found in answers.items() if len(found) > 1)
    count = max(1, round(SHARES["test"] * len(mixed)))
    test = {mixed[int(i)] for i in random.permutation(len(mixed))[:count]}
    rest = sorted({_cluster(s) for s in compiled.answers if _template(s) not in test})
    count = max(1, round(len(rest) * SHARES["validation"] / (1.0 - SHARES["test"])))
    validation = {rest[int(i)] for i in random.permutation(len(rest))[:count]}
    found: dict[str, Split] = {}
    for tokens in compiled.answers:
        cluster = _cluster(tokens)
        own: Split = "validation" if cluster in validation else "train"
        found[cluster] = "test" if _template(tokens) in test else own
    return found


def _item(compiled: Compiled, clean: Sequence, corrupt: Sequence, split: Split) -> Item:
    return Item(
        clean=" ".join(clean),
        corrupt=" ".join(corrupt),
        answers=(f" {compiled.answers[clean]}",),
        wrongs=(f" {compiled.answers[corrupt]}",),
        cluster=_cluster(clean),
        template=_template(clean),
        split=split,
        features={"length": float(len(clean)), "last": clean[-1]},
        source=f"{compiled.program.name} program",
    )
