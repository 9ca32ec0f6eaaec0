"""Evaluating coders in the model they belong to: reconstruction, and what the model loses by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.errors import ConfigError, EmptyDataError, UnknownNameError, nearest
from microtome.sae.evaluation.baselines import coordinates, fit_scale, random_dictionary
from microtome.sae.evaluation.results import Evaluated, SAEEvaluation
from microtome.sae.evaluation.splicing import Splicing, Survey
from microtome.sae.evaluation.twins import twin_seed
from microtome.sae.harvesting.documents import Text, read_documents
from microtome.sae.model_passes import coder_sites, contexts_of

if TYPE_CHECKING:
    from microtome.sae.coder import SAE
    from microtome.tracing.model import Model

BASELINES = ("random", "coordinates")
"""Baselines that need no training."""


def evaluate(
    model: Model,
    coder: SAE,
    text: Text,
    *,
    tokens: int = 20_000,
    context: int = 128,
    batch_size: int = 16,
    baselines: Sequence[str] = BASELINES,
    twin: SAE | None = None,
    others: Mapping[str, SAE] | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> SAEEvaluation:
    """Evaluate a coder and its baselines on held-out text.

    Each coder's reconstruction replaces the value of its target sites at every token but special
    ones, from values of the untouched run, and the model goes on with it. Predictions of special
    tokens, or behind one, do not count. Baselines, on the same tokens: as many random directions,
    their scale fitted to the text, and, for SAEs, the coordinates of the value, both keeping the
    coder's own mean number of latents; and a coder of the model's twin, measured in the twin.

    Args:
        model: The model the coder belongs to.
        coder: A coder whose ``origin`` names its sites.
        text: Held-out texts; see :func:`microtome.sae.harvest`.
        tokens: How many tokens to read at most.
        context: Tokens of a text at a time.
        batch_size: Texts per pass.
        baselines: Of ``"random"`` and ``"coordinates"``, those to measure; transcoders have no
            coordinates.
        twin: What :func:`microtome.sae.train_twin` gave, for a row ``"twin"``: how good a coder
            looks where there is no mechanism to find (Heap et al., 2025).
        others: Further coders of the same sites, by name.
        seed: Seed of the random directions.
        progress: Told how far it is.

    Returns:
        The coder's row first, then those of ``others``, of the baselines and of the twin.

    Raises:
        SiteError: The coder names no sites, or the model does not have them.
        ShapeError: Its widths are not those of the sites.
        EmptyDataError: The text has no tokens to predict.
        ConfigError: A number is out of range, a name is taken, or the twin's coder is of another
            twin or site.
        UnknownNameError: There is no such baseline.
        ModelSupportError: The model gives no logits.
    """
    _check(tokens, context, batch_size, baselines, others or {})
    seeded = None if twin is None else twin_seed(model, coder, twin)
    batches = _batches(model, text, tokens, context, batch_size)
    run = Splicing(model, *coder_sites(model, coder))
    looked = run.survey(coder, batches)
    coders = {"sae": coder, **(others or {})}
    k, mean = round(looked.l0), looked.target_mean
    if "random" in baselines:
        coders["random"] = random_dictionary(
            coder, k, mean=mean, source_mean=looked.source_mean, seed=seed
        )
        fit_scale(coders["random"], *looked.sample)
    if "coordinates" in baselines and coder.origin.sources == coder.origin.targets:
        coders["coordinates"] = coordinates(coder, k, mean=mean)
    rows = _measured(run, coders, looked, batches, progress, "text")
    if twin is not None and seeded is not None:
        with model.twin(seeded):
            again = Splicing(model, run.sources, run.targets)
            found = again.survey(twin, batches)
            rows += _measured(again, {"twin": twin}, found, batches, progress, "twin")
    settings = {"tokens": tokens, "context": context, "seed": seed, "sites": coder.origin.sources}
    return SAEEvaluation(
        rows, (coder.origin.sources, coder.origin.targets), collect(model, settings, seed=seed)
    )


def _measured(
    run: Splicing,
    coders: Mapping[str, SAE],
    looked: Survey,
    batches: Sequence[list[list[int]]],
    progress: Progress,
    label: str,
) -> tuple[Evaluated, ...]:
    """Measure coders on every batch."""
    like = next(iter(coders.values())).weights["b_dec"]
    for number, (ids, latents) in enumerate(zip(batches, looked.latents, strict=True)):
        run.measure(ids, coders, looked.target_mean, latents.dense().to(like))
        progress.step(number + 1, len(batches), label)
    return run.rows()


def _check(
    tokens: int, context: int, batch_size: int, baselines: Sequence[str], others: Mapping[str, SAE]
) -> None:
    if context < 2 or batch_size < 1 or tokens < 2:
        raise ConfigError(
            f"context={context}, batch_size={batch_size}, tokens={tokens}; expected at least 2, "
            "1 and 2"
        )
    if isinstance(baselines, str | bool):
        raise ConfigError(
            f"baselines is {baselines!r}; expected a tuple of names out of {BASELINES}, empty for "
            "none"
        )
    for name in baselines:
        if name not in BASELINES:
            raise UnknownNameError(f"no baseline {name!r}{nearest(name, BASELINES)}")
    if taken := {"sae", "twin", *BASELINES} & set(others):
        raise ConfigError(
            f"others are named {sorted(taken)}, as rows of the table are; rename them"
        )


def _batches(
    model: Model, text: Text, tokens: int, context: int, batch_size: int
) -> list[list[list[int]]]:
    documents = read_documents(text, tokenizer=model.tokenizer, tokens=tokens)
    # A context of one token predicts nothing.
    lists = [c.ids for c in contexts_of(model, documents, context) if len(c.ids) > 1]
    if not lists:
        raise EmptyDataError("the text has no token that follows another; give longer texts")
    ordered = sorted(lists, key=len)
    return list(_split(ordered, batch_size))


def _split(lists: Sequence[list[int]], size: int) -> Iterator[list[list[int]]]:
    for start in range(0, len(lists), size):
        yield list(lists[start : start + size])
