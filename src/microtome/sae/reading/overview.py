"""The page of a whole coder: how good it is, how often its latents are active, and all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from microtome.errors import EmptyDataError, ModelSupportError
from microtome.sae.reading.examples import top_examples
from microtome.sae.reading.relations import (
    Relation,
    co_occurring,
    logit_table,
    neighbor_table,
)
from microtome.views import numbers
from microtome.views.browser import Browser, Column, Excerpt, Item, Ranking
from microtome.views.histogram import Histogram
from microtome.views.numbers import count
from microtome.views.page import Block, Details, Page, Section
from microtome.views.table import Cell, Table

if TYPE_CHECKING:
    from microtome.sae.reading.pages import Dashboard

FIGURES = (
    "FVU: share of the variance that the reconstruction leaves. L0: latents active at a token, on "
    "average. CE recovered: share of what ablating the site costs in cross-entropy that the "
    "reconstruction makes good. Baselines keep as many random directions, or coordinates, as the "
    "coder keeps latents."
)

FIGURES_OF_LATENTS = (
    "Simulation: Pearson correlation of predicted and true activation over all tokens of the "
    "held-out contexts. Detection: area under the ROC curve of telling contexts in which the "
    "latent is active from others; 0.5 is chance. Fuzzing: balanced accuracy of telling active "
    "tokens from others of the same contexts. Others: the median of rules that were found for "
    "other latents. Intruder: how often the one context of five without the latent is told by the "
    "words in it."
)

GOOD = 0.5
"""Simulation from which a rule counts as one that a latent follows."""

BLOCK, BARS = 256, 24
"""Latents of which logit effects are formed at a time; bars of a histogram on a card."""

COLUMNS = (
    Column("active", "Share of the tokens at which it is active.", "percent"),
    Column("simulation", "Correlation of its rules with its activation, on held-out text."),
)


def overview(board: Dashboard, latents: Sequence[int], examples: int) -> Page:
    """Return the page of a coder; see :meth:`Dashboard.overview`."""
    index = board.index
    for number in latents:
        index.positions(number)
    listed = sorted((n for n in latents if index.counts[n]), key=lambda n: -_score(board, n))
    if not listed:
        raise EmptyDataError("none of these latents is active in the index; index more text")
    browser = Browser(
        cards(board, listed, examples), COLUMNS, name="latent", says="active when",
        unit="activation", heading="Where it is most active",
    )  # fmt: skip
    return Page(
        title=_title(board),
        kicker=f"A sparse coder of {board.coder.origin.model or 'a model'}",
        dek=_dek(board),
        sections=[
            Section("Latents", (browser, Details("What the figures mean", (FIGURES_OF_LATENTS,)))),
            Section("How good the coder is", _quality(board), short="Quality"),
            Section("How often latents are active", _density(board), short="Density"),
        ],
        provenance=board.provenance(),
    )


def cards(board: Dashboard, latents: Sequence[int], examples: int) -> list[Item]:
    """Return what is shown of each of some latents."""
    found: list[Item] = []
    for start in range(0, len(latents), BLOCK):
        part = latents[start : start + BLOCK]
        near = neighbor_table(board.coder, part, n=5)
        written = _written(board, part)
        for latent, neighbors, effects in zip(part, near, written, strict=True):
            rankings = [
                *effects,
                _others("Active together", "Jaccard", co_occurring(board.index, latent, n=5)),
                _others("Alike in direction", "cosine", neighbors),
                *_neurons(board, latent),
            ]
            found.append(_card(board, latent, examples, [r for r in rankings if r.rows]))
    return found


def _card(board: Dashboard, latent: int, examples: int, rankings: list[Ranking]) -> Item:
    index, found = board.index, board.explained.get(latent)
    _, values = index.positions(latent)
    shown = top_examples(index, latent, n=examples, before=16, after=6)
    excerpts = [
        Excerpt(
            e.tokens, e.values.tolist(), f"{numbers.number(e.activation)}, document {e.document}"
        )
        for e in shown
    ]
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    counts, _ = np.histogram(values, bins=BARS, range=(low, high))
    facts = [
        ("active at", f"{count(len(values))} tokens"),
        ("at most", numbers.number(float(np.abs(values).max()))),
    ]
    score = None
    if found is not None:
        score = found.scores.simulation
        for name in ("simulation", "detection", "fuzzing"):
            own, others = (_two(getattr(s, name)) for s in (found.scores, found.random))
            facts.append((name, f"{own} (others {others})"))
        facts.append(("intruder", f"{_two(found.intruder)} (chance 0.20)"))
    if latent in board.described:
        said = board.described[latent]
        own, others = (_two(s.fuzzing) for s in (said.scores, said.random))
        facts.append((f"{said.explainer} says", f"{said.text}: fuzzing {own} (others {others})"))
    return Item(
        latent,
        board.words(latent),
        (float(index.density[latent]), score),
        facts,
        excerpts,
        counts.tolist(),
        (low, high),
        rankings,
    )


def _written(board: Dashboard, latents: Sequence[int]) -> list[list[Ranking]]:
    """Return the tokens that each of some latents raises and lowers; none where it cannot."""
    from microtome.sae.reading.pages import shown_token

    try:
        effects = logit_table(board.model, board.coder, latents).float().cpu().numpy()
    except ModelSupportError:
        return [[] for _ in latents]
    found = []
    for row in effects:
        order = np.argsort(row, kind="stable")
        both = []
        for title, ids in (("Raises", order[::-1][:6]), ("Lowers", order[:6])):
            names = board.model.tokens(ids.tolist())
            rows = [(f"`{shown_token(t)}`", float(row[i])) for t, i in zip(names, ids, strict=True)]
            both.append(Ranking(title, "logit a unit", rows))
        found.append(both)
    return found


def _neurons(board: Dashboard, latent: int) -> list[Ranking]:
    neurons = board.index.neurons
    if neurons is None:
        return []
    pairs = zip(neurons.numbers[latent, :5], neurons.pearson[latent, :5], strict=True)
    rows = [(f"neuron {int(n)}", float(r)) for n, r in pairs if r]
    return [Ranking(f"Neurons of {neurons.site}", "Pearson", rows)]


def _others(title: str, measure: str, found: Relation) -> Ranking:
    rows = [(int(n), float(v)) for n, v in zip(found.numbers, found.values, strict=True)]
    return Ranking(title, measure, rows)


def _score(board: Dashboard, latent: int) -> float:
    """Return by what latents are ordered at first: how well their rules predict them."""
    found = board.explained.get(latent)
    return found.scores.simulation if found is not None else -1.0


def _title(board: Dashboard) -> str:
    index, explained = board.index, board.explained
    alive = int((index.counts > 0).sum())
    sites = ", ".join(board.coder.origin.sources)
    if len(explained) < alive:
        return f"{count(alive)} of {count(index.d_sae)} latents at {sites} are active"
    good = sum(e.scores.simulation >= GOOD for e in explained.values())
    return f"{count(good)} of {count(alive)} active latents at {sites} follow a simple rule"


def _dek(board: Dashboard) -> str:
    index = board.index
    never = int((index.counts == 0).sum())
    documents = len(np.unique(index.documents))
    text = f"Indexed on {count(index.n_tokens)} tokens of {count(documents)} documents"
    text += f"; {count(never)} latents are active nowhere in it. " if never else ". "
    if board.explained:
        others = [e.random.simulation for e in board.explained.values()]
        text += (
            "Rules of tokens, n-grams and templates were found on one half of the contexts; a "
            f"latent follows them if they predict its activation on the other half with a "
            f"correlation of at least {GOOD}. Rules of other latents reach "
            f"{_two(float(np.nanmedian(others)))} (median)."
        )
    return text


def _quality(board: Dashboard) -> list[Block]:
    made = board.index.reconstruction
    blocks: list[Block] = []
    if made is not None:
        blocks.append(
            f"On all {count(made.n_rows)} tokens of the index: FVU {numbers.number(made.fvu)}, L0 "
            f"{numbers.number(made.l0)}, reconstruction bias {numbers.number(made.bias)}."
        )
    if board.evaluation is None:
        return [*blocks, "What the model loses by the reconstruction was not measured."]
    table = board.evaluation.to_frame()
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
    caption = f"Spliced into the model, on {count(int(table['rows'].iloc[0]))} of these tokens."
    return [
        *blocks,
        Table(("coder", *columns.values()), rows, caption),
        Details("What the figures mean", (FIGURES,)),
    ]


def _density(board: Dashboard) -> list[Block]:
    """Return the histogram of density, of the random directions beside it if they were measured."""
    shares = board.index.density[board.index.counts > 0]
    random = None
    for row in board.evaluation.rows if board.evaluation is not None else ():
        if row.name == "random":
            random = row.reconstruction.frequency[row.reconstruction.frequency > 0]
    both = np.concatenate([shares, random if random is not None else shares[:0]])
    n = max(1, int(np.ceil(-4 * np.log10(both.min()))))
    edges = np.linspace(-n / 4, 0, n + 1)
    counts, base = (
        np.histogram(np.log10(part), bins=edges)[0].tolist() if part is not None else None
        for part in (shares, random)
    )
    drawn = Histogram(
        edges.tolist(), counts or [], "log10 of the share of tokens", "latents",
        baseline=base, baseline_label="random directions",
    )  # fmt: skip
    middle = float(np.median(shares))
    return [f"The median active latent is active at {middle:.2%} of the tokens.", drawn]


def _two(value: float) -> str:
    if np.isnan(value):
        return numbers.ABSENT
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")
