"""One forward pass of small circuits of edges, with what they have in common computed once.

Every target's input is added up from what reaches it: what all sources write ablated, plus, for
each kept edge, what its source writes beyond that. :mod:`.edge_pass` gives the same by taking the
excluded edges away from the whole stream; for circuits of few edges this is less work.

Shapes: b examples, p positions, d the width of the stream, r rows of a block (see
:mod:`.shared_plan`); rows of the pass are r outermost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from microtome.circuits.edges.shared_plan import SharedPlan, Site, StagePlan
from microtome.circuits.edges.writing import head_writes
from microtome.models import hf
from microtome.tracing.replay import BaseRun, Entry, wave
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from microtome.circuits.edges.reading import Norm, Ports, Reading, Stage
    from microtome.tracing.interventions import Intervention

Change = Callable[[torch.Tensor], torch.Tensor]


class SharedPass:
    """The state of one pass, shared by its interventions.

    Args:
        reading: The model.
        plan: What is computed.
        base: The recorded clean run.
        embedded: By how much the embedding writes something else than ablated ``[b, p, d]``.
        instead: What ablated parts give, by site; missing ones give nothing.
        ablated: The streams that this makes, see :func:`.writing.ablated_streams`.
        first: First position that is computed.
    """

    def __init__(
        self,
        reading: Reading,
        plan: SharedPlan,
        base: BaseRun,
        embedded: torch.Tensor,
        instead: Mapping[str, torch.Tensor],
        ablated: Mapping[str, torch.Tensor],
        first: int,
    ) -> None:
        self._reading, self._plan, self._base = reading, plan, base
        self._first, self._instead = first, instead
        self._ablated = ablated
        self._shape = embedded.shape
        self._written: dict[int, torch.Tensor] = {0: embedded[None]}
        self._normed: dict[str, torch.Tensor] = {}

    def logits(self) -> torch.Tensor:
        """Return the logits at the prompts' ends ``[circuit * b, 1, vocab]``."""
        self._run()
        ends = self._reading.model.readout.positions(self._base.lengths) - self._first
        last = self._added(self._reading.last_stream, self._plan.logits, at_ends=ends)
        rows = last.flatten(0, 1).unsqueeze(1)
        found = self._reading.model.tail(rows, torch.zeros(len(rows), 1, dtype=torch.long))
        each: torch.Tensor = found.unflatten(0, last.shape[:2])[self._plan.circuits]
        return each.flatten(0, 1)

    def _run(self) -> None:
        """Run the blocks that compute anything; a block has the rows of those before it at least.

        What flows between blocks does not matter, since all that is read is written anew.
        """
        batch = self._shape[0]
        entries: list[Entry] = []
        under_way = 0
        for stage, plan in zip(self._reading.stages, self._plan.stages, strict=True):
            if plan.rows > under_way:
                rows = torch.arange(batch).repeat(plan.rows - under_way)
                stream = self._base.streams[stage.layer]
                entries.append(
                    Entry(stage.layer, stream[rows.to(stream.device), self._first :], rows)
                )
                under_way = plan.rows
        if not entries:
            return
        changes: list[Intervention] = []
        for stage, plan in zip(self._reading.stages, self._plan.stages, strict=True):
            if plan.rows:
                changes += self._stage(stage, plan)
        wave(self._reading.model, self._base, entries, first=self._first, interventions=changes)

    def _stage(self, stage: Stage, plan: StagePlan) -> list[Intervention]:
        found = []
        if plan.heads:
            kinds: dict[str, list[Ports]] = {}
            for ports in stage.ports:
                kinds.setdefault(ports.columns.path, []).append(ports)
            for path, several in kinds.items():
                change = self._projected(stage, plan, several)
                found.append(at(f"module:{path}:out").apply(change))
            site = f"blocks.{stage.layer}.attn.z"
            found.append(at(site).apply(self._head_writer(stage, plan, site)))
        if plan.mlp.numbers:
            found.append(at(f"blocks.{stage.layer}.mlp.in").apply(self._mlp(stage, plan)))
            site = f"blocks.{stage.layer}.mlp.out"
            found.append(at(site).apply(self._mlp_writer(stage, plan, site)))
        return found

    def _added(
        self, site: str, reads: Site, *, at_ends: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return a stream as each read sees it ``[read, b, p, d]``, or at some ends ``[., b, d]``.

        Args:
            site: The stream.
            reads: Its reads.
            at_ends: A position for each example.
        """
        places = None if at_ends is None else (torch.arange(self._shape[0]), at_ends)
        start = self._ablated[site].to(self._written[0]).expand(self._shape)
        seen = start if places is None else start[places]
        found = seen[None].repeat(len(reads.numbers), *[1] * seen.ndim)
        for number, read in enumerate(reads.numbers):
            for source, variant in read:
                value = self._written[source][variant]
                found[number] += value if places is None else value[places]
        return found

    def _reads(self, site: str, reads: Site, norm: Norm) -> torch.Tensor:
        """Return what is read behind the norm ``[read, b, p, d]``."""
        stream = self._added(site, reads)
        normed: torch.Tensor = norm(stream.flatten(0, 1)).unflatten(0, stream.shape[:2])
        return normed

    def _projected(self, stage: Stage, plan: StagePlan, several: list[Ports]) -> Change:
        """Return the change of a projection's output: the columns of every head's variants."""
        norm = self._reading.norm(stage.attn_norm)
        projection = self._reading.module(several[0].columns.path)
        bias = getattr(projection, "bias", None)
        weight = hf.projection_weight(projection).detach()

        def change(value: torch.Tensor) -> torch.Tensor:
            if stage.attn_read not in self._normed:
                self._normed[stage.attn_read] = self._reads(stage.attn_read, plan.attention, norm)
            reads = self._normed[stage.attn_read]
            new = value.reshape(-1, self._shape[0], self._shape[1], value.shape[-1]).clone()
            for ports in several:
                table = torch.as_tensor(ports.columns.columns, device=value.device)
                for unit, chosen in _chosen(plan, stage.ports.index(ports)).items():
                    rows, numbers = list(chosen), list(chosen.values())
                    columns = table[unit]
                    produced = reads[numbers] @ weight[:, columns].to(reads.dtype)
                    if isinstance(bias, torch.Tensor):
                        produced = produced + bias[columns].detach()
                    places = torch.tensor(rows, device=value.device)
                    new[places[:, None], :, :, columns[None, :]] = produced.permute(0, 3, 1, 2).to(
                        new.dtype
                    )
            return new.reshape(value.shape)

        return change

    def _head_writer(self, stage: Stage, plan: StagePlan, site: str) -> Change:
        def write(value: torch.Tensor) -> torch.Tensor:
            self._normed.clear()
            each = value.unflatten(0, (-1, self._shape[0]))
            other = self._instead.get(site)
            for head, rows in plan.heads.items():
                z = each[list(rows.values()), :, :, head]
                if other is not None:
                    z = z - other[:, :, head].to(z)
                written = head_writes(self._reading, stage, z.flatten(0, 1).unsqueeze(2), [head])
                self._written[stage.heads[head]] = written[:, 0].unflatten(0, z.shape[:2])
            return value

        return write

    def _mlp(self, stage: Stage, plan: StagePlan) -> Change:
        norm = self._reading.norm(stage.mlp_norm)

        def change(value: torch.Tensor) -> torch.Tensor:
            new = value.clone()
            reads = self._reads(stage.mlp_read, plan.mlp, norm).flatten(0, 1)
            new[: len(reads)] = reads.reshape(len(reads), *value.shape[1:]).to(new.dtype)
            return new

        return change

    def _mlp_writer(self, stage: Stage, plan: StagePlan, site: str) -> Change:
        def write(value: torch.Tensor) -> torch.Tensor:
            count = len(plan.mlp.numbers) * self._shape[0]
            written = value[:count].unflatten(0, (-1, self._shape[0]))
            other = self._instead.get(site)
            # a copy either way: the value is changed in place behind some blocks
            written = written.clone() if other is None else written - other.to(written)
            self._written[stage.mlp_source or 0] = written
            return value

        return write


def _chosen(plan: StagePlan, kind: int) -> dict[int, dict[int, int]]:
    """Return, by head or key/value group, the read that each row holds.

    Args:
        plan: A block's plan.
        kind: 0 for queries, 1 for keys, 2 for values.
    """
    if kind:
        return {
            group: {row: (keys, values)[kind - 1] for row, (keys, values, _) in enumerate(rows)}
            for group, rows in plan.groups.items()
        }
    return {
        head: {row: reads[0] for reads, row in variants.items()}
        for head, variants in plan.heads.items()
    }
