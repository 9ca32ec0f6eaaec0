"""What every pass of a model for a coder needs: its sites, contexts, values and special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from microtome.errors import ShapeError, SiteError
from microtome.sae.harvesting.documents import Documents, deal
from microtome.tracing.passes import one_pass
from microtome.tracing.sites import Site, at

if TYPE_CHECKING:
    from microtome.sae.coder import SAE
    from microtome.tracing.model import Model
    from microtome.tracing.trace import Trace


@dataclass(frozen=True)
class Context:
    """Tokens that a model reads at a time.

    Attributes:
        document: Number of the document they are of.
        ids: Token ids, with the beginning of a sequence where the model's rule has one.
    """

    document: int
    ids: list[int]


def coder_sites(model: Model, coder: SAE) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    """Return the sites a coder reads and those it writes.

    Raises:
        SiteError: It names none, the model does not have them, or a target cannot be written.
        ShapeError: Its weights hold NaN or infinities.
    """
    require_finite(coder)
    origin = coder.origin
    if not origin.sources or not origin.targets:
        raise SiteError(
            "the coder names no sites, so it has no place in the model; give it an Origin with "
            "its sources and targets, such as ('blocks.3.resid_post',)"
        )
    sites = tuple(tuple(at(name) for name in names) for names in (origin.sources, origin.targets))
    for number, group in enumerate(sites):
        for site in group:
            model.catalog.resolve(site, write=number == 1)
    return sites[0], sites[1]


def require_finite(coder: SAE, name: str = "") -> None:
    """Refuse a coder whose weights are no numbers, from which figures could be made up.

    Raises:
        ShapeError: Some are NaN or infinite.
    """
    for weight, value in coder.weights.items():
        if not bool(torch.isfinite(value).all()):
            whose = f"coder {name!r}" if name else "the coder"
            raise ShapeError(f"{weight} of {whose} holds NaN or infinities; train it again")


def contexts_of(model: Model, documents: Documents, context: int) -> list[Context]:
    """Cut documents into contexts of at most ``context`` tokens, never across two of them.

    Contexts are never longer than the model's own.
    """
    longest = model.anatomy.context if model.anatomy is not None else None
    context = min(context, longest or context)
    start = [int(model.tokenizer.bos_token_id)] if model.bos else []
    pieces = deal(documents, max(1, context - len(start)), 1)[0]
    return [Context(p.document, start + [int(i) for i in p.ids]) for p in pieces]


def special_ids(model: Model) -> set[int]:
    """Return the ids of special tokens, whose values are neither encoded nor replaced."""
    tokenizer = model.tokenizer
    return set(getattr(tokenizer, "all_special_ids", ())) if tokenizer is not None else set()


def brief_pass(model: Model, ids: list[list[int]], sites: Sequence[Site]) -> Trace:
    """Run a model up to the last of some sites, without a graph, and capture them."""
    return one_pass(
        model, ids, capture=list(sites), interventions=(), logits=None, to=None, dtype=None,
        grad=False, stop=True,
    )  # fmt: skip


def values_at(trace: Trace, sites: Sequence[Site], coder: SAE) -> Tensor:
    """Return the values of sites side by side as a coder takes them, ``[batch, pos, width]``.

    Raises:
        ShapeError: A site does not hold a vector for each token.
    """
    for site in sites:
        if trace[site].dim() < 3 or trace[site].shape[:2] != trace.tokens.shape:
            raise ShapeError(
                f"{site} has values of shape {tuple(trace[site].shape)} for tokens of shape "
                f"{tuple(trace.tokens.shape)}; a coder needs a vector for each token"
            )
    like = coder.weights["b_dec"]
    return torch.cat([trace[site].flatten(2).to(like) for site in sites], dim=-1)
