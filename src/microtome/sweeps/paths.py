"""Path patching: what one part hands to chosen receivers directly, everything between frozen.

Wang et al. (2022, arXiv 2211.00593). With all other parts frozen at their values in the base run, a
sender's change reaches a later block's input as the same vector, added to the recorded stream. So
no pass is needed to find what the receivers read: the sender's change is added to the recorded
stream, normed by the model's own norm, and given to the receivers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from microtome.behaviors.evaluate import batches
from microtome.behaviors.examples import Examples
from microtome.behaviors.metrics import LastTokenMetric
from microtome.behaviors.metrics import metric as metric_named
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import Provenance, collect
from microtome.core.stats import Interval, cluster_ratio_bootstrap
from microtome.errors import (
    EmptyDataError,
    MetricError,
    ModelSupportError,
    SweepError,
    nearest,
)
from microtome.models import hf
from microtome.store.results import Result
from microtome.sweeps.rows import Reader, Row, at_read, rows_of
from microtome.sweeps.rules import restart_reason
from microtome.tracing.catalog import require_anatomy, require_sums
from microtome.tracing.replay import BaseRun, Entry, wave
from microtome.tracing.sites import Site, at

if TYPE_CHECKING:
    import pandas as pd

    from microtome.behaviors.behavior import Behavior
    from microtome.models.anatomy import Anatomy
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model

RECEIVERS = ("attn.in.q", "attn.in.k", "attn.in.v", "mlp.in", "logits")
"""Sites that can receive."""

ROWS = 128
"""Rows of a replay at most."""


@dataclass(frozen=True, eq=False)
class PathEffects(Result, schema="path-effects", version=1):
    """The metric when single senders' changes reach the receivers directly, for every example.

    Attributes:
        values: Metric ``[example, sender]``.
        senders: Names of the senders, ``a0.h3`` or ``m2``.
        receivers: Text forms of the receiving sites.
        base: Metric of the unchanged run ``[example]``.
        source: Metric of the run that senders' values are taken from ``[example]``.
        clusters: Cluster of each example.
        metric: Name of the metric.
        provenance: Model, versions.
    """

    values: np.ndarray
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    base: np.ndarray
    source: np.ndarray
    clusters: tuple[str, ...]
    metric: str
    provenance: Provenance | None = None

    def interval(self, sender: str, *, seed: int = 0) -> Interval:
        """Return a sender's effect, as a share of the way from base to source, with its interval.

        Raises:
            SweepError: If there is no such sender.
        """
        if sender not in self.senders:
            raise SweepError(f"No sender {sender!r}; there are {', '.join(self.senders)}.")
        moved = self.values[:, self.senders.index(sender)] - self.base
        return cluster_ratio_bootstrap(
            moved, self.source - self.base, np.array(self.clusters), seed=seed
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each sender with its mean value and effect."""
        import pandas as pd

        span = float((self.source - self.base).mean())
        means = self.values.mean(0)
        effect = (means - self.base.mean()) / span if span else means * np.nan
        return pd.DataFrame({"sender": self.senders, "value": means, "effect": effect})


