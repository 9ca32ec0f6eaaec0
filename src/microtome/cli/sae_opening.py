"""What the commands about a coder in its model open: both, and the index of its latents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microtome.cli.options import open_model
from microtome.cli.sae_coders import open_coder

if TYPE_CHECKING:
    from microtome.sae import SAE, LatentIndex
    from microtome.tracing.model import Model

IndexPlace = Annotated[
    Path | None, typer.Option("--index", help="Folder to keep the index in, and to read it from.")
]


def open_both(
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
    return model, open_coder(place, site, model)


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
    neurons = neuron_site(model, coder)
    with Bars() as bars:
        read = build(
            model, coder, read_texts(text), tokens=tokens, context=context, neurons=neurons,
            progress=bars,
        )  # fmt: skip
    if folder is not None:
        read.save(folder)
    return read
