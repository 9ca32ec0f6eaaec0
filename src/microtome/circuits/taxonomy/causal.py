"""Heads told by what they do to a behavior: movers, S-inhibition, backups, function vectors.

Effects are per example, in units of the mean size of the metric in the clean and in the corrupt run
added up. Where both runs answer rightly that is the difference between them; in a twin, where they
hardly differ, it is still the size of the metric. Their shuffles exchange clean and corrupt in
random clusters: the sign of a cluster's effect flips.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import stats

from microtome.behaviors.evaluate import batches
from microtome.behaviors.metrics import LastTokenMetric, metric
from microtome.circuits.taxonomy.detector import Detector, Scores
from microtome.circuits.taxonomy.material import Material, head_name
from microtome.core.stats import cluster_standard_error
from microtome.errors import MetricError, ModelSupportError
from microtome.sweeps.paths import path_patching
from microtome.tracing.norms import centers, divisor
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microtome.behaviors.examples import Examples, Tokens
    from microtome.tracing.interventions import Intervention

EXAMPLES = 24
"""Examples at most."""

MOVES = 0.1
"""Share of the metric's difference that a mover writes at least."""


class Effects:
    """What the heads of one model do to a behavior; each thing is measured at most once."""

    def __init__(self, material: Material) -> None:
        if material.inputs.examples is None:
            raise ModelSupportError(material.inputs.missing["behavior"])
        self.material = material
        self.model = material.model
        self.examples: Examples = material.inputs.examples[:EXAMPLES]
        chosen = metric(material.inputs.metric)
        if not isinstance(chosen, LastTokenMetric):
            raise MetricError(f"{chosen.name} does not read the prompt's end.")
        self.metric = chosen

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """Metric of the clean and of the corrupt runs ``[2, example]``."""
        return np.stack([self._scored("clean"), self._scored("corrupt")])

    @functools.cached_property
    def unit(self) -> float:
        """Mean size of the metric in the clean run plus that in the corrupt run."""
        return max(float(np.abs(self.ends).sum(0).mean()), 1e-9)

    @functools.cached_property
    def direct(self) -> np.ndarray:
        """What each head writes to the metric directly in the clean run ``[example, head]``."""
        return self._direct("clean")

    @functools.cached_property
    def moved(self) -> np.ndarray:
        """The same less that in the corrupt run, in units ``[example, head]``."""
        return np.asarray((self.direct - self._direct("corrupt")) / self.unit)

    @functools.cached_property
    def movers(self) -> list[int]:
        """Places of the heads that raise the metric most directly, three at most."""
        means = self.moved.mean(0)
        order = np.argsort(-means, kind="stable")[:3]
        return [int(i) for i in order if means[i] >= MOVES]

    def backup(self) -> np.ndarray:
        """Return direct effects with the movers ablated less those without ``[example, head]``.

        Raises:
            ModelSupportError: If no head moves the metric directly.
        """
        if not self.movers:
            raise ModelSupportError("no head moves the metric directly, so nothing needs a backup")
        after = np.zeros_like(self.direct)
        for places in batches(self.examples, 32):
            chunk = self.examples.take(places)
            heads = [self.material.heads[i] for i in self.movers]
            other = self.model.trace(
                chunk.corrupt, capture=[f"blocks.{n}.attn.z" for n, _ in heads], logits=None
            )
            cut = [at("attn.z", layer=n, head=h).patch(other) for n, h in heads]
            after[places] = self._direct_of(chunk, chunk.clean, cut)
        gained = (after - self.direct) / self.unit
        gained[:, self.movers] = np.nan
        return np.asarray(gained)

    def _scored(self, side: str) -> np.ndarray:
        values = np.zeros(len(self.examples))
        for places in batches(self.examples, 32):
            chunk = self.examples.take(places)
            trace = self.model.trace(getattr(chunk, side), logits="last")
            values[places] = self.read(trace.logits, chunk)
        return values

    def read(self, logits: torch.Tensor | None, chunk: Examples) -> np.ndarray:
        """Return the metric of logits ``[row, 1, vocab]``."""
        if logits is None:
            raise MetricError("The model returned no logits.")
        lengths = torch.ones(len(chunk), dtype=torch.long)
        return np.asarray(self.metric(logits, lengths, chunk).detach().float().cpu().numpy())

    def _direct(self, side: str) -> np.ndarray:
        values = np.zeros((len(self.examples), len(self.material.heads)))
        for places in batches(self.examples, 32):
            chunk = self.examples.take(places)
            values[places] = self._direct_of(chunk, getattr(chunk, side), [])
        return values

    def _direct_of(
        self, chunk: Examples, prompts: Sequence[Tokens], changes: list[Intervention]
    ) -> np.ndarray:
        """Return what heads write to the metric past the frozen final norm ``[example, head]``."""
        anatomy = self.material.anatomy
        readable, left_out = self.material.weight_heads()
        if left_out or anatomy.final_norm is None or anatomy.tail.softcap is not None:
            raise ModelSupportError(
                "direct effects need heads, a final norm and logits that add up: "
                + (left_out[0] if left_out else "no final norm, or a soft cap bends the logits")
            )
        last = f"blocks.{anatomy.n_layers - 1}.resid_post"
        sites = [f"blocks.{n}.attn.z[pos=-1]" for n in sorted({n for n, _ in readable})]
        trace = self.model.trace(
            prompts, capture=[*sites, f"{last}[pos=-1]"], interventions=changes, logits=None
        )
        norm = self.model.module.get_submodule(anatomy.final_norm)
        stream = trace[f"{last}[pos=-1]"][:, 0].float()
        scale = divisor(norm, stream)
        table = self.model.weights.view(fold_norm=True).W_U.detach().float()
        lines = []
        for example in chunk:
            ids, weights = self.metric.direction(example)
            lines.append(table[:, list(ids)] @ torch.tensor(weights, device=table.device))
        lines_read = torch.stack(lines) / scale
        found = np.zeros((len(chunk), len(self.material.heads)))
        for place, (layer, head) in enumerate(self.material.heads):
            z = trace[f"blocks.{layer}.attn.z[pos=-1]"][:, 0, head].float()
            written = z @ self.model.weights.W_O(layer, head).detach().float()
            if centers(norm, stream.shape[-1]):
                written = written - written.mean(-1, keepdim=True)
            found[:, place] = (written * lines_read).sum(-1).detach().cpu().numpy()
        return found


