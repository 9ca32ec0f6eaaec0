"""``microtome sae show``: a coder or a latent as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from microtome.cli.options import Device, Dtype, Json, ModelName, Seed, Threads, print_json, say
from microtome.cli.sae_opening import (
    CoderPlace,
    Context,
    IndexPlace,
    Site,
    Texts,
    Tokens,
    open_coder,
    open_index,
)


def show(
    model: ModelName,
    coder: CoderPlace,
    text: Texts,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="HTML file to write.", show_default=False)
    ],
    latent: Annotated[
        int | None, typer.Option(help="One latent; the whole coder by default.", min=0)
    ] = None,
    site: Site = None,
    tokens: Tokens = 50_000,
    context: Context = 128,
    top: Annotated[int, typer.Option(help="Latents on the page of a coder.", min=1)] = 40,
    index: IndexPlace = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Draw a coder, or one of its latents, as a page that needs nothing else.

    Example: microtome sae show python-code SAE FOLDER --latent 17 -o latent.html
    """
    from microtome.cli.places import check_file
    from microtome.sae import evaluate as evaluated
    from microtome.sae.reading.pages import Dashboard
    from microtome.sae.reading.scoring import explain_all
    from microtome.store.atomic import write_text
    from microtome.store.texts import read_texts

    check_file(out)
    opened, loaded = open_coder(model, coder, site, device=device, dtype=dtype, threads=threads)
    read = open_index(opened, loaded, text, index, tokens, context)
    if latent is not None:
        read.require_active(latent)
        listed = [latent]
    else:
        listed = [int(i) for i in (-read.counts).argsort(kind="stable")[:top] if read.counts[i]]
    explained = {e.explanation.latent: e for e in explain_all(read, listed, seed=seed)}
    measured = None
    if latent is None:
        measured = evaluated(
            opened, loaded, read_texts(text), tokens=min(tokens, 10_000), seed=seed
        )
    board = Dashboard(opened, loaded, read, explained, measured)
    page = board.overview(listed) if latent is None else board.latent(latent)
    write_text(out, page.to_html())
    if as_json:
        print_json({"page": str(out), "latents": listed})
        return
    say(f"{out} shows {'the coder' if latent is None else f'latent {latent}'}.")
