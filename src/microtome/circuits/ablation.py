"""Running a model with everything outside a circuit ablated, many circuits in one forward pass.

Nodes outside the circuit give what they gave in the corrupt run (``resample``), their mean over the
train prompts of both kinds (``mean``), or nothing (``zero``). The embedding is never ablated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from microtome.attribution import component_names
from microtome.behaviors.evaluate import batches
from microtome.behaviors.metrics import KLToUnchanged, LastTokenMetric, metric
from microtome.circuits.nodes import check_nodes, masks
from microtome.errors import ConfigError, MetricError
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model
    from microtome.tracing.trace import Trace

Ablation = Literal["resample", "mean", "zero"]
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)

ROWS = 256
"""Rows of a forward pass at most."""


@dataclass(frozen=True, eq=False)
class _Group:
    """Examples of one length with what replaces their ablated nodes, by site."""

    places: list[int]
    examples: Examples
    instead: dict[str, torch.Tensor]


class Ablator:
    """Runs circuits of one model on one set of examples under one ablation.

    Args:
        model: The model.
        examples: The examples whose clean prompts are run.
        ablation: What ablated nodes give.
        reference: Examples over whose clean and corrupt prompts means are taken; ``examples`` by
            default.

    Raises:
        ConfigError: If the ablation is unknown.
    """

    def __init__(
        self,
        model: Model,
        examples: Examples,
        *,
        ablation: Ablation = "resample",
        reference: Examples | None = None,
    ) -> None:
        if ablation not in ABLATIONS:
            raise ConfigError(f"ablation={ablation!r}; expected one of {', '.join(ABLATIONS)}.")
        self.model = model
        self.examples = examples
        self.ablation = ablation
        self.universe = component_names(model)
        means = _means(model, reference or examples, self._sites()) if ablation == "mean" else None
        self._groups = [self._group(places, means) for places in batches(examples, ROWS)]

    def run(
        self, circuits: Sequence[frozenset[str]], metrics: Sequence[str] = ("logit_difference",)
    ) -> dict[str, np.ndarray]:
        """Return metrics of every circuit and example.

        Args:
            circuits: Sets of nodes to keep.
            metrics: Names of metrics that read the prompt's end.

        Returns:
            For each metric ``[circuit, example]``.

        Raises:
            UnknownNameError: If a node does not exist.
        """
        kept = [check_nodes(c, self.universe) for c in circuits]
        chosen = [_last_token(name) for name in metrics]
        values = {m.name: np.zeros((len(kept), len(self.examples))) for m in chosen}
        for group in self._groups:
            size = max(1, ROWS // len(group.places))
            for start in range(0, len(kept), size):
                found = self._run_group(group, kept[start : start + size], chosen)
                for name, rows in found.items():
                    values[name][start : start + size, group.places] = rows
        return values

    def compare(self, circuit: frozenset[str], divergence: KLToUnchanged) -> np.ndarray:
        """Return the divergence of the ablated from the unchanged model at each prompt's end."""
        kept = check_nodes(circuit, self.universe)
        values = np.zeros(len(self.examples))
        for group in self._groups:
            plain = self.model.trace(group.examples.clean, logits="last").logits
            changes = self._changes(group, [kept])
            changed = self.model.trace(
                group.examples.clean, interventions=changes, logits="last"
            ).logits
            if plain is None or changed is None:
                raise MetricError("The model returned no logits.")
            values[group.places] = divergence.between(plain[:, 0], changed[:, 0]).cpu().numpy()
        return values

    def _sites(self) -> list[str]:
        anatomy = self.model.anatomy
        blocks = () if anatomy is None else anatomy.blocks
        sites = [f"blocks.{n}.attn.z" for n, b in enumerate(blocks) if b.attention is not None]
        return sites + [f"blocks.{n}.mlp.out" for n, b in enumerate(blocks) if b.mlp is not None]

    def _group(self, places: list[int], means: dict[str, torch.Tensor] | None) -> _Group:
        chunk = self.examples.take(places)
        if self.ablation == "zero":
            return _Group(places, chunk, {})
        if means is not None:
            return _Group(places, chunk, means)
        trace: Trace = self.model.trace(chunk.corrupt, capture=self._sites(), logits=None)
        return _Group(places, chunk, {site: trace.value(site) for site in self._sites()})

    def _run_group(
        self, group: _Group, kept: Sequence[frozenset[str]], chosen: Sequence[LastTokenMetric]
    ) -> dict[str, np.ndarray]:
        rows = list(range(len(group.places))) * len(kept)
        many = group.examples.take(rows)
        trace = self.model.trace(
            many.clean, interventions=self._changes(group, kept), logits="last"
        )
        if trace.logits is None:
            raise MetricError("The model returned no logits.")
        shape = (len(kept), len(group.places))
        logits = trace.logits
        return {
            m.name: m(logits, trace.lengths, many).detach().cpu().numpy().reshape(shape)
            for m in chosen
        }

    def _changes(self, group: _Group, kept: Sequence[frozenset[str]]) -> list[Intervention]:
        anatomy = self.model.anatomy
        if anatomy is None:
            return []
        heads, mlps = masks(kept, anatomy)
        count = len(group.places)
        found = []
        for layer, mask in heads.items():
            if not bool(mask.all()):
                site = f"blocks.{layer}.attn.z"
                rows = mask.repeat_interleave(count, 0)[:, None, :, None]
                found.append(at(site).apply(_mix(rows, group.instead.get(site), len(kept))))
        for layer, mask in mlps.items():
            if not bool(mask.all()):
                site = f"blocks.{layer}.mlp.out"
                rows = mask.repeat_interleave(count, 0)[:, None, None]
                found.append(at(site).apply(_mix(rows, group.instead.get(site), len(kept))))
        return found


def _mix(
    keep: torch.Tensor, instead: torch.Tensor | None, copies: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that keeps a value where asked and replaces the rest."""

    def mixed(value: torch.Tensor) -> torch.Tensor:
        mask = keep.to(value.device)
        if instead is None:
            return torch.where(mask, value, torch.zeros_like(value))
        other = (
            instead if instead.shape[0] == 1 else instead.repeat(copies, *[1] * (instead.ndim - 1))
        )
        return torch.where(mask, value, other.to(value.dtype))

    return mixed


def _means(model: Model, reference: Examples, sites: list[str]) -> dict[str, torch.Tensor]:
    """Return the mean of each site over all positions of the clean and corrupt prompts."""
    totals: dict[str, torch.Tensor] = {}
    count = 0
    for places in batches(reference, ROWS):
        chunk = reference.take(places)
        trace = model.trace([*chunk.clean, *chunk.corrupt], capture=sites, logits=None)
        count += int(trace.lengths.sum())
        for site in sites:
            summed = trace.value(site).sum((0, 1), keepdim=True)
            totals[site] = summed if site not in totals else totals[site] + summed
    return {site: total / count for site, total in totals.items()}


def _last_token(name: str) -> LastTokenMetric:
    chosen = metric(name)
    if not isinstance(chosen, LastTokenMetric):
        raise MetricError(
            f"Circuits are scored by a metric that reads the prompt's end; {name} does not."
        )
    return chosen
