"""Write a page with every view on made-up data: ``python tests/views/gallery.py gallery.html``.

The page is a mock of the dissection report, in its order, with further examples after it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gallery_data as sample
import numpy as np

from microtome.views import (
    Details,
    Distribution,
    Figure,
    Heading,
    HeatMap,
    Page,
    Sample,
    Section,
    TokenRow,
    TokenStrip,
    View,
)
from microtome.views.numbers import THIN, count

COMMAND = "microtome dissect python-code quote-closing --seed 0"
BOOTSTRAP = f"95{THIN}% cluster bootstrap, {count(2000)} draws"


def figure(title: str, body: View | tuple[View, ...], caption: str, **facts: str) -> Figure:
    """Return a figure with the foot that all of the mock share."""
    return Figure(
        title,
        body,
        caption,
        n=480,
        clusters=24,
        command=COMMAND,
        baseline=facts.get("baseline", "corrupt prompts"),
        interval=BOOTSTRAP,
    )


def report() -> Page:
    """Return the mock report."""
    return Page(
        title="Nine parts close the quote",
        kicker="microtome dissect · sample with made-up numbers",
        dek='How a small Python-code model knows whether a string that was opened by `"` or by '
        "`'` must be closed by the one or the other, and how far that explanation holds.",
        verdict=sample.verdict(),
        sections=(_check(), _locate(), _cut(), _prove(), _reduce(), _operate(), _more()),
        provenance=(
            ("model", "python-code (4 layers, 8 heads, 512 dimensions)"),
            ("fingerprint", "5f0c2a91d7be44c83b0e"),
            ("behavior", "quote-closing, 960 items, 48 clusters, seed 0"),
            ("versions", "microtome 0.1.0, torch 2.13.0, transformers 5.23.0, Python 3.11.7"),
            ("threads, dtype", "1, float32 on the CPU"),
        ),
        command=COMMAND,
    )


def _check() -> Section:
    return Section(
        "The model closes strings with the right quote",
        (
            "The behavior is a choice between two tokens. In the clean prompt a string was "
            "opened by one kind of quote, in the corrupt prompt by the other; everything else is "
            "equal. The score is the logit of the right quote minus the logit of the wrong one.",
            figure(
                "The opening quote decides, and the first token after it argues against",
                sample.strips(),
                "Each token of the clean prompt was replaced by its partner in the corrupt prompt, "
                "one at a time. Orange raises the score, blue with a dashed line lowers it. Tokens "
                "in bold differ between the two.",
            ),
            Details(
                "How the behavior is measured",
                (
                    "Items fall into clusters, one for each template and frame of words, and the "
                    "clusters are split once: train to search, validation to choose the size, test "
                    "to report.",
                ),
                terms=(
                    (
                        "logit difference",
                        "logit of the answer minus logit of the wrong answer at "
                        "the last position, in logits",
                    ),
                    ("cluster", "template × lexical frame; the unit of every interval"),
                ),
            ),
        ),
        short="Check",
    )


def _locate() -> Section:
    return Section(
        "The signal moves from the quote to the end in layer 2",
        (
            "Patching the residual stream shows where the information is; attribution of heads and "
            "MLPs shows which parts move it.",
            figure(
                "The choice leaves the opening quote after layer 1",
                sample.position_map(),
                "Each cell restores the clean residual stream at one role and depth in the "
                "corrupt prompt. What comes before the quote cannot differ and is zero by "
                "construction.",
            ),
            figure(
                "One head carries most of it; one works against it",
                sample.head_map(),
                "Attribution patching of every head and MLP, averaged over items. Outlined parts "
                "are in the circuit; the nine strongest were confirmed by exact patching.",
            ),
        ),
        short="Locate",
    )


def _cut() -> Section:
    return Section(
        "Nine parts are enough",
        (
            figure(
                "A detector in layer 1 feeds two movers",
                sample.circuit(),
                "Edges are the summed effect of one part on the next. Notches under a head are "
                "its query, key and value ports, from left to right.",
            ),
            figure(
                "Faithfulness reaches the asked range at nine parts",
                sample.curve(),
                "Parts outside the circuit see the corrupt prompt. The gray band is what the same "
                "finder reaches in 20 scrambled copies of the model.",
                baseline="searched nulls",
            ),
        ),
        short="Cut",
    )


def _prove() -> Section:
    return Section(
        "Four of six controls hold; natural code does not",
        (
            "Each control was fixed before the search. A failed one is printed like any other.",
            figure(
                "Outside the templates the circuit explains less",
                sample.controls(),
                "All values on the test split.",
            ),
        ),
        short="Prove",
    )


def _reduce() -> Section:
    return Section(
        "A rule of two questions predicts the model",
        (
            figure(
                "The model closes what was opened, except in nested quotes",
                sample.rule(),
                "A decision tree on the behavior's own features, fitted on train, counted on "
                "test. It agrees with the model on 97.1 % of the items, and on the items where "
                "the model is wrong with a Matthews correlation of 0.64 [0.41, 0.80].",
            ),
        ),
        short="Reduce",
    )


def _operate() -> Section:
    return Section(
        "Cut out, the model guesses, and little else changes",
        (
            figure(
                "The choice is gone without the circuit",
                sample.operation(),
                "One point per cluster.",
            ),
            figure(
                "Other code suffers less than under a random cut",
                sample.drift(),
                "Loss on 640 passages without strings.",
                baseline="the untouched model",
            ),
        ),
        short="Operate",
    )


def _more() -> Section:
    hostile = (
        "<script>alert(1)</script>",
        ' "quoted"',
        " שלום",
        " \u202ereversed",
        " 👩‍🔬",
        "\x07",
        " " + "verylongtoken" * 12,
        "\n",
        "",
        "\t",
        " 漢字",
        " é",
    )
    values = np.linspace(-1, 1, len(hostile))
    values[4] = np.nan
    return Section(
        "Further examples",
        (
            Heading("Hostile tokens"),
            figure(
                "Nothing in a prompt reaches the page as markup",
                TokenStrip((TokenRow("clean", hostile, values),), unit="logits"),
                "Markup, control characters, right-to-left text, emoji and a very long token.",
            ),
            Heading("Large drawings"),
            figure(
                "A map of 24 layers and 60 positions scrolls in its own box",
                sample.wide_map(),
                "Cells that were not computed are hatched.",
            ),
            figure(
                "Two hundred edges stay readable",
                sample.big_circuit(),
                "Twelve layers of twelve heads.",
            ),
            figure("Ten edges stay small", sample.big_circuit(edges=10), "The same, cut to ten."),
            Heading("Small ones"),
            figure(
                "A single cell, a constant, an amount",
                (
                    HeatMap([[0.5]]),
                    HeatMap(np.full((2, 14), 0.25), signed=False, title="share"),
                    Distribution((Sample("constant", np.ones(12)),), 0.5, "value"),
                ),
                "Degenerate inputs are drawn, not refused.",
            ),
        ),
        short="More",
    )


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "gallery.html")
    target.write_text(report().to_html(), encoding="utf-8")