def path_patching(
    model: Model,
    behavior: Behavior | Examples,
    receivers: str | Site | Sequence[str | Site],
    *,
    senders: Sequence[str] | None = None,
    base: Literal["clean", "corrupt"] = "clean",
    metric: str = "logit_difference",
    progress: Progress = quiet,
) -> PathEffects:
    """Measure what each head and MLP hands to the receivers directly.

    Args:
        model: A transformer whose blocks add what attention and MLP write.
        behavior: A behavior, or examples prepared for the model.
        receivers: Sites that receive: ``attn.in.q``, ``attn.in.k``, ``attn.in.v`` of a head,
            ``mlp.in`` of a block, or ``logits``.
        senders: Names of heads and MLPs; by default all that lie before the last receiver.
        base: The run that is changed; senders take their value from the other run.
        metric: A metric of the prompt's end.
        progress: Told after each batch.

    Raises:
        SweepError: If a site cannot receive, or no sender lies before a receiver.
        ModelSupportError: If writes do not add up in this model, or passes cannot start late.
        MetricError: If the metric needs several rows for an example.
    """
    from microtome.behaviors.behavior import Behavior as _Behavior
    from microtome.tracing.components import component_names

    anatomy = require_anatomy(model.anatomy, "Path patching")
    examples = behavior.prepare(model) if isinstance(behavior, _Behavior) else behavior
    if len(examples) == 0:
        raise EmptyDataError("There are no examples.")
    odd = restart_reason(model)
    if odd:
        raise ModelSupportError(f"Path patching cannot start at a later block: {odd}.")
    sites = _receivers(model, receivers)
    last = max(_place(site, anatomy) for site in sites)
    names = tuple(senders) if senders is not None else component_names(model)
    names = tuple(name for name in names if _order(name) < last)
    if not names:
        raise SweepError(f"No sender lies before {', '.join(map(str, sites))}.")
    lines = rows_of(_metric(metric), examples, base, model.readout)
    values = np.zeros((len(examples), len(names)))
    ends = np.zeros((2, len(examples)))
    done = 0
    for places in batches(examples, 32):
        part = _Part.of(model, tuple(lines[p] for p in places), sites, metric)
        ends[:, places] = part.ends
        size = max(1, ROWS // len(places))
        for start in range(0, len(names), size):
            some = names[start : start + size]
            values[np.ix_(places, range(start, start + len(some)))] = part.run(some)
            done += len(some) * len(places)
            progress.step(done, values.size, "path patching")
    return PathEffects(
        values=values,
        senders=names,
        receivers=tuple(map(str, sites)),
        base=ends[0],
        source=ends[1],
        clusters=tuple(examples.clusters.tolist()),
        metric=metric,
        provenance=collect(model, {"base": base, "receivers": [str(s) for s in sites]}),
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """Examples of one length with their recorded runs."""

    model: Model
    rows: tuple[Row, ...]
    sites: tuple[Site, ...]
    recorded: BaseRun
    other: dict[str, torch.Tensor]
    reader: Reader
    first: int
    ends: np.ndarray

    @staticmethod
    def of(model: Model, rows: tuple[Row, ...], sites: tuple[Site, ...], name: str) -> _Part:
        from microtome.sweeps.rows import row_values
        from microtome.tracing.suffix import suffix_facts

        captures = _writes(model)
        anatomy = require_anatomy(model.anatomy, "Path patching")
        mids = [f"blocks.{_layer(s, anatomy)}.resid_mid" for s in sites if s.name == "mlp.in"]
        wanted = [m for m in dict.fromkeys(mids) if not _parallel(model, m)]
        keys = suffix_facts(model).usable
        recorded = model.record(
            [r.base for r in rows], keys=keys, capture=[*captures, *wanted], logits="last"
        )
        trace = model.trace([r.source for r in rows], capture=captures, logits="last")
        other = {site: trace.value(site) for site in captures}
        metric = _metric(name)
        if trace.logits is None:
            raise MetricError("The model returned no logits.")
        ends = np.stack(
            [
                row_values(metric, logits, rows).detach().float().cpu().numpy()
                for logits in (at_read(recorded.logits, rows), trace.logits)
            ]
        )
        reader = Reader.of(model, metric, rows, narrow=True)
        first = min(r.first_difference for r in rows) if keys else 0
        return _Part(model, rows, sites, recorded, other, reader, first, ends)

    def run(self, senders: Sequence[str]) -> np.ndarray:
        """Return the metric ``[example, sender]``."""
        rows = torch.arange(len(self.rows)).repeat(len(senders))
        deltas = torch.cat([self._delta(name) for name in senders])
        inside = [site for site in self.sites if site.name != "logits"]
        anatomy = require_anatomy(self.model.anatomy, "Path patching")
        start = min((_layer(site, anatomy) for site in inside), default=anatomy.n_layers)
        changes = [self._change(site, senders, deltas, rows) for site in inside]
        stream = self.recorded.streams[start][rows, self.first :]
        with torch.no_grad():
            last = wave(
                self.model, self.recorded, [Entry(start, stream, rows)], first=self.first,
                interventions=changes,
            )  # fmt: skip
        if any(site.name == "logits" for site in self.sites):
            last = last + deltas[:, self.first :]
        read = self.rows[0].reads[0] - self.first
        values = self.reader.read(last[:, read : read + 1], rows).float().cpu().numpy()
        return values.reshape(len(senders), len(self.rows)).T

    def _delta(self, sender: str) -> torch.Tensor:
        """Return what a sender adds to the stream in the other run and not in the base run."""
        layer, _ = _order(sender)
        block = require_anatomy(self.model.anatomy, "Path patching").blocks[layer]
        head = int(sender.split(".h")[1]) if sender.startswith("a") else None
        site = f"blocks.{layer}.{'mlp.out' if head is None else 'attn.z'}"
        change = self.other[site] - self.recorded.captured[site]
        if head is None or block.attention is None:
            return change
        projection = self.model.module.get_submodule(block.attention.out_proj or "")
        weight = hf.projection_weight(projection).detach()
        written: torch.Tensor = (
            change[:, :, head] @ weight.unflatten(0, (block.attention.n_heads, -1))[head]
        )
        return written * block.attention.scale

    def _change(
        self, site: Site, senders: Sequence[str], deltas: torch.Tensor, rows: torch.Tensor
    ) -> Intervention:
        """Return the intervention that gives a receiver what it reads."""
        anatomy = require_anatomy(self.model.anatomy, "Path patching")
        layer = _layer(site, anatomy)
        block = anatomy.blocks[layer]
        kind = "mlp.norm" if site.name == "mlp.in" else "attn.norm"
        mid = site.name == "mlp.in" and block.placement == "sequential"
        place = f"blocks.{layer}.resid_mid"
        stream = self.recorded.captured[place] if mid else self.recorded.streams[layer]
        reaches = [_order(name) < _place(site, anatomy) for name in senders]
        counted = torch.tensor(reaches).repeat_interleave(len(self.rows)).to(deltas.device)
        changed = stream[rows] + deltas * counted[:, None, None]
        with torch.no_grad():
            value = self.model.module.get_submodule(block.norms[kind])(changed)
        if site.name.startswith("attn.in.") and block.attention is not None:
            grouped = site.name != "attn.in.q"
            heads = block.attention.n_kv_heads if grouped else block.attention.n_heads
            value = value.unsqueeze(2).expand(-1, -1, heads, -1)
        return site.patch(value)


def _metric(name: str) -> LastTokenMetric:
    chosen = metric_named(name)
    if not isinstance(chosen, LastTokenMetric):
        raise MetricError(f"Path patching needs a metric of the prompt's end; {name} is none.")
    return chosen


def _receivers(model: Model, receivers: str | Site | Sequence[str | Site]) -> tuple[Site, ...]:
    anatomy = require_anatomy(model.anatomy, "Path patching")
    for block in anatomy.blocks:
        require_sums(block, "path patching")
    given = [receivers] if isinstance(receivers, str | Site) else list(receivers)
    found = []
    for site in map(at, given):
        if site.name not in RECEIVERS:
            raise SweepError(f"{site} cannot receive{nearest(site.name, RECEIVERS)}.")
        if site.name == "logits":
            found.append(site)
            continue
        if site.layer is None or len(site.layers(anatomy.n_layers)) != 1:
            raise SweepError(
                f"{site}: name one block for each receiver, as in blocks.3.{site.name}."
            )
        kind = "mlp.norm" if site.name == "mlp.in" else "attn.norm"
        layer = site.layers(anatomy.n_layers)[0]
        if kind not in anatomy.blocks[layer].norms:
            raise ModelSupportError(f"Block {layer} has no norm before {site.name}.")
        found.append(site)
    return tuple(found)


def _writes(model: Model) -> list[str]:
    blocks = require_anatomy(model.anatomy, "Path patching").blocks
    sites = [f"blocks.{n}.attn.z" for n, b in enumerate(blocks) if b.attention is not None]
    return sites + [f"blocks.{n}.mlp.out" for n, b in enumerate(blocks) if b.mlp is not None]


def _parallel(model: Model, site: str) -> bool:
    blocks = require_anatomy(model.anatomy, "Path patching").blocks
    return blocks[int(site.split(".")[1])].placement == "parallel"


def _layer(site: Site, anatomy: Anatomy) -> int:
    return anatomy.n_layers if site.name == "logits" else site.layers(anatomy.n_layers)[0]


def _place(site: Site, anatomy: Anatomy) -> tuple[int, int]:
    """Return the order from which on senders come too late for a receiver."""
    layer = _layer(site, anatomy)
    behind = site.name == "mlp.in" and anatomy.blocks[layer].placement == "sequential"
    return layer, int(behind)


def _order(name: str) -> tuple[int, int]:
    """Return a sender's block, and whether it is a head (0) or an MLP (1)."""
    layer = name[1:].split(".")[0]
    if name[:1] not in ("a", "m") or not layer.isdigit():
        raise SweepError(f"{name!r} is no head or MLP; expected a name such as a0.h3 or m2.")
    return int(layer), int(name[0] == "m")
