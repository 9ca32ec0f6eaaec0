"""``microtome sae show``: a coder or a latent as a page, and for Neuronpedia."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microtome.cli.options import Device, Dtype, Json, ModelName, Seed, Threads, print_json, say
from microtome.cli.sae_coders import CoderPlace, Context, Site, Texts, Tokens
from microtome.cli.sae_opening import IndexPlace, open_both, open_index
from microtome.cli.sae_words import AnswersPlace, ExplainerPlace, described

if TYPE_CHECKING:
    from microtome.cli.bars import Bars
    from microtome.sae import SAE, LatentIndex
    from microtome.sae.reading.pages import Dashboard
    from microtome.tracing.model import Model

EVALUATED = 10_000
"""Tokens on which the page of a coder says what the model loses."""


def show(
    model: ModelName,
    coder: CoderPlace,
    text: Texts,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="HTML file to write.")] = None,
    latent: Annotated[
        int | None, typer.Option(help="One latent; the whole coder by default.", min=0)
    ] = None,
    neuronpedia: Annotated[
        Path | None, typer.Option(help="Folder for JSON batches that Neuronpedia imports.")
    ] = None,
    site: Site = None,
    tokens: Tokens = 50_000,
    context: Context = 128,
    top: Annotated[
        int | None, typer.Option(help="Only the latents that are active most often.", min=1)
    ] = None,
    index: IndexPlace = None,
    explainer: ExplainerPlace = None,
    answers: AnswersPlace = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Draw a coder, or one of its latents, as a page that needs nothing else.

    Example: microtome sae show python-code SAE FOLDER --latent 17 -o latent.html
    """
    from microtome.cli.bars import Bars
    from microtome.cli.places import check_file, check_folder
    from microtome.errors import ConfigError

    if out is None and neuronpedia is None:
        raise ConfigError("nothing to write: give --out page.html, or --neuronpedia FOLDER")
    if out is not None:
        check_file(out)
    if neuronpedia is not None:
        check_folder(neuronpedia)
    opened, loaded = open_both(model, coder, site, device=device, dtype=dtype, threads=threads)
    read = open_index(opened, loaded, text, index, tokens, context)
    listed = _listed(read, latent, top)
    with Bars() as bars:
        if out is not None:
            said = described(
                read, listed, explainer=explainer, asked=None, answers=answers, seed=seed,
                device=device, dtype=dtype, bars=bars,
            )  # fmt: skip
            board = _board(
                opened, loaded, read, listed, text if latent is None else [], tokens, seed, bars
            )
            _write(replace(board, described={e.latent: e for e in said}), out, latent, listed)
        if neuronpedia is not None:
            _export(opened, loaded, read, listed, neuronpedia, seed, bars)
    if as_json:
        page, batches = (str(p) if p is not None else None for p in (out, neuronpedia))
        print_json({"page": page, "neuronpedia": batches, "latents": listed})
        return
    what = "the coder" if latent is None else f"latent {latent}"
    for place in (out, neuronpedia):
        if place is not None:
            say(f"{place} shows {what}.")


def _listed(index: LatentIndex, latent: int | None, top: int | None) -> list[int]:
    """Return the latent asked for, or those that are active, the most often active ones first."""
    if latent is not None:
        index.require_active(latent)
        return [latent]
    order = (-index.counts).argsort(kind="stable")
    return [int(i) for i in order if index.counts[i]][:top]


def _board(
    model: Model,
    coder: SAE,
    index: LatentIndex,
    latents: list[int],
    text: list[Path],
    tokens: int,
    seed: int,
    bars: Bars,
) -> Dashboard:
    """Explain latents, and measure what the model loses where a text is given."""
    from microtome.sae import evaluate
    from microtome.sae.reading.pages import Dashboard
    from microtome.sae.reading.scoring import explain_all
    from microtome.store.texts import read_texts

    found = explain_all(index, latents, seed=seed, progress=bars)
    explained = {e.explanation.latent: e for e in found}
    measured = None
    if text:
        measured = evaluate(
            model,
            coder,
            read_texts(text),
            tokens=min(tokens, EVALUATED),
            seed=seed,
            progress=bars.named({"text": "evaluation"}),
        )
    return Dashboard(model, coder, index, explained, measured)


def _write(board: Dashboard, out: Path, latent: int | None, listed: list[int]) -> None:
    from microtome.store.atomic import write_text

    page = board.overview(listed) if latent is None else board.latent(latent)
    command = shlex.join(["microtome", *sys.argv[1:]])
    write_text(out, replace(page, command=command).to_html())


def _export(
    model: Model,
    coder: SAE,
    index: LatentIndex,
    latents: list[int],
    folder: Path,
    seed: int,
    bars: Bars,
) -> None:
    from microtome.sae.reading.neuronpedia import Place, export

    name = coder.origin.model or model.name
    place = Place(name, f"{name}-microtome")
    whole = len(latents) == int((index.counts > 0).sum())
    export(
        model, coder, index, folder, place=place, latents=None if whole else latents, seed=seed,
        progress=bars.named({"latents": "batches"}),
    )  # fmt: skip
