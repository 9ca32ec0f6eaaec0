"""``microtome sae latents``: latents with explanations and their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from microtome.cli.options import (
    Device,
    Dtype,
    Json,
    ModelName,
    Seed,
    Threads,
    print_json,
    print_table,
    say,
)
from microtome.cli.sae_coders import CoderPlace, Context, Site, Texts, Tokens
from microtome.cli.sae_opening import IndexPlace, open_both, open_index
from microtome.cli.sae_words import AnswersPlace, AskedPlace, ExplainerPlace, described

if TYPE_CHECKING:
    from microtome.sae.reading.scoring import Explained
    from microtome.sae.reading.wording import InWords


def latents(
    model: ModelName,
    coder: CoderPlace,
    text: Texts,
    site: Site = None,
    tokens: Tokens = 100_000,
    context: Context = 128,
    top: Annotated[int, typer.Option(help="How many latents to list and explain.", min=1)] = 20,
    latent: Annotated[
        list[int] | None, typer.Option(help="These latents instead; may be given several times.")
    ] = None,
    find: Annotated[
        str | None, typer.Option(help="Only latents whose explanation holds this text.")
    ] = None,
    index: IndexPlace = None,
    explainer: ExplainerPlace = None,
    asked: AskedPlace = None,
    answers: AnswersPlace = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """List latents with explanations that were found on half of a text and scored on the other.

    Example: microtome sae latents python-code SAE FOLDER --find "quotation" --index INDEX
    """
    from microtome.cli.bars import Bars
    from microtome.sae.reading.scoring import explain_all

    opened, loaded = open_both(model, coder, site, device=device, dtype=dtype, threads=threads)
    read = open_index(opened, loaded, text, index, tokens, context)
    alive = int((read.counts > 0).sum())
    chosen = latent or [int(i) for i in (-read.counts).argsort(kind="stable") if read.counts[i]]
    with Bars() as bars:
        found = explain_all(read, chosen if find else chosen[:top], seed=seed, progress=bars)
        if find:
            found = _holding(found, find)[:top]
        said = described(
            read, [e.explanation.latent for e in found], explainer=explainer, asked=asked,
            answers=answers, seed=seed, device=device, dtype=dtype, bars=bars,
        ) if found else []  # fmt: skip
    if as_json:
        print_json(_records(found, said))
        return
    _print(found, said)
    say(
        f"{alive:,} of {read.d_sae:,} latents are active somewhere in {read.n_tokens:,} tokens. In "
        "brackets: explanations of other latents."
    )


def _holding(found: list[Explained], text: str) -> list[Explained]:
    """Return the latents whose explanation holds a text, those whose first rule holds it first."""

    def order(e: Explained) -> tuple[int, float]:
        words = [rule.words.replace(": ", " ", 1) for rule in e.explanation.rules]
        holding = [text.casefold() in line.casefold() for line in words]
        return (holding.index(True) if any(holding) else len(holding), -e.scores.simulation)

    chosen = [e for e in found if text.casefold() in e.explanation.text.casefold()]
    return sorted(chosen, key=order)


def _records(found: list[Explained], said: list[InWords]) -> object:
    """Return explanations, with descriptions in words beside them, as a table for JSON."""
    from microtome.sae.reading.scoring import to_frame
    from microtome.sae.reading.wording import words_frame

    if not found:
        return []
    table = to_frame(found)
    if said:
        table = table.join(words_frame(said).add_prefix("words_"))
    return table.reset_index()


def _print(found: list[Explained], said: list[InWords]) -> None:
    rows = [
        [
            str(e.explanation.latent),
            f"{100 * e.density:.2f} %",
            f"{e.scores.simulation:.2f} ({e.random.simulation:.2f})",
            f"{e.scores.detection:.2f} ({e.random.detection:.2f})",
            f"{e.scores.fuzzing:.2f} ({e.random.fuzzing:.2f})",
            f"{e.intruder:.2f}",
            e.explanation.text,
        ]
        for e in found
    ]
    heads = ["latent", "active", "simulation", "detection", "fuzzing", "intruder", "when"]
    print_table(heads, rows, right=(0, 1, 2, 3, 4, 5))
    if said:
        rows = [
            [
                str(e.latent),
                f"{e.scores.detection:.2f} ({e.random.detection:.2f})",
                f"{e.scores.fuzzing:.2f} ({e.random.fuzzing:.2f})",
                e.text,
            ]
            for e in said
        ]
        heads = ["latent", "detection", "fuzzing", f"active on, says {said[0].explainer}"]
        print_table(heads, rows, right=(0, 1, 2))