def mover(material: Material) -> Scores:
    """Score what a head writes to the metric directly, in the clean less in the corrupt run."""
    return _scores(material, material.once(Effects).moved)


def negative_mover(material: Material) -> Scores:
    """Score what a head writes against the metric directly."""
    return _scores(material, -material.once(Effects).moved)


def backup(material: Material) -> Scores:
    """Score what a head writes more when the movers are ablated."""
    found = material.once(Effects)
    gained = found.backup()
    names = ", ".join(head_name(*material.heads[i]) for i in found.movers)
    return _scores(material, gained, detail=f"movers ablated: {names}")


def query_inhibition(material: Material) -> Scores:
    """Score how much of the metric a head hands to the queries of the movers behind it."""
    found = material.once(Effects)
    receivers = [material.heads[i] for i in found.movers if material.heads[i][0] > 0]
    if not receivers:
        raise ModelSupportError(
            "no head behind the first block moves the metric directly, so no query can be steered"
        )
    sites = [f"blocks.{n}.attn.in.q[head={h}]" for n, h in receivers]
    last = max(n for n, _ in receivers)
    senders = [head_name(n, h) for n, h in material.heads if n < last]
    effects = path_patching(
        material.model, found.examples, sites, senders=senders, metric=material.inputs.metric
    )
    moved = (effects.base[:, None] - effects.values) / found.unit
    values = np.full((len(found.examples), len(material.heads)), np.nan)
    known = [head_name(*head) for head in material.heads]
    for column, sender in enumerate(effects.senders):
        values[:, known.index(sender)] = moved[:, column]
    names = ", ".join(head_name(n, h) for n, h in receivers)
    return _scores(material, values, detail=f"into the queries of {names}")


