"""``microtome sae harvest``: a model reads text once, and its activations are kept in shards."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from microtome.sae import ActivationStore


def harvest(
    model: ModelName,
    text: Annotated[
        list[Path],
        typer.Argument(
            help="Files of text, or folders of them; a .jsonl file has a text on each line.",
            show_default=False,
        ),
    ],
    site: Annotated[
        list[str],
        typer.Option(
            help="Where to take activations, such as blocks.2.mlp.out; may be given several times.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the shards.", show_default=False)
    ],
    tokens: Annotated[
        int | None, typer.Option(help="Tokens to read; all by default.", min=1)
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens that the model reads at a time; 128 or its own by default."),
    ] = None,
    stored: Annotated[
        str | None,
        typer.Option(
            "--stored",
            help="Type of the stored values: float16, bfloat16 or float32; by default 16 bits.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows of a forward pass.", min=1)] = 32,
    keep_special: Annotated[
        bool, typer.Option("--keep-special", help="Keep special tokens, BOS among them.")
    ] = False,
    keep_outliers: Annotated[
        bool,
        typer.Option("--keep-outliers", help="Keep tokens of more than ten times the median norm."),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a harvest that was stopped.")
    ] = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Run a model over text once and keep its activations, to train on as often as you like.

    Example: microtome sae harvest python-code FOLDER --site blocks.2.mlp.out -o activations
    """
    from microtome.cli.bars import Bars
    from microtome.cli.places import check_folder
    from microtome.sae import harvest as harvested
    from microtome.store.texts import read_texts

    check_folder(out)
    texts = read_texts(text)
    opened = open_model(model, device, dtype, threads)
    begun = time.monotonic()
    try:
        with Bars() as bars:
            store = harvested(
                opened, texts, sites=site, folder=out, tokens=tokens, context=context,
                dtype=stored, batch_size=batch_size, mask_special=not keep_special,
                outliers=None if keep_outliers else 10.0, seed=seed, resume=resume, progress=bars,
            )  # fmt: skip
    except KeyboardInterrupt:
        say(_how_to_go_on(out))
        raise
    facts = _facts(store, time.monotonic() - begun)
    if as_json:
        print_json(facts)
        return
    _print(store, facts)


def _facts(store: ActivationStore, seconds: float) -> dict[str, Any]:
    manifest = store.manifest
    settings = manifest.settings
    return {
        "folder": str(store.folder),
        "rows": store.rows,
        "tokens": settings.tokens,
        "masked": manifest.masked,
        "shards": settings.shards,
        "bytes": sum(s.bytes for s in manifest.shards),
        "dtype": settings.dtype,
        "context": settings.context,
        "fingerprint": store.fingerprint,
        "seconds": round(seconds, 3),
        "sites": [
            {
                "site": site,
                "width": store.width(site),
                "scale": store.scale(site),
                "median_norm": store.moments(site).norm_quantile(0.5),
                "largest_norm": store.moments(site).norm_quantile(1.0),
            }
            for site in store.sites
        ],
    }


def _print(store: ActivationStore, facts: dict[str, Any]) -> None:
    print_table(
        ["site", "width", "median norm", "largest norm"],
        [
            [s["site"], str(s["width"]), f"{s['median_norm']:.3g}", f"{s['largest_norm']:.3g}"]
            for s in facts["sites"]
        ],
        right=(1, 2, 3),
    )
    masked = facts["masked"]
    say(
        f"{facts['rows']:,} rows of {facts['tokens']:,} tokens in {facts['shards']} shards "
        f"({facts['bytes'] / 1e6:.1f} MB, {facts['dtype']}) in {facts['folder']}. Left out: "
        f"{masked['special']:,} special tokens, {masked['outliers']:,} of outlying norm. "
        f"{facts['seconds']:.1f} s."
    )


def _how_to_go_on(folder: Path) -> str:
    """Say what an interrupted harvest leaves and how it goes on."""
    from microtome.errors import FormatError
    from microtome.sae.harvesting.manifest import Manifest

    try:
        manifest = Manifest.read(folder)
    except FormatError:
        return f"Nothing was harvested into {folder} yet."
    given = [a for a in sys.argv[1:] if a != "--resume"]
    command = shlex.join(["microtome", *given, "--resume"])
    return (
        f"{len(manifest.shards)} of {manifest.settings.shards} shards are in {folder}. Go on with: "
        f"{command}"
    )
