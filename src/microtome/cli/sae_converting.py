"""``microtome sae convert``: a coder in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from microtome.cli.options import Json, print_json, say
from microtome.cli.sae_coders import CoderPlace


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
    from microtome.errors import UsageError
    from microtome.sae import load, save

    if to == "neuronpedia":
        raise UsageError(
            "Neuronpedia takes what latents do on texts, not weights: "
            "microtome sae show MODEL CODER TEXTS --neuronpedia FOLDER"
        )
    check_folder(out)
    loaded = load(coder)
    place = save(loaded, out, format=to, dtype=stored)
    if as_json:
        print_json(
            {"folder": str(place), "format": to, "files": sorted(p.name for p in place.iterdir())}
        )
        return
    say(f"{place} holds the coder as {to}: {', '.join(sorted(p.name for p in place.iterdir()))}.")
