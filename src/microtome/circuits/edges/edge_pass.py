"""One forward pass of several circuits of edges: what every target reads without excluded edges.

Shapes: c circuits, b examples (rows of the pass are c outermost), s sources, p positions, d the
width of the stream; n pairs of a circuit and a target that miss at least one edge. Sources before
the block where the pass starts write the same in every circuit, so one table serves all; what later
sources write is kept as the pass goes on, for those sources only that some excluded edge leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from microtome.circuits.edges.reading import Norm, Ports, Reading, Stage
from microtome.circuits.edges.starvation import biases, starved
from microtome.circuits.edges.writing import head_writes
from microtome.models import hf
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from microtome.tracing.interventions import Intervention

Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Reads:
    """What some targets read in the circuits in which they miss an edge.

    Attributes:
        circuits: The circuit of each ``[n]``.
        targets: The target of each, counted from the first one asked for ``[n]``.
        values: The normed stream ``[n, b, p, d]``.
    """

    circuits: torch.Tensor
    targets: torch.Tensor
    values: torch.Tensor


class EdgePass:
    """The state of one pass, shared by its interventions.

    Args:
        reading: The model.
        excluded: Whether each circuit leaves out an edge ``[c, s, target]``.
        before: By how much the sources before ``start`` write something else than ablated
            ``[source, b, p, d]``.
        instead: What ablated parts give, by site; missing ones give nothing.
        start: First block of the pass.
        zero: Whether excluded edges carry nothing.
    """

    def __init__(
        self,
        reading: Reading,
        excluded: torch.Tensor,
        before: torch.Tensor,
        instead: Mapping[str, torch.Tensor],
        start: int,
        *,
        zero: bool = False,
    ) -> None:
        self._reading = reading
        self._excluded = excluded.to(before.device)
        self._before = before
        self._instead = instead
        self._start = start
        self._circuits, self._batch = len(excluded), before.shape[1]
        used = self._written_down(excluded)
        self._starved: torch.Tensor | None = None
        if zero:
            bare = starved(reading, excluded)
            # what reaches a starved target is added up, so it has to be known
            used |= (bare[:, None, :] & ~excluded.cpu()).any(2).any(0).to(used.device)
            self._starved, self._biases = bare.to(before.device), biases(reading)
        early = len(before)
        self._early = torch.nonzero(used[:early]).flatten().tolist()
        self._late = [s for s in torch.nonzero(used).flatten().tolist() if s >= early]
        self._slot = {source: slot for slot, source in enumerate(self._late)}
        self._written = before.new_empty(self._circuits, len(self._late), *before.shape[1:])
        self._streams: dict[str, torch.Tensor] = {}

    def _written_down(self, excluded: torch.Tensor) -> torch.Tensor:
        """Return the sources of which is kept what they write: those that an edge is cut from."""
        return excluded.any(2).any(0)

    def interventions(self) -> list[Intervention]:
        """Return the interventions of the pass."""
        found: list[Intervention] = []
        for stage in self._reading.stages[self._start :]:
            found += self._reading_of(stage)
            found += self._writing_of(stage)
        if self._touched(slice(-1, None)):
            found.append(at(self._reading.last_stream).apply(self._logits))
        return found

    def _touched(self, targets: slice) -> bool:
        return bool(self._excluded[:, :, targets].any())

    def _reading_of(self, stage: Stage) -> list[Intervention]:
        changes: dict[str, list[Ports]] = {}
        for ports in stage.ports:
            if self._touched(slice(ports.targets.start, ports.targets.stop)):
                changes.setdefault(ports.columns.path, []).append(ports)
        reads_mlp = stage.mlp_target is not None and self._touched(
            slice(stage.mlp_target, stage.mlp_target + 1)
        )
        streams = {stage.stream} if changes else set()
        streams |= {stage.mlp_stream} if reads_mlp else set()
        found = [at(site).apply(self._keeper(site)) for site in sorted(streams)]
        for path, kinds in changes.items():
            found.append(at(f"module:{path}:out").apply(self._projected(stage, kinds)))
        if reads_mlp:
            found.append(at(f"blocks.{stage.layer}.mlp.in").apply(self._mlp(stage)))
        return found

    def _writing_of(self, stage: Stage) -> list[Intervention]:
        found = []
        heads = [h for h, source in enumerate(stage.heads) if source in self._slot]
        if heads:
            site = f"blocks.{stage.layer}.attn.z"
            found.append(at(site).apply(self._head_writer(stage, site, heads)))
        if stage.mlp_source in self._slot:
            site = f"blocks.{stage.layer}.mlp.out"
            found.append(at(site).apply(self._mlp_writer(stage, site)))
        return found

    def _keeper(self, site: str) -> Change:
        def keep(value: torch.Tensor) -> torch.Tensor:
            self._streams[site] = value
            return value

        return keep

    def _head_writer(self, stage: Stage, site: str, heads: list[int]) -> Change:
        slots = [self._slot[stage.heads[h]] for h in heads]

        def write(value: torch.Tensor) -> torch.Tensor:
            written = head_writes(self._reading, stage, self._off(site, value)[:, :, heads], heads)
            self._written[:, slots] = written.unflatten(0, self._rows).transpose(1, 2)
            return value

        return write

    def _mlp_writer(self, stage: Stage, site: str) -> Change:
        slot = self._slot[stage.mlp_source or 0]

        def write(value: torch.Tensor) -> torch.Tensor:
            self._written[:, slot] = self._off(site, value).unflatten(0, self._rows)
            return value

        return write

    @property
    def _rows(self) -> tuple[int, int]:
        return self._circuits, self._batch

    def _off(self, site: str, value: torch.Tensor) -> torch.Tensor:
        """Return a value minus what the site would give ablated."""
        other = self._instead.get(site)
        if other is None:
            return value
        if other.shape[0] > 1:
            other = other.repeat(self._circuits, *[1] * (other.ndim - 1))
        return value - other.to(value)

    def _projected(self, stage: Stage, kinds: list[Ports]) -> Change:
        """Return the change of a projection's output: every head's columns from what it reads."""
        norm = self._reading.norm(stage.attn_norm)
        projection = self._reading.module(kinds[0].columns.path)
        bias = getattr(projection, "bias", None)

        def change(value: torch.Tensor) -> torch.Tensor:
            new = value.reshape(*self._rows, -1, value.shape[-1]).clone()
            for ports in kinds:
                reads = self._reads(stage.stream, ports.targets, stage.seen, norm)
                if reads is None:
                    continue
                table = torch.as_tensor(ports.columns.columns, device=value.device)
                weight = hf.projection_weight(projection).detach()
                for head in torch.unique(reads.targets).tolist():
                    chosen = reads.targets == head
                    columns = table[head]
                    produced = reads.values[chosen] @ weight[:, columns]
                    if isinstance(bias, torch.Tensor):
                        produced = produced + bias[columns].detach()
                    where = reads.circuits[chosen]
                    new[where[:, None], :, :, columns[None, :]] = produced.permute(0, 3, 1, 2).to(
                        new.dtype
                    )
            return new.reshape(value.shape)

        return change

    def _mlp(self, stage: Stage) -> Change:
        norm = self._reading.norm(stage.mlp_norm)
        target = stage.mlp_target or 0

        def change(value: torch.Tensor) -> torch.Tensor:
            reads = self._reads(stage.mlp_stream, range(target, target + 1), stage.mlp_seen, norm)
            return self._replaced(value, reads)

        return change

    def _logits(self, value: torch.Tensor) -> torch.Tensor:
        self._streams[self._reading.last_stream] = value
        last = self._excluded.shape[2] - 1
        seen = self._excluded.shape[1]
        reads = self._reads(self._reading.last_stream, range(last, last + 1), seen, lambda x: x)
        return self._replaced(value, reads)

    def _replaced(self, value: torch.Tensor, reads: Reads | None) -> torch.Tensor:
        if reads is None:
            return value
        new = value.unflatten(0, self._rows).clone()
        new[reads.circuits] = reads.values.to(new.dtype)
        rows: torch.Tensor = new.flatten(0, 1)
        return rows

    def _reads(self, site: str, targets: range, seen: int, norm: Norm) -> Reads | None:
        """Return what targets read, in the circuits in which they miss an edge."""
        missing = self._excluded[:, :seen, targets.start : targets.stop]
        circuits, numbers = torch.nonzero(missing.any(1), as_tuple=True)
        if len(circuits) == 0:
            return None
        stream = self._streams[site]
        stream = stream.reshape(*self._rows, -1, stream.shape[-1])
        values = stream[circuits].flatten(1)
        early = [s for s in self._early if s < seen]
        if early:
            weights = missing.transpose(1, 2)[circuits, numbers][:, early].to(values.dtype)
            values = torch.addmm(values, weights, self._before[early].flatten(1), alpha=-1)
        late = [s for s in self._late if s < seen]
        if late:
            weights = missing[:, late].transpose(1, 2).to(values.dtype)
            removed = torch.bmm(weights, self._written[:, : len(late)].flatten(2))
            values = values - removed[circuits, numbers]
        values = values.unflatten(1, stream.shape[1:])
        if self._starved is not None:
            bare = self._starved[circuits, targets.start + numbers]
            if bool(bare.any()):
                values[bare] = self._added(site, missing, late, circuits[bare], numbers[bare])
        normed = norm(values.flatten(0, 1)).unflatten(0, values.shape[:2])
        return Reads(circuits, numbers, normed)

    def _added(
        self,
        site: str,
        missing: torch.Tensor,
        late: list[int],
        circuits: torch.Tensor,
        numbers: torch.Tensor,
    ) -> torch.Tensor:
        """Return the stream of starved targets: biases, and what the sources they keep write.

        Those all lie in the pass: before it starts, nothing is excluded and so nothing starved.
        """
        constant = self._biases[site].to(self._written.dtype)
        added = constant.expand(len(circuits), *self._written.shape[2:])
        if not late:
            return added
        keeps = (~missing[:, late]).transpose(1, 2)[circuits, numbers].to(added.dtype)
        written = self._written[circuits, : len(late)]
        return added + torch.einsum("ns,nsbpd->nbpd", keeps, written)
