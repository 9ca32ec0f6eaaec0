"""The twin's coder: what the same training makes of a model that has no mechanism.

Sparse coders of transformers with random weights reconstruct well, and their latents look
interpretable, too (Heap et al., 2025, arXiv 2501.17727). So the figures of a coder say something
only beside those of a coder that was trained on the twin's activations in the same way.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.core.progress import Progress, quiet
from microtome.errors import ConfigError
from microtome.sae.coder import SAE, Origin
from microtome.sae.config import Config
from microtome.sae.evaluation.splicing import Splicing
from microtome.sae.harvesting.documents import Text, read_documents
from microtome.sae.model_passes import coder_sites, contexts_of
from microtome.sae.training import train

if TYPE_CHECKING:
    from microtome.tracing.model import Model

KEY = "twin"
"""Where the origin's details say which permutation of the weights a coder was trained on."""

SAMPLE = 2048
"""Tokens on which the coder's L0 is measured where it does not say how many latents it keeps."""


def train_twin(
    model: Model,
    coder: SAE,
    text: Text,
    *,
    tokens: int | None = 200_000,
    context: int | None = None,
    steps: int = 1000,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> SAE:
    """Train a coder like a given one on the activations of the model's twin.

    Its settings are those that the coder was trained with, as far as it says so; otherwise those
    of a BatchTopK coder of its size and mean number of active latents. The weights of the model
    are permuted for the time being and come back exactly.

    Args:
        model: The model the coder belongs to.
        coder: The coder to be compared with.
        text: Text to train on, best what the coder was trained on.
        tokens: Tokens of it to read at most.
        context: Tokens of a row of the model's input.
        steps: Batches, as many as the coder had for an even match; fewer favor the coder.
        folder: Where the run is kept; the same call goes on with it.
        seed: Which permutation of the weights.
        progress: Told how far it is.

    Returns:
        The twin's coder, which knows its permutation: give it to :func:`microtome.sae.evaluate`.

    Raises:
        SiteError: The coder names no sites, or the model does not have them.
        ConfigError: The folder holds another run.
        MicrotomeError: Harvesting or training failed; see :func:`microtome.sae.train`.
    """
    coder_sites(model, coder)
    config = like(model, coder, text, steps)
    with model.twin(seed):
        origin = Origin(
            model=f"twin {seed} of {model.name}",
            fingerprint=model.fingerprint,
            details={KEY: seed},
        )
        return train(
            model,
            config,
            text=text,
            sources=coder.origin.sources,
            targets=coder.origin.targets,
            tokens=tokens,
            context=context,
            folder=folder,
            progress=progress,
            origin=origin,
        )


def twin_seed(model: Model, coder: SAE, twin: SAE) -> int:
    """Return the permutation that a twin's coder was trained on.

    Raises:
        ConfigError: It does not say, or it is of other sites, or of another model's twin.
    """
    seed = twin.origin.details.get(KEY)
    if not isinstance(seed, int):
        raise ConfigError(
            "the coder given as twin does not say which twin it was trained on; train it with "
            f"train_twin, or note the twin's seed in its origin: details={{'{KEY}': 0}}"
        )
    sites = (coder.origin.sources, coder.origin.targets)
    if (twin.origin.sources, twin.origin.targets) != sites:
        raise ConfigError(
            f"the twin's coder is of {twin.origin.sources} to {twin.origin.targets}, the coder of "
            f"{sites[0]} to {sites[1]}; train one on the same sites"
        )
    with model.twin(seed):
        found = model.fingerprint
    if twin.origin.fingerprint not in ("", found):
        raise ConfigError(
            f"the twin's coder is of a model with fingerprint {twin.origin.fingerprint[:12]}, twin "
            f"{seed} of {model.name!r} has {found[:12]}; train it on this model's twin"
        )
    return seed


def like(model: Model, coder: SAE, text: Text, steps: int) -> Config:
    """Return settings that train a coder like a given one."""
    known = coder.origin.details.get("training")
    names = set(inspect.signature(Config).parameters)
    device = str(coder.weights["b_dec"].device)
    if isinstance(known, dict) and set(known) <= names:
        return Config(**{**known, "steps": steps, "device": device})
    make = coder.architecture
    counted = make.activation in ("topk", "batchtopk", "abstopk")
    return Config(
        activation=make.activation if counted else "batchtopk",
        k=make.k if counted else max(1, round(_l0(model, coder, text))),
        d_sae=make.d_sae,
        encoder=make.encoder,
        kronecker=make.kronecker,
        prefixes=make.prefixes,
        reach=make.reach,
        skip=make.skip,
        center=make.center,
        steps=steps,
        device=device,
    )


def _l0(model: Model, coder: SAE, text: Text) -> float:
    """Return the mean number of active latents on the first tokens of a text."""
    documents = read_documents(text, tokenizer=model.tokenizer, tokens=SAMPLE)
    batches = [[context.ids] for context in contexts_of(model, documents, 128)]
    return Splicing(model, *coder_sites(model, coder)).survey(coder, batches).l0
