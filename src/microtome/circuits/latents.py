"""Circuits of latents: the latents and errors of attached codecs scored, and run without others.

Sparse feature circuits (Marks et al., 2024, arXiv 2403.19647): the value at a codec's site is what
its latents stand for and an error, and each latent and the error is a part of its own. A part
outside a circuit gives what it gave in the corrupt run, its mean, or nothing; every codec reads the
stream as those before it left it. What no codec reads is never ablated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.attribution.patching import integrated, single_row, slopes_of
from microtome.attribution.results import ComponentScores
from microtome.behaviors.evaluate import batches
from microtome.circuits.ablation import mixed
from microtome.circuits.nodes import check_nodes
from microtome.circuits.references import ROWS, References
from microtome.circuits.running import CircuitRunner, Group
from microtome.core.provenance import collect
from microtome.errors import ConfigError
from microtome.tracing.attachments import fingerprints, order_of
from microtome.tracing.sites import at
from microtome.tracing.vocabulary import is_latents

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.behaviors.metrics import LastTokenMetric, Metric
    from microtome.circuits.references import Ablation
    from microtome.tracing.attachments import Attachment
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model

ENTRIES = 2**26
"""Latents of all rows and positions that a pass holds at most (256 MiB of float32)."""

MEANING = {
    "resample": "Support for the behavior: how much of the metric is lost when this latent or "
    "error alone is patched from the corrupt run, first order, with the gradients of both runs "
    "averaged (Marks et al., 2024).",
    "mean": "Support for the behavior: how much of the metric is lost when this latent or error "
    "alone gives its mean, first order, with the gradient of the clean run (Marks et al., 2024).",
    "zero": "Support for the behavior: how much of the metric is lost when this latent or error "
    "alone is set to zero, first order, with the gradient of the clean run (Marks et al., 2024).",
    "exact": "Support for the behavior: how much of the metric is lost when this latent or error "
    "alone is ablated.",
}


class LatentParts:
    """The latents and errors of all codecs attached to a model, in the order of attaching.

    Args:
        model: A model with codecs attached.

    Attributes:
        names: ``blocks.3.resid_post/NAME[latent=0]``, ..., ``blocks.3.resid_post/NAME.error``.
        spans: Their places among the names, by site.
        blocks: The block of each ``[part]``; -1 outside the blocks.
        apart: Why passes cannot start where the first changed part lies; empty where they can.

    Raises:
        ConfigError: If nothing is attached.
    """

    def __init__(self, model: Model) -> None:
        if not model.codecs:
            raise ConfigError(
                "Nothing is attached to this model, so there are no latents. Attach a codec first: "
                "model = model.attach(NAME, codec, at=SITE)."
            )
        names: list[str] = []
        blocks: list[int] = []
        self.spans: dict[str, slice] = {}
        self.apart = ""
        for one in model.codecs:
            start, site = len(names), str(one.latents)
            names += [f"{site}[latent={n}]" for n in range(one.codec.d_sae)]
            self.spans[site] = slice(start, len(names))
            for error in errors_of(one):
                if error not in self.spans:  # parts of one codec share those of their targets
                    self.spans[error] = slice(len(names), len(names) + 1)
                    names.append(error)
            layer = one.at.layer[0] if isinstance(one.at.layer, tuple) else -1
            blocks += [layer] * (len(names) - len(blocks))
            if one.joint:
                self.apart = f"{one.name} has several sites"
            elif one.at.layer != one.to.layer or layer < 0:
                self.apart = f"{one.name} does not read and write inside one block"
        self.names = tuple(names)
        self.blocks = np.array(blocks)

    @property
    def sites(self) -> list[str]:
        """Where the parts can be seen."""
        return list(self.spans)

    def rows(self, examples: Examples) -> int:
        """Return how many rows a pass holds."""
        width = max(len(e.clean) for e in examples)
        return max(1, min(ROWS, ENTRIES // (len(self.names) * width)))


def errors_of(one: Attachment) -> list[str]:
    """Return the errors of a codec that can be changed, by the names of their sites."""
    return [str(one.error_at(site)) for site in one.writes if one.in_time(site)]


def _comes_first(one: Attachment, model: Model) -> bool:
    """Return whether nothing that another codec writes is passed before a codec reads."""
    last = order_of(one.at)
    return not any(
        order_of(site) <= last
        for other in model.codecs
        if other is not one
        for site in other.writes
    )


class LatentAblator(CircuitRunner[np.ndarray]):
    """Runs circuits of latents and errors of one model on one set of examples under one ablation.

    A circuit in the form it is run in is the array of the numbers of its ablated parts.

    Args:
        model: A model with codecs attached.
        examples: The examples whose clean prompts are run.
        ablation: What ablated parts give.
        reference: Examples over whose clean and corrupt prompts means are taken; ``examples`` by
            default.

    Raises:
        ConfigError: If the ablation is unknown, or nothing is attached.
    """

    level = "latent"

    def __init__(
        self,
        model: Model,
        examples: Examples,
        *,
        ablation: Ablation = "resample",
        reference: Examples | None = None,
    ) -> None:
        self._parts = LatentParts(model)
        self._rows = self._parts.rows(examples)
        super().__init__(
            model,
            examples,
            universe=self._parts.names,
            sites=self._parts.sites,
            ablation=ablation,
            reference=reference,
        )

    def run_cuts(
        self, cuts: Sequence[np.ndarray], metrics: Sequence[str | Metric]
    ) -> dict[str, np.ndarray]:
        """Return metrics of circuits, given as the numbers of their ablated parts.

        Circuits that differ only in idle parts are run once.
        """
        idle = self._idle
        distinct: dict[bytes, int] = {}
        smaller = [cut[~idle[cut]] for cut in cuts]
        places = [distinct.setdefault(cut.tobytes(), len(distinct)) for cut in smaller]
        first = [places.index(number) for number in range(len(distinct))]
        found = super().run_cuts([smaller[n] for n in first], metrics)
        return {name: values[places] for name, values in found.items()}

    @cached_property
    def _idle(self) -> np.ndarray:
        """Which parts give what ablates them anyway, in every circuit and example ``[part]``.

        Only a codec that no other acts on has the same latents whatever is ablated; of thousands
        of these most are active neither in a run nor in the one that ablates them.
        """
        sites = [str(one.latents) for one in self.model.codecs if _comes_first(one, self.model)]
        found = np.zeros(len(self.universe), dtype=bool)
        for site in sites:
            found[self._parts.spans[site]] = True
        for group in self._groups if sites else ():
            trace = self.model.trace(group.examples.clean, capture=sites, logits=None)
            for site in sites:
                value = trace.value(site)[:, group.first :]
                ablated = group.instead.get(site)
                moved = value != (0.0 if ablated is None else ablated.to(value))
                found[self._parts.spans[site]] &= ~moved.flatten(0, 1).any(0).cpu().numpy()
        return found

    def _apart(self) -> str:
        return self._parts.apart

    def _kind(self) -> str:
        return f"{super()._kind()} {fingerprints(self.model.codecs)}"

    def _batches(self) -> Iterator[list[int]]:
        return batches(self.examples, self._rows, model=self.model)

    def _chunks(
        self, group: Group, cuts: Sequence[np.ndarray], order: Sequence[int]
    ) -> Iterator[list[int]]:
        size = max(1, self._rows // len(group.places))
        for start in range(0, len(order), size):
            yield list(order[start : start + size])

    def _cut(self, circuit: frozenset[str]) -> np.ndarray:
        check_nodes(circuit, self.universe)
        return np.flatnonzero([name not in circuit for name in self.universe])

    def _first_block(self, cuts: Sequence[np.ndarray]) -> int:
        layers = 0 if self.model.anatomy is None else self.model.anatomy.n_layers
        blocks = self._parts.blocks
        return min((max(0, int(blocks[cut].min())) for cut in cuts if len(cut)), default=layers)

    def _changes(self, group: Group, cuts: Sequence[np.ndarray], start: int) -> list[Intervention]:
        keep = torch.ones(len(cuts), len(self.universe), dtype=torch.bool)
        for row, cut in enumerate(cuts):
            keep[row, torch.as_tensor(cut)] = False
        found = []
        for site, span in self._parts.spans.items():
            mask = keep[:, span]
            if bool(mask.all()):
                continue
            rows = mask.repeat_interleave(len(group.places), 0)
            axes = at(site).axes
            # latents have a mask of their own for each, an error one for all of its entries
            rows = rows[:, None, :] if is_latents(at(site).name) else rows
            while rows.ndim < len(axes):
                rows = rows.unsqueeze(-1)
            found.append(at(site).apply(mixed(rows, group.instead.get(site), len(cuts))))
        return found


def latent_support(
    model: Model,
    examples: Examples,
    *,
    metric: str | Metric = "logit_difference",
    ablation: Ablation = "resample",
    reference: Examples | None = None,
    steps: int = 1,
) -> ComponentScores:
    """Score every latent and every error of the attached codecs by its support for a behavior.

    (value in the clean run - ablated value) . gradient, summed over positions, and for errors over
    their entries. Under ``resample`` the gradient is the mean of those in both runs, otherwise that
    of the clean run.

    Args:
        model: A model with codecs attached.
        examples: Examples prepared for it.
        metric: A metric that reads the prompt's end.
        ablation: What ablated parts give.
        reference: Examples over whose clean and corrupt prompts means are taken; ``examples`` by
            default.
        steps: With more than 1, the gradient is averaged over as many midpoints between the token
            embeddings of both runs instead of over the two runs; under ``resample`` only.

    Returns:
        Scores of the parts of :class:`LatentAblator`, with their ``ranking()``.

    Raises:
        ConfigError: If nothing is attached, the ablation is unknown, ``steps`` is not positive, or
            it is more than 1 under another ablation.
        MetricError: If the metric needs several rows for an example.
    """
    if steps < 1:
        raise ConfigError(f"steps={steps}; expected at least 1.")
    if steps > 1 and ablation != "resample":
        raise ConfigError(
            f"steps={steps} with ablation={ablation!r}; gradients are averaged on the way to the "
            "corrupt prompt, so take steps=1 or ablation='resample'."
        )
    chosen = single_row(metric, "Attribution patching")
    parts = LatentParts(model)
    instead = References(model, examples, parts.sites, ablation=ablation, reference=reference)
    values = np.zeros((len(examples), len(parts.names)))
    for places in batches(examples, max(1, parts.rows(examples) // 4), model=model):
        chunk = examples.take(places)
        for site, effect in _effects(model, chosen, chunk, parts, instead, steps).items():
            summed = effect.detach().double().sum(1)
            if not is_latents(at(site).name):
                summed = summed.flatten(1).sum(1, keepdim=True)
            values[places, parts.spans[site]] = summed.cpu().numpy()
    method = "attribution" if steps == 1 else f"integrated gradients, {steps} steps"
    return _scores(model, parts.names, values, method, chosen.name, MEANING[ablation])


def _effects(
    model: Model,
    metric: LastTokenMetric,
    chunk: Examples,
    parts: LatentParts,
    instead: References,
    steps: int,
) -> dict[str, torch.Tensor]:
    """Return what each entry of each site supports, first order ``[example, pos, ...]``."""
    clean = slopes_of(model, metric, chunk, parts.sites, chunk.clean)
    if instead.ablation != "resample":
        ablated = instead.of(chunk)
        return {s: (clean.value(s) - ablated.get(s, 0.0)) * clean[s] for s in parts.sites}
    if steps > 1:
        clean = integrated(model, metric, chunk, clean, chunk.clean, chunk.corrupt, steps)
    corrupt = slopes_of(model, metric, chunk, parts.sites, chunk.corrupt)
    return {
        s: (clean.value(s) - corrupt.value(s))
        * (clean[s] if steps > 1 else (clean[s] + corrupt[s]) / 2)
        for s in parts.sites
    }


def exact_latents(
    model: Model,
    examples: Examples,
    *,
    metric: str | Metric = "logit_difference",
    ablation: Ablation = "resample",
    reference: Examples | None = None,
) -> ComponentScores:
    """Score every latent and error by what is lost when it alone is ablated.

    Latents that first order moves nothing for no example are not run: what ablates them leaves them
    as they are, or nothing behind them reads them.

    Args:
        model: A model with codecs attached.
        examples: Examples prepared for it.
        metric: A metric that reads the prompt's end.
        ablation: What ablated parts give.
        reference: Examples over which means are taken; ``examples`` by default.

    Raises:
        ConfigError: If nothing is attached, or the ablation is unknown.
        MetricError: If the metric needs several rows for an example.
    """
    chosen = single_row(metric, "Exact latent patching")
    ablator = LatentAblator(model, examples, ablation=ablation, reference=reference)
    first_order = latent_support(
        model, examples, metric=metric, ablation=ablation, reference=reference
    )
    moved = np.flatnonzero((first_order.values != 0).any(0))
    everything = np.array([], dtype=int)
    found = ablator.run_cuts([everything, *(np.array([n]) for n in moved)], [metric])[chosen.name]
    values = np.zeros_like(first_order.values)
    values[:, moved] = (found[0] - found[1:]).T
    return _scores(model, ablator.universe, values, "exact", chosen.name, MEANING["exact"])


def _scores(
    model: Model, names: tuple[str, ...], values: np.ndarray, method: str, metric: str, meaning: str
) -> ComponentScores:
    settings = {"method": method, "metric": metric, "codecs": fingerprints(model.codecs)}
    return ComponentScores(
        names=names,
        values=values,
        method=method,
        metric=metric,
        meaning=meaning,
        provenance=collect(model, settings),
    )
