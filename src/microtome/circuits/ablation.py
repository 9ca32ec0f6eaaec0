"""Running a model with everything outside a circuit ablated, many circuits in one forward pass.

Nodes outside the circuit give what they gave in the corrupt run (``resample``), their mean over the
train prompts of both kinds (``mean``), or nothing (``zero``). The embedding is never ablated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from microtome.behaviors.evaluate import batches
from microtome.behaviors.metrics import KLToUnchanged, LastTokenMetric, metric
from microtome.circuits.nodes import check_nodes, masks
from microtome.errors import ConfigError, MetricError
from microtome.sweeps.rules import restart_reason
from microtome.tracing.components import component_names, layer_of
from microtome.tracing.condition import Remembered
from microtome.tracing.replay import BaseRun, Entry, wave
from microtome.tracing.sites import at
from microtome.tracing.suffix import suffix_facts

if TYPE_CHECKING:
    from microtome.behaviors.examples import Example, Examples
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model
    from microtome.tracing.trace import Trace

Ablation = Literal["resample", "mean", "zero"]
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)

AGREE = 1e-4
"""Share of the logits' size by which a restarted pass may differ from a whole one (float32)."""

ROWS = 256
"""Rows of a forward pass at most."""


@dataclass(frozen=True, eq=False)
class _Group:
    """Examples of one length with what replaces their ablated nodes, by site.

    Attributes:
        places: Their places among all examples.
        examples: The examples.
        instead: What ablated nodes give, by site.
        base: The recorded clean run, None where passes are not restarted.
        first: First position at which any ablation can change a value.
    """

    places: list[int]
    examples: Examples
    instead: dict[str, torch.Tensor]
    base: BaseRun | None
    first: int


_agreed: Remembered[dict[str, bool]] = Remembered()
"""Whether restarted passes of a module were found to equal whole ones, by kind of ablation."""


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
        self._restarts = not _restart_reason(model)
        self._groups = [self._group(places, means) for places in self._batches()]
        known = _agreed.of(model.module, dict)
        if self._restarts and not self._known_to_agree(known):
            self._restarts = False
            self._groups = [self._group(places, means) for places in self._batches()]

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
        everything = frozenset(self.universe)
        for group in self._groups:
            plain, changed = (self._logits(group, [nodes]) for nodes in (everything, kept))
            values[group.places] = divergence.between(plain[:, 0], changed[:, 0]).cpu().numpy()
        return values

    def _sites(self) -> list[str]:
        anatomy = self.model.anatomy
        blocks = () if anatomy is None else anatomy.blocks
        sites = [f"blocks.{n}.attn.z" for n, b in enumerate(blocks) if b.attention is not None]
        return sites + [f"blocks.{n}.mlp.out" for n, b in enumerate(blocks) if b.mlp is not None]

    def _group(self, places: list[int], means: dict[str, torch.Tensor] | None) -> _Group:
        chunk = self.examples.take(places)
        base, first = None, 0
        if self._restarts:
            base = self.model.record(chunk.clean, keys=True, logits="last")
        if self.ablation == "zero":
            return _Group(places, chunk, {}, base, first)
        if means is not None:
            return _Group(places, chunk, means, base, first)
        if base is not None:
            # before the first differing token both runs are the same, whatever is exchanged
            first = min(_first_difference(e) for e in chunk)
        trace: Trace = self.model.trace(chunk.corrupt, capture=self._sites(), logits=None)
        instead = {site: trace.value(site)[:, first:] for site in self._sites()}
        return _Group(places, chunk, instead, base, first)

    def _run_group(
        self, group: _Group, kept: Sequence[frozenset[str]], chosen: Sequence[LastTokenMetric]
    ) -> dict[str, np.ndarray]:
        rows = list(range(len(group.places))) * len(kept)
        many = group.examples.take(rows)
        logits = self._logits(group, kept)
        lengths = torch.tensor([len(e.clean) for e in many])
        shape = (len(kept), len(group.places))
        return {
            m.name: m(logits, lengths, many).detach().float().cpu().numpy().reshape(shape)
            for m in chosen
        }

    def _logits(self, group: _Group, kept: Sequence[frozenset[str]]) -> torch.Tensor:
        """Return logits at the prompts' ends ``[circuit * example, 1, vocab]``."""
        count = len(group.places)
        if group.base is None:
            prompts = group.examples.take(list(range(count)) * len(kept)).clean
            changes = self._changes(group, kept)
            found = self.model.trace(prompts, interventions=changes, logits="last").logits
            if found is None:
                raise MetricError("The model returned no logits.")
            return found
        rows = torch.arange(count).repeat(len(kept))
        start = self._first_block(kept)
        stream = group.base.streams[start][rows.to(self.model.device), group.first :]
        changes = self._changes(group, kept)
        entry = Entry(start, stream, rows)
        last = wave(self.model, group.base, [entry], first=group.first, interventions=changes)
        ends = torch.tensor([len(e.clean) for e in group.examples]) - 1 - group.first
        return self.model.tail(last, ends[rows].unsqueeze(1))

    def _first_block(self, kept: Sequence[frozenset[str]]) -> int:
        """Return the first block in which any of some circuits lacks a node."""
        anatomy = self.model.anatomy
        layers = anatomy.n_layers if anatomy is not None else 0
        missing = frozenset(self.universe) - frozenset.intersection(*kept)
        return min((layer_of(node) for node in missing), default=layers)

    def _batches(self) -> Iterator[list[int]]:
        return batches(self.examples, ROWS, model=self.model)

    def _known_to_agree(self, known: dict[str, bool]) -> bool:
        if self.ablation not in known:
            known[self.ablation] = self._agrees()
        return known[self.ablation]

    def _agrees(self) -> bool:
        """Return whether restarted, padded passes give what a whole pass of one prompt gives."""
        group = self._groups[0]
        half = frozenset(self.universe[::2])
        fast = self._logits(group, [half])[:1].float()
        one = group.examples[:1]
        instead = group.instead
        if self.ablation == "resample":
            trace = self.model.trace(one.corrupt, capture=self._sites(), logits=None)
            instead = {site: trace.value(site) for site in self._sites()}
        alone = _Group(group.places[:1], one, instead, None, 0)
        slow = self._logits(alone, [half]).float()
        slack = max(AGREE, 8 * torch.finfo(self.model.dtype).eps)
        return float((fast - slow).abs().max()) <= slack * float(slow.abs().max())

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


def _restart_reason(model: Model) -> str:
    """Return why passes over some nodes cannot start where the first of them lies."""
    return restart_reason(model) or suffix_facts(model).reason


def _first_difference(example: Example) -> int:
    """Return the first position at which the prompts differ, the last one at most."""
    pairs = enumerate(zip(example.clean, example.corrupt, strict=True))
    return next((i for i, (a, b) in pairs if a != b), len(example.clean) - 1)


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
