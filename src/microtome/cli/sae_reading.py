"""``microtome sae eval``, ``latents``, ``show`` and ``convert``: what a coder is worth and says."""

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

if TYPE_CHECKING:
    from microtome.sae import SAE, LatentIndex
    from microtome.tracing.model import Model

CoderPlace = Annotated[
    Path, typer.Argument(help="Folder of a coder, in any known format.", show_default=False)
]
Texts = Annotated[
    list[Path],
    typer.Argument(
        help="Files of text, or folders of them; a .jsonl file has a text on each line.",
        show_default=False,
    ),
]
Site = Annotated[
    str | None,
    typer.Option(help="Site of the coder, where its folder does not say; SITE or SOURCE->TARGET."),
]
Tokens = Annotated[int, typer.Option(help="Tokens to read at most.", min=2)]
Context = Annotated[int, typer.Option(help="Tokens that the model reads at a time.", min=2)]


def evaluate(
    model: ModelName,
    coder: CoderPlace,
    text: Texts,
    site: Site = None,
    tokens: Tokens = 20_000,
    context: Context = 128,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to save.")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure a coder in its model, beside random directions and plain coordinates.

    Example: microtome sae eval python-code SAE FOLDER --tokens 20000
    """
    from microtome.cli.bars import Bars
    from microtome.cli.places import check_file
    from microtome.sae import evaluate as evaluated
    from microtome.store.texts import read_texts

    if out is not None:
        check_file(out)
    texts = read_texts(text)
    opened = open_model(model, device, dtype, threads)
    with Bars() as bars:
        found = evaluated(
            opened, _open_coder(coder, site, opened), texts, tokens=tokens, context=context,
            seed=seed, progress=bars,
        )  # fmt: skip
    table = found.to_frame()
    if out is not None:
        found.save(out)
    if as_json:
        print_json(table.reset_index())
        return
    shown = {
        "fvu": "FVU",
        "l0": "L0",
        "dead_share": "dead",
        "ce_recovered_zero": "CE recovered (zero)",
        "ce_recovered_mean": "(mean)",
        "kl_score_zero": "KL score",
        "bias": "bias",
    }
    rows = [[str(name), *(f"{row[key]:.4g}" for key in shown)] for name, row in table.iterrows()]
    print_table(["coder", *shown.values()], rows, right=tuple(range(1, len(shown) + 1)))
    clean = table["ce_clean"].iloc[0]
    say(
        f"{int(table['rows'].iloc[0]):,} rows; the whole model's cross-entropy is {clean:.4f} nats "
        "a token."
    )


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
    loaded = _open_coder(coder, site, opened)
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
    loaded = _open_coder(coder, site, opened)
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


def _open_coder(place: Path, site: str | None, model: Model) -> SAE:
    """Open a coder and give it its place in the model."""
    from dataclasses import replace

    from microtome.sae import load
    from microtome.tracing.sites import at

    coder = load(place)
    if site is not None:
        source, _, target = site.partition("->")
        sources, targets = (str(at(source)),), (str(at(target or source)),)
        coder.origin = replace(coder.origin, sources=sources, targets=targets)
    known = coder.origin.fingerprint
    if known and known != model.fingerprint:
        say(
            f"The coder was trained on a model with fingerprint {known[:12]}, this one has "
            f"{model.fingerprint[:12]}."
        )
    return coder


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
    from microtome.store.texts import read_texts

    if folder is not None and (folder / "index.json").is_file():
        read = LatentIndex.load(folder)
        own = sha256_arrays({k: v.detach() for k, v in coder.weights.items()})
        if read.details.get("coder") != own or read.details["fingerprint"] != model.fingerprint:
            raise ConfigError(
                f"the index in {folder} is of another coder or model; give another folder with "
                "--index, or delete it"
            )
        return read
    if folder is not None:
        check_folder(folder)
    with Bars() as bars:
        read = build(model, coder, read_texts(text), tokens=tokens, context=context, progress=bars)
    if folder is not None:
        read.save(folder)
    return read
