"""Options that the commands about coders share, and opening the coder they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microtome.cli.options import say

if TYPE_CHECKING:
    from microtome.sae import SAE
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


def open_coder(place: Path, site: str | None, model: Model) -> SAE:
    """Open a coder and give it its place in the model."""
    from dataclasses import replace

    from microtome.sae import load
    from microtome.tracing.sites import at

    coder = load(place)
    if site is not None:
        source, _, target = site.partition("->")
        sources, targets = (str(at(source)),), (str(at(target or source)),)
        coder.origin = replace(coder.origin, sources=sources, targets=targets)
    warn_of_another_model(coder, model)
    return coder.to(model.device)


def warn_of_another_model(coder: SAE, model: Model) -> None:
    """Say so where a coder was trained on a model of other weights."""
    known = coder.origin.fingerprint
    if known and known != model.fingerprint:
        say(
            f"The coder was trained on a model with fingerprint {known[:12]}, this one has "
            f"{model.fingerprint[:12]}."
        )
