"""``microtome sae eval``: what a coder is worth in its model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from microtome.cli.sae_opening import open_both


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
    opened, loaded = open_both(model, coder, site, device=device, dtype=dtype, threads=threads)
    with Bars() as bars:
        found = evaluated(
            opened, loaded, texts, tokens=tokens, context=context,
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
