"""One differentiable forward pass in which every edge is kept to a share between 0 and 1.

Shapes: b examples, s sources, t targets, p positions, d the width of the stream. A target reads the
stream minus, for each source, the share of its edge that is missing times what the source writes
now beyond what it would write ablated. Gradients flow to the shares through all that follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from microtome.circuits.edges.reading import Norm, Reading, Stage
from microtome.circuits.edges.writing import head_writes
from microtome.models import hf
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from microtome.tracing.interventions import Intervention

Change = Callable[[torch.Tensor], torch.Tensor]


class MaskedPass:
    """The state of one pass.

    Args:
        reading: The model.
        missing: The share of each edge that is ablated ``[b, s, t]``.
        instead: What ablated parts give, by site; missing ones give nothing.
    """

    def __init__(
        self, reading: Reading, missing: torch.Tensor, instead: Mapping[str, torch.Tensor]
    ) -> None:
        self._reading = reading
        self._missing = missing
        self._instead = instead
        self._streams: dict[str, torch.Tensor] = {}
        self._written: list[torch.Tensor] = []

    def interventions(self) -> list[Intervention]:
        """Return the interventions of the pass."""
        first = self._reading.stages[0].stream
        found = [at(first).apply(self._embedding(first))]
        for stage in self._reading.stages:
            found += self._of(stage)
        return [*found, at(self._reading.last_stream).apply(self._logits)]

    def _of(self, stage: Stage) -> list[Intervention]:
        found = [at(s).apply(self._keeper(s)) for s in sorted({stage.stream, stage.mlp_stream})]
        for path in dict.fromkeys(ports.columns.path for ports in stage.ports):
            found.append(at(f"module:{path}:out").apply(self._projected(stage, path)))
        if len(stage.heads):
            site = f"blocks.{stage.layer}.attn.z"
            found.append(at(site).apply(self._heads(stage, site)))
        if stage.mlp_target is not None:
            found.append(at(f"blocks.{stage.layer}.mlp.in").apply(self._mlp(stage)))
        if stage.mlp_source is not None:
            site = f"blocks.{stage.layer}.mlp.out"
            found.append(at(site).apply(self._writer(site)))
        return found

    def _keeper(self, site: str) -> Change:
        def keep(value: torch.Tensor) -> torch.Tensor:
            self._streams[site] = value
            return value

        return keep

    def _embedding(self, site: str) -> Change:
        def write(value: torch.Tensor) -> torch.Tensor:
            self._written = [self._off(site, value).unsqueeze(1)]
            return value

        return write

    def _heads(self, stage: Stage, site: str) -> Change:
        def write(value: torch.Tensor) -> torch.Tensor:
            self._written.append(head_writes(self._reading, stage, self._off(site, value)))
            return value

        return write

    def _writer(self, site: str) -> Change:
        def write(value: torch.Tensor) -> torch.Tensor:
            laid = self._laid_out(value)
            self._written.append(self._off(site, laid).unsqueeze(1))
            return value

        return write

    def _off(self, site: str, value: torch.Tensor) -> torch.Tensor:
        other = self._instead.get(site)
        return value if other is None else value - other.to(value)

    def _laid_out(self, value: torch.Tensor) -> torch.Tensor:
        return value.reshape(len(self._missing), -1, value.shape[-1])

    def _reads(self, site: str, targets: slice, seen: int, norm: Norm) -> torch.Tensor:
        """Return what some targets read, normed ``[t, b, p, d]``."""
        table = torch.cat(self._written, 1)[:, :seen]
        shares = self._missing[:, :seen, targets].to(table.dtype)
        removed = torch.einsum("bst,bspd->tbpd", shares, table)
        stream = self._laid_out(self._streams[site]) - removed
        normed: torch.Tensor = norm(stream.flatten(0, 1)).unflatten(0, stream.shape[:2])
        return normed

    def _projected(self, stage: Stage, path: str) -> Change:
        norm = self._reading.norm(stage.attn_norm)
        projection = self._reading.module(path)
        bias = getattr(projection, "bias", None)

        def change(value: torch.Tensor) -> torch.Tensor:
            new = self._laid_out(value).clone()
            for ports in stage.ports:
                if ports.columns.path != path:
                    continue
                targets = slice(ports.targets.start, ports.targets.stop)
                reads = self._reads(stage.stream, targets, stage.seen, norm)
                columns = torch.as_tensor(ports.columns.columns, device=value.device)
                weight = hf.projection_weight(projection).detach()[:, columns]
                produced = torch.einsum("hbpd,dhk->bphk", reads, weight)
                if isinstance(bias, torch.Tensor):
                    produced = produced + bias[columns].detach()
                new[:, :, columns] = produced.to(new.dtype)
            return new.reshape(value.shape)

        return change

    def _mlp(self, stage: Stage) -> Change:
        norm = self._reading.norm(stage.mlp_norm)
        target = stage.mlp_target or 0

        def change(value: torch.Tensor) -> torch.Tensor:
            where = slice(target, target + 1)
            reads = self._reads(stage.mlp_stream, where, stage.mlp_seen, norm)
            return reads[0].reshape(value.shape).to(value.dtype)

        return change

    def _logits(self, value: torch.Tensor) -> torch.Tensor:
        self._streams[self._reading.last_stream] = value
        seen = self._missing.shape[1]
        reads = self._reads(self._reading.last_stream, slice(-1, None), seen, lambda x: x)
        return reads[0].reshape(value.shape).to(value.dtype)