def function_vector(material: Material) -> Scores:
    """Score what a head's mean output over clean prompts does that its mean over corrupt does not.

    Both are put at the end of corrupt prompts. A mean holds what all prompts of a side share, not
    the answer of one.
    """
    found = material.once(Effects)
    layers = sorted({n for n, _ in material.heads})
    sides = [_mean_outputs(found, side, layers) for side in ("clean", "corrupt")]
    scored = np.zeros((2, len(found.examples), len(material.heads)))
    for places in batches(found.examples, 32):
        chunk = found.examples.take(places)
        for layer in layers:
            inside = [i for i, (n, _) in enumerate(material.heads) if n == layer]
            rows = chunk.take(list(range(len(chunk))) * len(inside))
            which = torch.arange(len(inside)).repeat_interleave(len(chunk))
            for number, means in enumerate(sides):
                change = at(f"blocks.{layer}.attn.z[pos=-1]").apply(_put(means[layer], which))
                trace = found.model.trace(rows.corrupt, interventions=[change], logits="last")
                values = found.read(trace.logits, rows).reshape(len(inside), len(chunk))
                scored[number][np.ix_(places, inside)] = values.T
    return _scores(material, (scored[0] - scored[1]) / found.unit)


def _mean_outputs(found: Effects, side: str, layers: list[int]) -> dict[int, torch.Tensor]:
    """Return each head's mean at the end of one side's prompts, by layer ``[head, d_head]``."""
    totals: dict[int, torch.Tensor] = {}
    for places in batches(found.examples, 32):
        chunk = found.examples.take(places)
        sites = [f"blocks.{n}.attn.z[pos=-1]" for n in layers]
        trace = found.model.trace(getattr(chunk, side), capture=sites, logits=None)
        for layer, site in zip(layers, sites, strict=True):
            summed = trace[site][:, 0].sum(0)
            totals[layer] = totals[layer] + summed if layer in totals else summed
    return {n: t / len(found.examples) for n, t in totals.items()}


class _put:
    """Replaces one head in each row by its mean."""

    def __init__(self, means: torch.Tensor, which: torch.Tensor) -> None:
        self.means, self.which = means, which

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        """Return the value ``[row, 1, head, d_head]`` with one head of each row replaced."""
        changed = value.clone()
        rows = torch.arange(len(self.which))
        changed[rows, :, self.which] = self.means[self.which].unsqueeze(1).to(value.dtype)
        return changed


def _scores(material: Material, effects: np.ndarray, *, detail: str = "") -> Scores:
    """Score heads by their mean effect ``[example, head]`` against flips of whole clusters."""
    known = ~np.isnan(effects).any(0)
    parts = [head_name(*h) for h, k in zip(material.heads, known, strict=True) if k]
    values = effects[:, known]
    clusters = material.once(Effects).examples.clusters
    count = len(set(clusters.tolist()))
    if count < 4:
        raise ModelSupportError(
            f"the behavior's examples come from {count} clusters; flipping clusters needs four"
        )
    sd = np.array([cluster_standard_error(column, clusters) for column in values.T])
    sd = np.maximum(sd, 1e-9)
    mean = values.mean(0)
    return Scores(
        tuple(parts), mean, np.zeros(len(parts)), sd, stats.t.sf(mean / sd, count - 1),
        np.ones(len(parts), dtype=bool), dict.fromkeys(parts, detail) if detail else {},
    )  # fmt: skip


FLIPS = "clean and corrupt exchanged in random clusters: the sign of their effects flips"

CAUSAL = (
    Detector(
        "mover", "head",
        "what the head writes to the metric directly at the prompt's end, in the clean less in "
        "the corrupt run, as a share of the mean size of the metric in both",
        "Wang 2022", "behavior", FLIPS, mover, threshold=MOVES, standing="microtome",
    ),
    Detector(
        "negative mover", "head",
        "what the head writes against the metric directly, as a share of the same",
        "Wang 2022, McDougall 2023", "behavior", FLIPS, negative_mover, threshold=MOVES,
        standing="microtome",
    ),
    Detector(
        "S-inhibition", "head",
        "path patching into the queries of the movers: how much of the metric is "
        "lost when the head alone hands them what it gives in the corrupt run",
        "Wang 2022", "behavior", FLIPS, query_inhibition, threshold=0.05, standing="microtome",
    ),
    Detector(
        "backup", "head",
        "direct effect with the movers ablated less that without",
        "Wang 2022", "behavior", FLIPS, backup, threshold=0.05, standing="microtome",
    ),
    Detector(
        "function vector", "head",
        "what the head's mean output over clean prompts does to the metric at the end of corrupt "
        "prompts, less what its mean over corrupt prompts does",
        "Todd 2023", "behavior", FLIPS, function_vector, threshold=0.05, standing="microtome",
    ),
)  # fmt: skip
"""Detectors of what heads do to a behavior."""
