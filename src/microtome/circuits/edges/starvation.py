"""Which targets of a circuit are reached by nothing that the prompt gives, under zero ablation.

Without biases such a target reads exactly nothing. Found as a difference of large numbers it would
read what rounding leaves over, and norms blow that up, block after block, until it looks like a
signal. So what it reads is added up from what reaches it instead.
"""

from __future__ import annotations

import torch

from microtome.circuits.edges.reading import Reading
from microtome.circuits.edges.writing import ablated_streams


def starved(reading: Reading, excluded: torch.Tensor) -> torch.Tensor:
    """Return which targets no kept path from the embedding reaches; through heads by the value.

    Args:
        reading: The model.
        excluded: Whether each circuit leaves out an edge ``[circuit, source, target]``.

    Returns:
        ``[circuit, target]``.
    """
    kept = torch.as_tensor(reading.graph.possible) & ~excluded.cpu()
    fed = torch.zeros(kept.shape[:2], dtype=torch.bool)
    fed[:, 0] = True

    def reached(target: int) -> torch.Tensor:
        return (kept[:, :, target] & fed).any(1)

    for stage in reading.stages:
        if stage.ports:
            values = stage.ports[-1].targets
            size = len(stage.heads) // len(values)
            for place, head in enumerate(stage.heads):
                fed[:, head] = reached(values[place // size])
        if stage.mlp_source is not None and stage.mlp_target is not None:
            fed[:, stage.mlp_source] = reached(stage.mlp_target)
    return ~torch.einsum("cst,cs->ct", kept.float(), fed.float()).bool()


def biases(reading: Reading) -> dict[str, torch.Tensor]:
    """Return what no source writes, by the site of the stream before a target's norm."""
    streams = ablated_streams(reading, {})
    found = {reading.last_stream: streams[reading.last_stream]}
    for stage in reading.stages:
        if stage.ports:
            found[stage.stream] = streams[stage.attn_read]
        if stage.mlp_target is not None:
            found[stage.mlp_stream] = streams[stage.mlp_read]
    return found
