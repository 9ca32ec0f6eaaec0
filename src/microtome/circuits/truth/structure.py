"""The structural truth: edges whose weights do not cancel, on a path that reaches the logits.

What each part reads is followed backward from the unembedding: only neurons and heads whose writes
are read by something live are live, and only the directions that those read count. An edge exists
where a source's write matrix times the target's live read matrix is not zero.
"""

from __future__ import annotations

import numpy as np

from microtome.circuits.graph import EMBED, LOGITS, ComponentGraph
from microtome.circuits.truth.weights import BlockWeights, ModuleWeights

ZERO = 1e-5
"""Cosine below which a product of float32 weights is zero."""


def structural_edges(weights: ModuleWeights, graph: ComponentGraph) -> tuple[str, ...]:
    """Return the edges with a non-zero weight product on a live path.

    Args:
        weights: Weights of a module without norms.
        graph: Its component graph.
    """
    writes = source_writes(weights)
    reads = _live_reads(weights, writes)
    mask = np.zeros(graph.possible.shape, dtype=bool)
    for u, source in enumerate(graph.sources):
        for v, target in enumerate(graph.targets):
            if graph.possible[u, v] and target in reads:
                mask[u, v] = bool(_product(writes[source], reads[target]).any())
    return graph.named(graph.connected(mask))


def source_writes(weights: ModuleWeights) -> dict[str, np.ndarray]:
    """Return what each source can write: rows ``[direction, d_model]``, by name."""
    found = {EMBED: np.concatenate([weights.token, weights.position])}
    for number, block in enumerate(weights.blocks):
        for head in range(len(block.query)):
            found[f"a{number}.h{head}"] = block.value[head] @ block.output[head]
        found[f"m{number}"] = block.writes
    return found


def _live_reads(weights: ModuleWeights, writes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the directions that each live target reads, columns ``[d_model, direction]``."""
    reads = {LOGITS: weights.readout.T}
    for number in reversed(range(len(weights.blocks))):
        block = weights.blocks[number]
        live = _product(block.writes, _together(reads)).any(1)
        if live.any():
            reads[f"m{number}"] = block.reads[live].T
        downstream = _together(reads)
        earlier = [f"m{n}" for n in range(number)]
        earlier += [f"a{n}.h{h}" for n in range(number) for h in range(len(block.query))]
        upstream = np.concatenate([writes[s] for s in (EMBED, *earlier)])
        for head in range(len(block.query)):
            reads |= _head_reads(f"a{number}.h{head}", block, head, downstream, upstream)
    return reads


def _head_reads(
    name: str, block: BlockWeights, head: int, downstream: np.ndarray, upstream: np.ndarray
) -> dict[str, np.ndarray]:
    """Return what the ports of a head read, nothing if nothing live reads the head."""
    written = _product(block.output[head], downstream)
    values = block.value[head] @ written
    if not written.any() or not values.any():
        return {}
    query, key = block.query[head], block.key[head]
    asked = np.concatenate([_product(upstream, query), block.query_bias[head][None]])
    offered = _product(upstream, key)
    return {
        f"{name}<v>": values,
        f"{name}<q>": _product(query, offered.T),
        f"{name}<k>": _product(key, asked.T),
    }


def _together(reads: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate(list(reads.values()), axis=1)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return ``a @ b`` with zeros where it is smaller than rounding leaves it."""
    product = a @ b
    size = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=0)[None, :]
    return np.where(np.abs(product) > ZERO * size, product, 0.0)
