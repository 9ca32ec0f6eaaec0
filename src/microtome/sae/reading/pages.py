"""Dashboards: one latent, or a whole coder, as one HTML page that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from microtome.errors import ModelSupportError
from microtome.sae.reading.examples import Example, quantile_examples, top_examples
from microtome.sae.reading.index import LatentIndex
from microtome.sae.reading.relations import (
    Relation,
    co_occurring,
    correlated,
    foretells,
    logit_effects,
    neighbors,
)
from microtome.sae.reading.scoring import Explained
from microtome.views import numbers
from microtome.views.histogram import Histogram, binned
from microtome.views.page import Block, Details, Heading, Page, Section
from microtome.views.prose import inline
from microtome.views.table import Cell, Table
from microtome.views.tokens import TokenRow, TokenStrip, TokenStrips

if TYPE_CHECKING:
    from microtome.sae.coder import SAE
    from microtome.sae.evaluation.results import SAEEvaluation
    from microtome.sae.reading.wording import InWords
    from microtome.tracing.model import Model

SCORES = (
    "Simulation: Pearson correlation of predicted and true activation over all tokens. Detection: "
    "area under the ROC curve of telling contexts in which the latent is active from others; 0.5 "
    "is chance. Balanced accuracy: of saying so when a rule holds. Fuzzing: balanced accuracy of "
    "telling active tokens from others of the same contexts."
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
        described: Descriptions in words with their scores, by latent.
    """

    model: Model
    coder: SAE
    index: LatentIndex
    explained: Mapping[int, Explained]
    evaluation: SAEEvaluation | None = None
    described: Mapping[int, InWords] = field(default_factory=dict)

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
            title += f": {short(found.explanation.text)}"
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
            kicker=f"One latent of {numbers.count(index.d_sae)} at "
            f"{', '.join(self.coder.origin.sources)}",
            dek=f"Active at {numbers.count(len(positions))} of {numbers.count(index.n_tokens)} "
            f"tokens ({numbers.percent(share)}), at most "
            f"{numbers.number(float(np.abs(values).max()))}. Its activity was measured; "
            "its meaning is a guess that is scored below.",
            sections=sections,
            provenance=self.provenance(),
        )

    def overview(self, latents: Sequence[int], *, examples: int = 5) -> Page:
        """Return the page of the coder, with some of its latents to search, sort and look at.

        Args:
            latents: Which latents to list; those whose rules fit best come first.
            examples: Strongest examples shown of each.

        Raises:
            SelectorError: There is no such latent.
            EmptyDataError: None of them is ever active.
        """
        from microtome.sae.reading.overview import overview

        return overview(self, latents, examples)

    def _explanation(self, number: int) -> list[Block]:
        found = self.explained.get(number)
        if found is None:
            return ["This latent was not explained."]
        rules: list[list[Cell]] = [
            [place, inline(rule.words.replace(": ", " ")), rule.activation]
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
            _intruder(found.intruder),
            *self._in_words(number),
        ]

    def _in_words(self, number: int) -> list[Block]:
        """Return what a language model says of the latent, and what that is worth."""
        found = self.described.get(number)
        if found is None:
            return []
        rows: list[list[Cell]] = [
            [name, s.detection, s.detection_accuracy, s.fuzzing, s.fuzzing_accuracy]
            for name, s in (
                ("this description", found.scores),
                ("description of another latent", found.random),
                ("description of shuffled activations", found.shuffled),
            )
        ]
        heads = ("", "detection", "balanced accuracy", "fuzzing", "balanced accuracy ")
        return [
            Heading(f"What {found.explainer} says"),
            f"Active on {found.text or 'nothing that it could name'}",
            Table(heads, rows, "Areas under the ROC curve of its own yes and no; 0.5 is chance."),
        ]

    def _strength(self, number: int) -> list[Block]:
        _, values = self.index.positions(number)
        edges, counts = binned(values.tolist())
        blocks: list[Block] = [Histogram(edges, counts, "activation, where active", "tokens")]
        shown = quantile_examples(self.index, number, per_bin=3)
        titles = {e.quantile: f"From the {BANDS[e.quantile or 0]} of its range" for e in shown}
        named = [(e, titles.pop(e.quantile, "")) for e in shown]
        strips = _strips([e for e, _ in named], titles=[title for _, title in named])
        return [*blocks, Heading("From weak to strong"), strips]

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
                shown_token(names([int(a)])[0]),
                float(effects[a]),
                shown_token(names([int(b)])[0]),
                float(effects[b]),
            ]
            for a, b in zip(up, down, strict=True)
        ]
        edges, counts = binned(effects.tolist())
        share = foretells(self.index, number, effects)
        return [
            "Its direction through the unembedding, with the mean over tokens taken away: the "
            "direct path only, before the final norm's scale. " + _foretold(share),
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
                [str(n), float(v), inline(self.words(int(n)))]
                for n, v in zip(relation.numbers, relation.values, strict=True)
            ]
            if rows:
                blocks += [Heading(title), Table(("latent", measure, "active when"), rows)]
        neurons = self.index.neurons
        if neurons is not None:
            pairs: list[list[Cell]] = [
                [str(n), float(r), float(c)]
                for n, r, c in zip(
                    neurons.numbers[number].tolist(),
                    neurons.pearson[number],
                    neurons.cosine[number],
                    strict=True,
                )
            ]
            columns = (f"neuron of {neurons.site}", "Pearson", "cosine")
            blocks += [Heading("Neurons that go with it"), Table(columns, pairs)]
        return blocks or ["No other latent is active where this one is."]

    def words(self, number: int) -> str:
        """Return the explanation of a latent in a line, "" if it was not explained."""
        found = self.explained.get(number)
        return short(found.explanation.text) if found is not None else ""

    def provenance(self) -> list[tuple[str, str]]:
        """Return what is needed to make a page again."""
        details = self.index.details
        return [
            ("model", str(details.get("model") or "")),
            ("fingerprint", str(details.get("fingerprint", ""))[:16]),
            ("coder", str(details.get("coder", ""))[:16]),
            ("sites", ", ".join(self.coder.origin.sources)),
            ("text", str(details.get("text", ""))[:16]),
            ("tokens", numbers.count(self.index.n_tokens)),
            ("context", f"{details.get('context', '')} tokens"),
        ]


