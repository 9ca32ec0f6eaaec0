"""The nodes between which edges of latents run, and all edges there are between them.

A codec has thousands of latents and two codecs millions of pairs of them. So some latents are kept
apart, and the others of each codec are one node together, ``SITE/NAME.rest``: with the errors,
every value that a codec stands for belongs to exactly one node.

An edge is direct: it leads past whatever other nodes lie between. Its source has to be written
before its target is read; every node and the logits are targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits.graph import LOGITS
from microtome.circuits.latents import errors_of
from microtome.errors import ConfigError, UnknownNameError
from microtome.tracing.attachments import order_of
from microtome.tracing.sites import Site, at
from microtome.tracing.vocabulary import is_latents

if TYPE_CHECKING:
    from microtome.tracing.model import Model

ARROW, REST = "->", ".rest"

MOST_EDGES = 500_000
"""Edges between the nodes at most."""

Order = tuple[int, int, bool]
"""Block, place in it, and whether behind all changes that are made there."""


@dataclass(frozen=True, eq=False)
class Place:
    """A site of latents or of an error, with its nodes.

    Attributes:
        site: Name of the site.
        known: Where in the forward pass its value is known.
        written: From where on a change of it is written.
        nodes: Names of its nodes.
        latents: The latents of each node; None for an error.
    """

    site: str
    known: Order
    written: Order
    nodes: tuple[str, ...]
    latents: tuple[np.ndarray, ...] | None


@dataclass(frozen=True, eq=False)
class LatentNodes:
    """The nodes of a model's codecs in the order in which a pass reaches them.

    Attributes:
        places: Sites with their nodes.
    """

    places: tuple[Place, ...]

    @staticmethod
    def of(model: Model, apart: Iterable[str]) -> LatentNodes:
        """Return the nodes of a model.

        Args:
            model: A model with codecs attached.
            apart: Latents that are nodes of their own, ``blocks.3.resid_post/NAME[latent=17]``.

        Raises:
            ConfigError: If nothing is attached, or two codecs write one site.
            UnknownNameError: If a latent does not exist.
        """
        if not model.codecs:
            raise ConfigError(
                "Nothing is attached to this model, so there are no latents. Attach a codec first: "
                "model = model.attach(NAME, codec, at=SITE)."
            )
        chosen = _by_site(apart)
        found: dict[str, Place] = {}
        for one in model.codecs:
            first = min(order_of(site) for site in one.writes if one.in_time(site))
            # what does not write where it reads sees what codecs that write there have changed
            known = (*order_of(one.at), one.at not in one.writes)
            site = str(one.latents)
            numbers = chosen.pop(site, [])
            found[site] = _latents(site, known, (*first, False), one.codec.d_sae, numbers)
            for name in errors_of(one):
                place = (*order_of(Site(at(name).name.split("/")[0], at(name).layer)), False)
                found.setdefault(name, Place(name, place, place, (name,), None))
        if chosen:
            raise UnknownNameError(f"No codec has the latents of {next(iter(chosen))}.")
        _require_order(model)
        return LatentNodes(tuple(sorted(found.values(), key=lambda place: place.known)))

    @staticmethod
    def named(model: Model, universe: Iterable[str]) -> LatentNodes:
        """Return the nodes that the names of edges speak of."""
        ends = {end for edge in universe for end in edge.split(ARROW)}
        return LatentNodes.of(model, (end for end in ends if "[" in end))

    @property
    def apart(self) -> tuple[str, ...]:
        """The latents that are nodes of their own."""
        return tuple(name for name in self.names if "[" in name)

    @property
    def sites(self) -> list[str]:
        """The sites of all nodes."""
        return [place.site for place in self.places]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all nodes."""
        return tuple(name for place in self.places for name in place.nodes)

    @cached_property
    def edges(self) -> tuple[str, ...]:
        """Names of all edges, ``SOURCE->TARGET``, by target.

        Raises:
            ConfigError: If there are more than can be held.
        """
        counts = [len(p.nodes) * sum(len(s.nodes) for s in self.before(p)) for p in self.places]
        count = sum(counts) + len(self.names)
        if count > MOST_EDGES:
            raise ConfigError(
                f"{len(self.names)} nodes have {count} edges, more than the {MOST_EDGES} that are "
                "held; keep fewer latents apart: nodes=."
            )
        found = [
            f"{source}{ARROW}{target}"
            for place in self.places
            for target in place.nodes
            for source in self.sources(place)
        ]
        return (*found, *(f"{source}{ARROW}{LOGITS}" for source in self.names))

    def before(self, place: Place) -> list[Place]:
        """Return the places whose nodes can act on those of a place."""
        return [other for other in self.places if other.written < place.known]

    def sources(self, place: Place | None) -> list[str]:
        """Return the nodes that can act on those of a place, None for the logits."""
        return [n for p in (self.places if place is None else self.before(place)) for n in p.nodes]


def _latents(site: str, known: Order, written: Order, count: int, apart: Sequence[int]) -> Place:
    wrong = [n for n in apart if not 0 <= n < count]
    if wrong:
        raise UnknownNameError(f"{site} has no latent {wrong[0]}; there are {count}.")
    numbers = sorted(set(apart))
    rest = np.setdiff1d(np.arange(count), numbers)
    names = [f"{site}[latent={n}]" for n in numbers]
    groups = [np.array([n]) for n in numbers]
    if len(rest):
        names.append(f"{site}{REST}")
        groups.append(rest)
    return Place(site, known, written, tuple(names), tuple(groups))


def _by_site(names: Iterable[str]) -> dict[str, list[int]]:
    """Return the latents that are named, by site."""
    found: dict[str, list[int]] = {}
    for name in names:
        site = at(name)
        placed = site.pos is not None or site.table is not None
        if placed or not is_latents(site.name) or not isinstance(site.latent, tuple):
            raise UnknownNameError(
                f"{name!r} is no latent; expected a name such as blocks.0.resid_post/sae[latent=5]."
            )
        found.setdefault(str(site.whole()), []).extend(site.latent)
    return found


def _require_order(model: Model) -> None:
    """Refuse two codecs that stand for the value of one site."""
    seen: dict[Site, str] = {}
    for one in model.codecs:
        for site in one.writes:
            if seen.setdefault(site, one.name) != one.name:
                raise ConfigError(
                    f"{seen[site]} and {one.name} both write {site}, so there is no order in which "
                    "their latents act on one another; detach one of them."
                )
