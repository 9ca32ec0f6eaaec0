"""Random subgraphs of the same make as a circuit."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from microtome.circuits.graph import EMBED, LOGITS, port_of, split_edge
from microtome.circuits.results import Circuit
from microtome.tracing.components import head_of, layer_of

_LAYER = re.compile(r"[am](\d+)")


def matched(circuit: Circuit, random: np.random.Generator) -> frozenset[str]:
    """Draw as many parts of each make as a circuit has.

    Of nodes: its number of heads in each layer, and of MLPs overall. Of latents: its number of
    latents and of errors at each site. Of edges: its number for each
    kind and layer of the source and each kind, port and layer of the target.

    Args:
        circuit: The circuit.
        random: Source of chance.
    """
    makes: dict[str, Callable[[str], tuple[str, ...]]] = {"node": _node, "latent": _latent}
    make = makes.get(circuit.level, _edge)
    kinds: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for part in circuit.universe:
        kinds[make(part)].append(part)
    drawn: set[str] = set()
    for parts in kinds.values():
        wanted = sum(p in circuit.kept for p in parts)
        if wanted:
            chosen = random.choice(len(parts), size=wanted, replace=False)
            drawn |= {parts[int(i)] for i in chosen}
    return frozenset(drawn)


def _node(node: str) -> tuple[str, ...]:
    return ("mlp",) if head_of(node) is None else ("head", str(layer_of(node)))


def _latent(part: str) -> tuple[str, ...]:
    return (part.partition("[")[0],)


def _edge(edge: str) -> tuple[str, ...]:
    source, target = split_edge(edge)
    return (_kind(source), _layer(source), port_of(target), _layer(target))


def _kind(source: str) -> str:
    return source if source == EMBED else source[0]


def _layer(name: str) -> str:
    match = _LAYER.match(name)
    return match.group(1) if match and name not in (EMBED, LOGITS) else name
