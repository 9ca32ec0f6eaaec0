"""Random subgraphs of the same make as a circuit."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from microtome.circuits.graph import EMBED, LOGITS, port_of, split_edge
from microtome.circuits.parts import part
from microtome.circuits.results import Circuit

_LAYER = re.compile(r"[am](\d+)")


def matched(circuit: Circuit, random: np.random.Generator) -> frozenset[str]:
    """Draw as many parts of each make as a circuit has.

    Of nodes: its number of heads in each layer, of MLPs overall, of neurons in each layer. Of
    latents: its number of latents and of errors at each site. Of edges between latents: its number
    from each site's latents, rest or error to each other's. Of edges: its number for each kind
    and layer of the source and each kind, port, layer and place of the target.

    Args:
        circuit: The circuit.
        random: Source of chance.
    """
    makes: dict[str, Callable[[str], tuple[str, ...]]] = {"latent": _latent, "latent-edge": _pair}
    make = makes.get(circuit.level, _edge if circuit.of_edges else _node)
    kinds: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in circuit.universe:
        kinds[make(name)].append(name)
    drawn: set[str] = set()
    kept = circuit.kept
    for parts in kinds.values():
        wanted = sum(p in kept for p in parts)
        if wanted:
            chosen = random.choice(len(parts), size=wanted, replace=False)
            drawn |= {parts[int(i)] for i in chosen}
    return frozenset(drawn)


@lru_cache(maxsize=1 << 16)
def _node(node: str) -> tuple[str, ...]:
    found = part(node)
    return ("mlp",) if found.kind == "mlp" else (found.kind, str(found.layer))


def _latent(part: str) -> tuple[str, ...]:
    return (part.partition("[")[0],)


def _pair(edge: str) -> tuple[str, ...]:
    return tuple(end.partition("[")[0] for end in split_edge(edge))


@lru_cache(maxsize=1 << 16)
def _edge(edge: str) -> tuple[str, ...]:
    source, target = split_edge(edge)
    place = target.partition("@")[2]
    return (_kind(source), _layer(source), port_of(target), _layer(target), place)


def _kind(source: str) -> str:
    return source if source == EMBED else source[0]


def _layer(name: str) -> str:
    match = _LAYER.match(name)
    return match.group(1) if match and name not in (EMBED, LOGITS) else name
