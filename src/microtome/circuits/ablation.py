"""Running a model with everything outside a circuit ablated, many circuits in one forward pass.

Nodes outside the circuit give what they gave in the corrupt run (``resample``), their mean over the
train prompts of both kinds (``mean``), or nothing (``zero``). The embedding is never ablated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from microtome.circuits.nodes import check_nodes, masks
from microtome.circuits.references import ABLATIONS, Ablation
from microtome.circuits.running import CircuitRunner, Group
from microtome.tracing.components import component_names, layer_of
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model

__all__ = ["ABLATIONS", "Ablation", "Ablator"]


class Ablator(CircuitRunner[frozenset[str]]):
    """Runs circuits of heads and MLPs of one model on one set of examples under one ablation.

    Args:
        model: The model.
        examples: The examples whose clean prompts are run.
        ablation: What ablated nodes give.
        reference: Examples over whose clean and corrupt prompts means are taken; ``examples`` by
            default.

    Raises:
        ConfigError: If the ablation is unknown.
    """

    level = "node"

    def __init__(
        self,
        model: Model,
        examples: Examples,
        *,
        ablation: Ablation = "resample",
        reference: Examples | None = None,
    ) -> None:
        super().__init__(
            model,
            examples,
            universe=component_names(model),
            sites=_sites(model),
            ablation=ablation,
            reference=reference,
        )

    def _cut(self, circuit: frozenset[str]) -> frozenset[str]:
        return check_nodes(circuit, self.universe)

    def _first_block(self, cuts: Sequence[frozenset[str]]) -> int:
        anatomy = self.model.anatomy
        layers = anatomy.n_layers if anatomy is not None else 0
        missing = frozenset(self.universe) - frozenset.intersection(*cuts)
        return min((layer_of(node) for node in missing), default=layers)

    def _changes(
        self, group: Group, cuts: Sequence[frozenset[str]], start: int
    ) -> list[Intervention]:
        anatomy = self.model.anatomy
        if anatomy is None:
            return []
        heads, mlps = masks(cuts, anatomy)
        count = len(group.places)
        found = []
        for layer, mask in heads.items():
            if not bool(mask.all()):
                site = f"blocks.{layer}.attn.z"
                rows = mask.repeat_interleave(count, 0)[:, None, :, None]
                found.append(at(site).apply(mixed(rows, group.instead.get(site), len(cuts))))
        for layer, mask in mlps.items():
            if not bool(mask.all()):
                site = f"blocks.{layer}.mlp.out"
                rows = mask.repeat_interleave(count, 0)[:, None, None]
                found.append(at(site).apply(mixed(rows, group.instead.get(site), len(cuts))))
        return found


def _sites(model: Model) -> list[str]:
    blocks = () if model.anatomy is None else model.anatomy.blocks
    sites = [f"blocks.{n}.attn.z" for n, b in enumerate(blocks) if b.attention is not None]
    return sites + [f"blocks.{n}.mlp.out" for n, b in enumerate(blocks) if b.mlp is not None]


def mixed(
    keep: torch.Tensor, instead: torch.Tensor | None, copies: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that keeps a value where asked and replaces the rest.

    Args:
        keep: Where it is kept, of a shape that broadcasts to it; circuits outermost in its rows.
        instead: What stands in for it elsewhere, for one circuit or the same for all; nothing for
            None.
        copies: Number of circuits.
    """

    def change(value: torch.Tensor) -> torch.Tensor:
        mask = keep.to(value.device)
        if instead is None:
            return torch.where(mask, value, torch.zeros_like(value))
        other = (
            instead if instead.shape[0] == 1 else instead.repeat(copies, *[1] * (instead.ndim - 1))
        )
        return torch.where(mask, value, other.to(value.dtype))

    return change
