"""Places in a prompt by which edges are told apart: the roles of a behavior, or the positions.

Every position of a prompt belongs to exactly one place, so that what is told apart adds up to the
whole. Where roles overlap, a position belongs to the shortest of them, of equally short ones to the
one named last; what no role covers is ``rest``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from microtome.circuits.graph import ComponentGraph
from microtome.circuits.parts import part
from microtome.errors import ConfigError, ModelSupportError, PairError

if TYPE_CHECKING:
    from microtome.behaviors.examples import Example, Examples
    from microtome.circuits.results import Level
    from microtome.tracing.model import Model

Split = Literal["role", "position"]
"""What edges are told apart by."""

REST = "rest"
"""The place of positions that no role covers."""

MOST_EDGES = 2_000_000
"""Edges told apart by place at most; each needs a name and some numbers."""


@dataclass(frozen=True)
class Places:
    """Names of the places of some prompts.

    Attributes:
        split: What they are.
        names: Roles in alphabetical order and ``rest``, or the numbers of the positions.
    """

    split: Split
    names: tuple[str, ...]

    @staticmethod
    def of(examples: Examples, split: Split) -> Places:
        """Return the places of examples.

        Raises:
            ConfigError: If there is no such split.
            PairError: If prompts have other roles than the first, or none, or (``position``) differ
                in length.
        """
        if split not in get_args(Split):
            raise ConfigError(f"split={split!r}; expected one of {', '.join(get_args(Split))}.")
        if split == "position":
            return Places(split, _positions(examples))
        return Places(split, (*(r for r in _roles(examples) if r != REST), REST))

    def graph(self, model: Model) -> ComponentGraph:
        """Return a model's component graph with its targets told apart by these places.

        Raises:
            ConfigError: If that makes more edges than can be held.
            ModelSupportError: If edges are not defined in this model, or positions are asked for
                where attention also looks ahead.
        """
        plain = ComponentGraph.of(model)
        causal = model.anatomy is not None and model.anatomy.causal
        if self.split == "position" and not causal:
            raise ModelSupportError(
                f"{model.name}: attention looks ahead, so positions have no order in which they "
                "act; take split='role'."
            )
        count = plain.n_edges * len(self.names)
        if count > MOST_EDGES:
            raise ConfigError(
                f"{plain.n_edges} edges at {len(self.names)} places are about {count}, more than "
                f"the {MOST_EDGES} that are held; take split='role', or shorter prompts."
            )
        return plain.at_places(self.names, ordered=self.split == "position")

    def numbers(self, examples: Examples, width: int, *, first: int = 0) -> torch.Tensor:
        """Return the number of every position's place ``[example, pos]``, also behind the end.

        Args:
            examples: Examples that have these places.
            width: Number of positions.
            first: First position that is asked for.
        """
        if self.split == "position":
            return torch.arange(first, first + width).expand(len(examples), width)
        number = {name: i for i, name in enumerate(self.names)}
        found = torch.full((len(examples), first + width), number[REST])
        for row, example in enumerate(examples):
            # longest first, so that shorter ones stay
            spans = sorted(example.roles.items(), key=lambda item: item[1][0] - item[1][1])
            for role, (start, stop) in spans:
                found[row, start:stop] = number[role]
        return found[:, first:]

    def mask(self, examples: Examples) -> torch.Tensor:
        """Return whether a position belongs to a place ``[example, pos, place]``."""
        width = max(len(e.clean) for e in examples)
        return torch.nn.functional.one_hot(self.numbers(examples, width), len(self.names)).bool()


def split_of(level: Level) -> Split | None:
    """Return what the edges of a level are told apart by; None where they are not."""
    if level == "role-edge":
        return "role"
    return "position" if level == "position-edge" else None


def edge_level(split: Split | None) -> Level:
    """Return the level of edges that are told apart by something, or are not."""
    if split is None:
        return "edge"
    return "role-edge" if split == "role" else "position-edge"


def level_by_name(names: Sequence[str]) -> Level:
    """Return of what level parts of these names are."""
    if any("/" in name for name in names[:1]):
        # the site of a codec: blocks.3.resid_post/NAME[latent=17]
        return "latent-edge" if "->" in names[0] else "latent"
    if not any("->" in name for name in names[:1]):
        return "neuron" if any(part(name).kind == "neuron" for name in names) else "node"
    if any(part(name.partition("->")[0]).kind == "neuron" for name in names):
        return "neuron-edge"
    places = {name.partition("@")[2] for name in names if "@" in name}
    if not places:
        return "edge"
    return "position-edge" if all(place.isdigit() for place in places) else "role-edge"


def _positions(examples: Examples) -> tuple[str, ...]:
    lengths = sorted({len(e.clean) for e in examples})
    if len(lengths) != 1:
        raise PairError(
            f"The examples have {lengths[0]} to {lengths[-1]} tokens, so a position means "
            "different things in them. Take split='role', or examples of one length."
        )
    return tuple(map(str, range(lengths[0])))


def _roles(examples: Examples) -> list[str]:
    wanted = set(examples[0].roles)
    if not wanted:
        raise PairError("The examples name no roles. Take split='position', or add roles to them.")
    for example in examples:
        found = set(example.roles)
        if found != wanted:
            raise PairError(
                f"Example {example.index} has the roles {_listed(example)} and example "
                f"{examples[0].index} {_listed(examples[0])}. Edges can be told apart by role "
                "where all prompts have the same ones: choose such examples with "
                "examples.where(...), or take split='position'."
            )
    return sorted(wanted)


def _listed(example: Example) -> str:
    return ", ".join(map(repr, sorted(example.roles))) or "none"
