"""``microtome sae latents``, ``show`` and ``convert``: what the latents of a coder say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microtome.cli.options import (
    Device,
    Dtype,
    Json,
    ModelName,
    Seed,
    Threads,
    open_model,
    print_json,
    print_table,
    say,
)
from microtome.cli.sae_coders import CoderPlace, Context, Site, Texts, Tokens, open_coder

if TYPE_CHECKING:
    from microtome.sae import SAE, LatentIndex
    from microtome.tracing.model import Model


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
    index: Annotated[
        Path | None, typer.Option(help="Folder to keep the index in, and to read it from.")
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """List latents with explanations that were found on half of a text and scored on the other.

    Example: microtome sae latents python-code SAE FOLDER --find "quotation" --index INDEX
    """
    from microtome.sae.reading.scoring import explain_all, to_frame

    opened = open_model(model, device, dtype, threads)
    loaded = open_coder(coder, site, opened)
    read = _open_index(opened, loaded, text, index, tokens, context)
    alive = int((read.counts > 0).sum())
    chosen = latent or [int(i) for i in (-read.counts).argsort(kind="stable") if read.counts[i]]
    found = explain_all(read, chosen if find else chosen[:top], seed=seed)
    if find:
        found = [e for e in found if find.casefold() in e.explanation.text.casefold()]
        found = sorted(found, key=lambda e: -e.scores.simulation)[:top]
    if as_json:
        print_json(to_frame(found).reset_index() if found else [])
        return
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
    say(
        f"{alive:,} of {read.d_sae:,} latents are active somewhere in {read.n_tokens:,} tokens. In "
        "brackets: explanations of other latents."
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
    index: Annotated[
        Path | None, typer.Option(help="Folder to keep the index in, and to read it from.")
    ] = None,
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
    opened = open_model(model, device, dtype, threads)
    loaded = open_coder(coder, site, opened)
    read = _open_index(opened, loaded, text, index, tokens, context)
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


def convert(
    coder: CoderPlace,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help="Format to write.")] = "saelens",
    stored: Annotated[
        str, typer.Option("--stored", help="Type of the weights: float32, bfloat16, float16.")
    ] = "float32",
    as_json: Json = False,
) -> None:
    """Write a coder in another format; it is read back, and refused if it is not the same.

    Formats: microtome, saelens, sparsify, dictionary-learning, gemma-scope.

    Example: microtome sae convert SAE --to saelens -o FOLDER
    """
    from microtome.cli.places import check_folder
    from microtome.sae import load, save

    check_folder(out)
    loaded = load(coder)
    place = save(loaded, out, format=to, dtype=stored)
    if as_json:
        print_json(
            {"folder": str(place), "format": to, "files": sorted(p.name for p in place.iterdir())}
        )
        return
    say(f"{place} holds the coder as {to}: {', '.join(sorted(p.name for p in place.iterdir()))}.")


def _open_index(
    model: Model, coder: SAE, text: list[Path], folder: Path | None, tokens: int, context: int
) -> LatentIndex:
    """Read the index of a folder, or build it and keep it there."""
    from microtome.cli.bars import Bars
    from microtome.cli.places import check_folder
    from microtome.core.hashing import sha256_arrays
    from microtome.errors import ConfigError
    from microtome.sae import LatentIndex
    from microtome.sae import index as build
    from microtome.sae.harvesting.documents import read_documents
    from microtome.store.texts import read_texts

    if folder is not None and (folder / "index.json").is_file():
        read = LatentIndex.load(folder)
        documents = read_documents(read_texts(text), tokenizer=model.tokenizer, tokens=tokens)
        own = {
            "coder": sha256_arrays({k: v.detach() for k, v in coder.weights.items()}),
            "fingerprint": model.fingerprint,
            "sources": list(coder.origin.sources),
            "text": documents.sha256,
            "context": context,
        }
        if other := [name for name, value in own.items() if read.details.get(name) != value]:
            words = {"fingerprint": "model", "sources": "site"}
            raise ConfigError(
                f"the index in {folder} is of another "
                f"{' and '.join(words.get(name, name) for name in other)}; give another folder "
                "with --index, or delete it"
            )
        return read
    if folder is not None:
        check_folder(folder)
    with Bars() as bars:
        read = build(model, coder, read_texts(text), tokens=tokens, context=context, progress=bars)
    if folder is not None:
        read.save(folder)
    return read
