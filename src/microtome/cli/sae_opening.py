"""What the commands about a coder in its model open: the model, the coder, the index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microtome.cli.options import open_model, say

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
IndexPlace = Annotated[
    Path | None, typer.Option("--index", help="Folder to keep the index in, and to read it from.")
]


def open_coder(
    name: str,
    place: Path,
    site: str | None,
    *,
    device: str | None,
    dtype: str | None,
    threads: int | None,
) -> tuple[Model, SAE]:
    """Open a model, and a coder with its place in it."""
    model = open_model(name, device, dtype, threads)
    return model, _placed(place, site, model)


def _placed(place: Path, site: str | None, model: Model) -> SAE:
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


def open_index(
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
    from microtome.sae.reading.neurons import neuron_site
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
    neurons = neuron_site(model, coder.origin.sources)
    with Bars() as bars:
        read = build(
            model, coder, read_texts(text), tokens=tokens, context=context, neurons=neurons,
            progress=bars,
        )  # fmt: skip
    if folder is not None:
        read.save(folder)
    return read
