"""The sites of a harvest: one place each, with a row for every token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from microtome.errors import SiteError
from microtome.sae.harvesting.documents import Piece
from microtome.tracing.sites import Site, at

if TYPE_CHECKING:
    from microtome.tracing.model import Model


def resolve_sites(model: Model, sites: str | Site | Sequence[str | Site]) -> tuple[Site, ...]:
    """Return the places that sites mean in a model, one by one.

    Args:
        model: The model.
        sites: Sites; one without a block means every block.

    Raises:
        SiteError: If a site is unknown, absent, selects positions, or has no value for each token.
    """
    if not isinstance(sites, str | Site | Iterable):
        raise SiteError(f"A site is a text such as 'blocks.3.attn.z'; got {sites!r}.")
    given = [sites] if isinstance(sites, str | Site) else list(sites)
    found: list[Site] = []
    for site in map(at, given):
        if site.pos is not None or site.table is not None:
            raise SiteError(f"{site} selects positions; a harvest takes every token: leave it out.")
        if site.axes and site.axes[:2] != ("batch", "pos"):
            raise SiteError(
                f"{site} has axes {', '.join(site.axes)}, so no row for each token; harvest "
                "another, such as attn.z or attn.out."
            )
        for _name, layer in model.catalog.resolve(site):
            found.append(site if layer is None else replace(site, layer=(layer,)))
    if not found:
        raise SiteError("There are no sites to harvest; name at least one.")
    return tuple(dict.fromkeys(found))


def widths(model: Model, sites: Sequence[Site], piece: Piece) -> dict[str, int]:
    """Return the width of a row at each site, found by one short forward pass.

    Raises:
        SiteError: If a site's value is not one row for each token.
    """
    ids = [int(i) for i in piece.ids[:4]]
    trace = model.trace([ids], capture=list(sites), logits=None)
    found = {}
    for site in sites:
        shape = tuple(trace[site].shape)
        if len(shape) < 3 or shape[:2] != (1, len(ids)):
            raise SiteError(
                f"{site} has a value of shape {shape} for one text of {len(ids)} tokens; expected "
                "(1, tokens, ...)."
            )
        found[str(site)] = int(np.prod(shape[2:]))
    return found
