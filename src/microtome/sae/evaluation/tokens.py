"""Labelled tokens: one token of each prompt encoded, and the words of a vocabulary as prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from microtome.core.seeds import rng
from microtome.errors import ConfigError, DataError, EmptyDataError
from microtome.sae.evaluation.labelled import Pooled, halves, numbered
from microtome.sae.model_passes import coder_sites, values_at

if TYPE_CHECKING:
    from microtome.sae.coder import SAE
    from microtome.tracing.model import Model
    from microtome.tracing.prompts import Prompts


@torch.no_grad()
def at_tokens(
    model: Model,
    coder: SAE,
    prompts: Prompts,
    labels: Sequence[str],
    *,
    positions: int | Sequence[int] = -1,
    batch_size: int = 32,
    seed: int = 0,
) -> Pooled:
    """Encode one token of each labelled prompt; half of each class is for testing.

    Args:
        model: The model the coder belongs to.
        coder: A coder whose ``origin`` names its sites.
        prompts: Texts or token ids.
        labels: One for each.
        positions: Which token, for all or for each; -1 is the last.
        batch_size: Prompts per pass.
        seed: Decides the halves.

    Raises:
        DataError: Prompts, labels and positions differ in number, or a prompt has no such token.
        EmptyDataError: There are fewer than two classes, or fewer than four prompts of one.
        SiteError: The coder names no sites of this model.
        ConfigError: ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; expected 1 or more")
    texts = list(prompts)
    where = [positions] * len(texts) if isinstance(positions, int) else list(positions)
    if not len(texts) == len(labels) == len(where):
        raise DataError(
            f"{len(texts)} prompts, {len(labels)} labels and {len(where)} positions; give one of "
            "each"
        )
    classes, numbers = numbered(labels)
    sources, _ = coder_sites(model, coder)
    values, latents = [], []
    for start in range(0, len(texts), batch_size):
        trace = model.trace(texts[start : start + batch_size], capture=list(sources), logits=None)
        found = values_at(trace, sources, coder)
        lengths = trace.mask.sum(1).tolist()
        for row, (length, asked) in enumerate(zip(lengths, where[start:], strict=False)):
            if not -length <= asked < length:
                raise DataError(
                    f"prompt {start + row} has {length} tokens and no token {asked}; give another "
                    "position"
                )
            values.append(found[row, asked % int(length)])
    stacked = torch.stack(values)
    latents = [coder.encode(part).double().cpu() for part in stacked.split(256)]
    encoded = torch.cat(latents).numpy()
    return Pooled(
        stacked.double().cpu().numpy(), encoded, encoded, numbers, classes, halves(numbers, seed)
    )


def first_letters(
    model: Model,
    words: Sequence[str] | None = None,
    *,
    template: str = "{word} has the first letter:",
    n: int | None = None,
    seed: int = 0,
) -> tuple[list[list[int]], list[str], list[int]]:
    """Return prompts about words, their first letters, and where each word ends.

    It is the data of Chanin et al. (2024), from the tokenizer's own words unless others are given.

    Args:
        model: A model with a tokenizer.
        words: The words; by default every token of the vocabulary that is a word after a space.
        template: The prompt, with ``{word}``.
        n: How many words to draw, all by default.
        seed: Seed of the draw.

    Returns:
        Token ids of the prompts, labels, and the position of each word's last token, for
        :func:`at_tokens`.

    Raises:
        TokenizerError: The model has no tokenizer.
        ConfigError: The template has no ``{word}``, or ``n`` is not positive.
        EmptyDataError: There are no words.
    """
    if "{word}" not in template:
        raise ConfigError(f"the template {template!r} has no {{word}}; say where the word goes")
    if n is not None and n < 1:
        raise ConfigError(f"n is {n}; expected 1 or more words")
    before = template.partition("{word}")[0]
    chosen = _vocabulary(model) if words is None else [w.strip() for w in words]
    if n is not None and n < len(chosen):
        drawn = rng(seed, "first letters").permutation(len(chosen))[:n]
        chosen = [chosen[i] for i in sorted(drawn)]
    prompts, labels, positions = [], [], []
    for word in chosen:
        whole = list(model.tokenize(template.replace("{word}", f" {word}")))
        start = list(model.tokenize(f"{before} {word}"))
        if word[:1].isalpha() and whole[: len(start)] == start:
            prompts.append(whole)
            labels.append(word[0].lower())
            positions.append(len(start) - 1)
    if not prompts:
        raise EmptyDataError("there are no words with a first letter; give words")
    return prompts, labels, positions


def _vocabulary(model: Model) -> list[str]:
    """Return the words that are one token after a space, in the vocabulary's order."""
    size = len(model.tokenizer) if model.tokenizer is not None else 0
    texts = (model.tokenizer.decode([i]) for i in range(size))
    return [
        t[1:] for t in texts if t[:1] == " " and len(t) > 2 and t[1:].isascii() and t[1:].isalpha()
    ]