def _intruder(share: float) -> str:
    """Return what the intruder test gave, in words."""
    if np.isnan(share):
        return "The intruder test was not made: it needs four active tokens and one that is not."
    return (
        f"The intruder test, which needs no explanation, finds the odd context among five in "
        f"{share:.0%} of the cases; chance is 20 %."
    )


def _foretold(share: float) -> str:
    """Return whether what a latent raises comes next, in words."""
    if np.isnan(share):
        return ""
    return (
        "Tokens that come next where it is active are told from those that come next elsewhere by "
        f"this effect with an area under the ROC curve of {share:.2f}; 0.5 is chance."
    )


def short(text: str, most: int = 160) -> str:
    """Return a text that fits a headline; code marks stay paired."""
    if len(text) <= most:
        return text
    cut = text[:most].rstrip()
    return cut + ("`" if cut.count("`") % 2 else "") + " …"


def _strips(examples: Sequence[Example], titles: Sequence[str] = ()) -> TokenStrips:
    strips = [
        TokenStrip(
            (TokenRow("", [compact(t) for t in e.tokens], e.values.tolist()),),
            note=f"{numbers.number(e.activation)} at `{shown_token(e.tokens[e.focus])}`, document "
            f"{e.document}",
            title=title,
            scale="",
        )
        for e, title in zip(examples, titles or [""] * len(examples), strict=True)
    ]
    top = max(float(np.abs(e.values).max()) for e in examples)
    return TokenStrips(strips, limit=top, scale="activation")


def compact(token: str) -> str:
    """Return a token in which a long run of blanks is counted and not drawn."""
    return re.sub(" {5,}", lambda run: f"·×{len(run.group())}", token)


def shown_token(token: str) -> str:
    """Return a token as it stands in running text, blanks visible."""
    token = compact(token)
    return token.replace("\n", "⏎").replace(" ", "·").replace("`", "'")
