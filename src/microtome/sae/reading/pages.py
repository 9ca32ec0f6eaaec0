"""Dashboards: one latent, or a whole coder, as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microtome.errors import ModelSupportError
from microtome.sae.reading.examples import Example, quantile_examples, top_examples
from microtome.sae.reading.index import LatentIndex
from microtome.sae.reading.relations import (
    Relation,
    co_occurring,
    correlated,
    logit_effects,
    neighbors,
)
from microtome.sae.reading.scoring import Explained
from microtome.views import numbers
from microtome.views.histogram import Histogram, binned
from microtome.views.page import Block, Details, Heading, Page, Section
from microtome.views.table import Cell, Table
from microtome.views.tokens import TokenRow, TokenStrip, TokenStrips

if TYPE_CHECKING:
    from microtome.sae.coder import SAE
    from microtome.sae.evaluation.results import SAEEvaluation
    from microtome.tracing.model import Model

SCORES = (
    "Simulation: Pearson correlation of predicted and true activation over all tokens. Detection: "
    "area under the ROC curve of telling contexts in which the latent is active from others; 0.5 "
    "is chance. Balanced accuracy: of saying so when a rule holds. Fuzzing: balanced accuracy of "
    "telling active tokens from others of the same contexts."
)

FIGURES = (
    "FVU: share of the variance that the reconstruction leaves. L0: latents active at a token, on "
    "average. CE recovered: share of what ablating the site costs in cross-entropy that the "
    "reconstruction makes good. Baselines keep as many random directions, or coordinates, as the "
    "coder keeps latents."
)

BANDS = ("weakest fifth", "second fifth", "middle fifth", "fourth fifth", "strongest fifth")


@dataclass(frozen=True, eq=False)
class Dashboard:
    """What pages of latents are made from.

    Attributes:
        model: The model.
        coder: The coder.
        index: Its index of active latents.
        explained: Explanations with their scores, by latent.
        evaluation: Its evaluation, None if it was not evaluated.
        neurons: An index of the neurons on the same text, for correlations; None for none.
    """

    model: Model
    coder: SAE
    index: LatentIndex
    explained: Mapping[int, Explained]
    evaluation: SAEEvaluation | None = None
    neurons: LatentIndex | None = None

    def latent(self, number: int) -> Page:
        """Return the page of one latent.

        Raises:
            SelectorError: There is no such latent.
            EmptyDataError: It is never active in the indexed text.
        """
        index = self.index
        positions, values = index.require_active(number)
        found = self.explained.get(number)
        title = f"Latent {number}"
        if found is not None and found.explanation.rules:
            title += f": {found.explanation.text}"
        sections = [
            Section("Where it is most active", (_strips(top_examples(index, number, n=12)),)),
            Section("When it is active", self._explanation(number)),
            Section("How strongly", self._strength(number)),
            Section("What it writes", self._writes(number)),
            Section("Its company", self._company(number)),
        ]
        share = len(positions) / max(1, index.n_tokens)
        return Page(
            title=title,
            kicker=f"One latent of {index.d_sae:,} at {', '.join(self.coder.origin.sources)}",
            dek=f"Active at {len(positions):,} of {index.n_tokens:,} tokens ({share:.2%}), at most "
            f"{numbers.number(float(np.abs(values).max()))}. Its activity was measured; "
            "its meaning is a guess that is scored below.",
            sections=sections,
            provenance=self._provenance(),
        )

    def overview(self, latents: Sequence[int], *, examples: int = 3) -> Page:
        """Return the page of the coder with some of its latents.

        Args:
            latents: Which latents to list, in order.
            examples: Strongest examples shown of each.
        """
        index = self.index
        alive = int((index.counts > 0).sum())
        sites = ", ".join(self.coder.origin.sources)
        sections = [
            Section("How good it is", self._quality()),
            Section("How often latents are active", (self._density(),)),
            Section("Latents", (self._list(latents), *self._each(latents, examples))),
        ]
        return Page(
            title=f"{alive:,} of {index.d_sae:,} latents at {sites} are active",
            kicker=f"A sparse coder of {self.coder.origin.model or 'a model'}",
            dek=f"Indexed on {index.n_tokens:,} tokens of {len(np.unique(index.documents)):,} "
            "documents. Explanations are rules found on one half of the contexts and scored on the "
            "other half, beside explanations of other latents.",
            sections=sections,
            provenance=self._provenance(),
        )

    def _explanation(self, number: int) -> list[Block]:
        found = self.explained.get(number)
        if found is None:
            return ["This latent was not explained."]
        rules: list[list[Cell]] = [
            [place, rule.words.replace(": ", " "), rule.activation]
            for place, rule in enumerate(found.explanation.rules, start=1)
        ]
        rows: list[list[Cell]] = [
            [name, s.simulation, s.detection, s.detection_accuracy, s.fuzzing]
            for name, s in (
                ("this explanation", found.scores),
                ("explanations of other latents", found.random),
                ("explanation of shuffled activations", found.shuffled),
            )
        ]
        return [
            f"Active when {found.explanation.text}.",
            Table(("rule", "when", "predicted activation"), rules),
            Heading("How well this predicts it on other text"),
            Table(("", "simulation", "detection", "balanced accuracy", "fuzzing"), rows),
            Details("What the scores mean", (SCORES,)),
            f"The intruder test, which needs no explanation, finds the odd context among five in "
            f"{found.intruder:.0%} of the cases; chance is 20 %.",
        ]

    def _strength(self, number: int) -> list[Block]:
        _, values = self.index.positions(number)
        edges, counts = binned(values.tolist())
        blocks: list[Block] = [Histogram(edges, counts, "activation, where active", "tokens")]
        shown = quantile_examples(self.index, number)
        for bin_number, words in enumerate(BANDS):
            there = [e for e in shown if e.quantile == bin_number]
            if there:
                limit = float(self.index.largest[number])
                blocks += [
                    Heading(f"Examples from the {words} of its range"),
                    _strips(there, limit),
                ]
        return blocks

    def _writes(self, number: int) -> list[Block]:
        try:
            effects = logit_effects(self.model, self.coder, number).float().cpu().numpy()
        except ModelSupportError as error:
            return [str(error)]
        order = np.argsort(effects, kind="stable")
        up, down = order[::-1][:10], order[:10]
        names = self.model.tokens
        rows: list[list[Cell]] = [
            [
                _shown(names([int(a)])[0]),
                float(effects[a]),
                _shown(names([int(b)])[0]),
                float(effects[b]),
            ]
            for a, b in zip(up, down, strict=True)
        ]
        edges, counts = binned(effects.tolist())
        return [
            "Its direction through the unembedding, with the mean over tokens taken away: the "
            "direct path only, before the final norm's scale.",
            Table(("token", "raised by", "token ", "lowered by"), rows),
            Histogram(edges, counts, "effect of one unit on a logit", "tokens", category=1),
        ]

    def _company(self, number: int) -> list[Block]:
        related: list[tuple[str, str, Relation]] = [
            ("Active at the same tokens", "Jaccard", co_occurring(self.index, number)),
            ("Alike in direction", "cosine", neighbors(self.coder, number)),
            ("Alike in activation", "Pearson", correlated(self.index, number, self.index)),
        ]
        blocks: list[Block] = []
        for title, measure, relation in related:
            rows: list[list[Cell]] = [
                [int(n), float(v), self._words(int(n))]
                for n, v in zip(relation.numbers, relation.values, strict=True)
            ]
            if rows:
                blocks += [Heading(title), Table(("latent", measure, "active when"), rows)]
        if self.neurons is not None:
            relation = correlated(self.index, number, self.neurons)
            pairs: list[list[Cell]] = [
                [int(n), float(v)] for n, v in zip(relation.numbers, relation.values, strict=True)
            ]
            blocks += [Heading("Neurons like it"), Table(("neuron", "Pearson"), pairs)]
        return blocks or ["No other latent is active where this one is."]

    def _words(self, number: int) -> str:
        found = self.explained.get(number)
        return found.explanation.text if found is not None else ""

    def _quality(self) -> list[Block]:
        if self.evaluation is None:
            return ["This coder was not evaluated in its model."]
        table = self.evaluation.to_frame()
        columns = {
            "fvu": "FVU",
            "l0": "L0",
            "dead_share": "dead share",
            "ce_recovered_zero": "CE recovered, against zero",
            "ce_recovered_mean": "against the mean",
            "kl_score_zero": "KL score",
        }
        rows: list[list[Cell]] = [
            [str(name), *(float(row[key]) for key in columns)] for name, row in table.iterrows()
        ]
        return [
            Table(("coder", *columns.values()), rows),
            Details("What the figures mean", (FIGURES,)),
        ]

    def _density(self) -> Histogram:
        if self.evaluation is not None:
            counts, edges = self.evaluation.density()
            names = [row.name for row in self.evaluation.rows]
            base = self.evaluation.density("random")[0].tolist() if "random" in names else None
            return Histogram(
                edges.tolist(), counts.tolist(), "log10 of the share of tokens", "latents",
                baseline=base, baseline_label="random directions",
            )  # fmt: skip
        edges_, counts_ = binned(np.log10(self.index.density + 1e-10).tolist())
        return Histogram(edges_, counts_, "log10 of the share of tokens", "latents")

    def _list(self, latents: Sequence[int]) -> Table:
        rows: list[list[Cell]] = []
        for number in latents:
            found = self.explained.get(number)
            scores: list[Cell] = [None, None, None]
            if found is not None:
                scores = [found.scores.simulation, found.random.simulation, found.scores.detection]
            density = f"{100 * self.index.density[number]:.2f} %"
            rows.append([number, density, *scores, self._words(number)])
        heads = ("latent", "active", "simulation", "of others", "detection", "active when")
        return Table(heads, rows, "Simulation is the correlation of rule and activation, held out.")

    def _each(self, latents: Sequence[int], examples: int) -> list[Block]:
        return [
            Details(
                f"{number}: {self._words(number) or 'not explained'}",
                (_strips(top_examples(self.index, number, n=examples, before=14, after=6)),),
            )
            for number in latents
            if self.index.counts[number]
        ]

    def _provenance(self) -> list[tuple[str, str]]:
        details = self.index.details
        return [
            ("model", str(details.get("model") or "")),
            ("fingerprint", str(details.get("fingerprint", ""))[:16]),
            ("coder", str(details.get("coder", ""))[:16]),
            ("tokens", f"{self.index.n_tokens:,}"),
        ]


def _strips(examples: Sequence[Example], limit: float | None = None) -> TokenStrips:
    strips = [
        TokenStrip(
            (TokenRow("activation", e.tokens, e.values.tolist()),),
            note=f"{numbers.number(e.activation)} at `{_shown(e.tokens[e.focus])}`, document "
            f"{e.document}",
            scale="",
        )
        for e in examples
    ]
    top = limit if limit is not None else max(float(np.abs(e.values).max()) for e in examples)
    return TokenStrips(strips, limit=top, scale="activation")


def _shown(token: str) -> str:
    return token.replace("\n", "⏎").replace(" ", "·").replace("`", "'")
