"""Sweeps over the latents and errors of attached codecs.

A changed latent moves the value its codec writes by its decoder's direction, and a changed error by
itself. So a cell enters the residual stream as one vector for each position, behind the codec's
site, without encoding anything again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from microtome.behaviors.evaluate import batches
from microtome.errors import SweepError
from microtome.sweeps.cells import WHOLE
from microtome.tracing.indices import resolve_index
from microtome.tracing.sites import Site
from microtome.tracing.vocabulary import codec_of, is_error

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.sweeps.groups import Group
    from microtome.sweeps.plans import Plan
    from microtome.tracing.attachments import Attachment
    from microtome.tracing.model import Model

Units = Sequence[int] | Mapping[int, Sequence[int]]
"""Neurons or latents of every block, or by block."""

Directions = Mapping[tuple[int, int], torch.Tensor]
"""What one unit of a latent adds ``[d_out]``, by block and latent."""


def codecs_at(model: Model, site: Site) -> dict[int, Attachment]:
    """Return the codecs whose latents or error a site means, by block.

    Raises:
        SweepError: If it lies outside the blocks.
        SiteError: If there is no such codec.
    """
    found = {}
    known = model.catalog.codec_sites()
    for full, layer in model.catalog.resolve(Site(site.name, site.layer), write=True):
        if layer is None:
            raise SweepError(f"{site} lies outside the blocks and cannot be swept.")
        found[layer] = known[full]
    return found


def codec_of_plan(plan: Plan, layer: int) -> Attachment | None:
    """Return the codec that a plan sweeps in one block, None where it sweeps a site itself."""
    return plan.model.catalog.codec_sites().get(f"blocks.{layer}.{plan.site}")


def written_at(plan: Plan, layer: int) -> str:
    """Return the site whose value the cells of one block change in the end."""
    one = codec_of_plan(plan, layer)
    return plan.site if one is None else one.to.name


def split_reason(model: Model, site: Site) -> str:
    """Return why passes that change a site cannot be restarted, empty where they can."""
    if not codec_of(site.name):
        return ""
    for one in codecs_at(model, site).values():
        if one.joint:
            return f"{one.name} has several sites, so a change enters at more than one place"
        if one.at.layer != one.to.layer:
            return f"{one.name} reads {one.at} and writes another block, {one.to}"
    return ""


def chosen_latents(
    model: Model, site: Site, examples: Examples, given: Units | None
) -> dict[int, tuple[int, ...]]:
    """Return the latents to sweep over, by block.

    Args:
        model: The model.
        site: The latents, perhaps with a selector.
        examples: The examples.
        given: Which ones; by default those selected, else all that are active in either run.

    Raises:
        SelectorError: If there is no such latent.
        SweepError: If blocks are named that have no such codec, or no latent is active.
    """
    codecs = codecs_at(model, site)
    if given is None and site.latent is None:
        return _active(model, site, sorted(codecs), examples)
    wanted = given if given is not None else site.latent
    found = {}
    for layer, one in codecs.items():
        some = wanted.get(layer, ()) if isinstance(wanted, Mapping) else wanted
        if some is not None and (not isinstance(some, Sequence) or len(some)):
            index = tuple(some) if isinstance(some, Sequence) else some
            chosen = resolve_index(index, one.codec.d_sae, f"latent of {one.latents}")
            found[layer] = tuple(sorted(set(chosen)))
    if isinstance(wanted, Mapping) and not set(wanted) <= set(codecs):
        wrong = sorted(set(wanted) - set(codecs))[0]
        raise SweepError(f"latents= names block {wrong}; {site} is there in {sorted(codecs)}.")
    if not found:
        raise SweepError("latents= is empty; name at least one, or leave it out.")
    return found


def _active(
    model: Model, site: Site, layers: Sequence[int], examples: Examples
) -> dict[int, tuple[int, ...]]:
    names = {layer: f"blocks.{layer}.{site.name}" for layer in layers}
    seen: dict[int, torch.Tensor] = {}
    for places in batches(examples, 32):
        for prompts in (examples.clean, examples.corrupt):
            rows = [prompts[p] for p in places]
            trace = model.trace(rows, capture=list(names.values()), logits=None)
            for layer, name in names.items():
                on = (trace.value(name) != 0).any(0).any(0)
                seen[layer] = seen[layer] | on if layer in seen else on
    found = {layer: tuple(on.nonzero()[:, 0].tolist()) for layer, on in seen.items()}
    if not any(found.values()):
        raise SweepError(f"No latent of {site} is active in any of the {len(examples)} examples.")
    return {layer: some for layer, some in found.items() if some}


def directions_of(
    model: Model, site: Site, by_block: Mapping[int, Sequence[int]]
) -> dict[tuple[int, int], torch.Tensor]:
    """Return what one unit of each of some latents adds, of codecs whose latents add up."""
    codecs = codecs_at(model, site) if by_block else {}
    found = {}
    for layer, some in by_block.items():
        if codecs[layer].affine:
            vectors = codecs[layer].directions(torch.tensor(some, device=model.device))
            found.update({(layer, n): v for n, v in zip(some, vectors, strict=True)})
    return found


def rows_together(model: Model, site: Site, width: int, memory_mb: float, most: int) -> int:
    """Return how many rows may be recorded together, so that their latents fit the budget."""
    entries = sum(2 * one.codec.d_sae for one in codecs_at(model, site).values())
    return max(1, min(most, int(memory_mb * 2**20 / (4 * entries * width))))


def codec_change(
    plan: Plan,
    group: Group,
    layer: int,
    units: torch.Tensor,
    rows: torch.Tensor,
    where: torch.Tensor,
    first: int,
) -> torch.Tensor:
    """Return what runs change of the value that a codec writes ``[run, pos - first, width]``.

    Args:
        plan: The plan.
        group: The group.
        layer: The block.
        units: Latent of each run ``[run]``, or ``WHOLE``.
        rows: Row of the group of each run ``[run]``.
        where: Positions that each run changes ``[run, pos - first]``.
        first: First position.
    """
    one = codec_of_plan(plan, layer)
    if one is None:
        raise ValueError(f"nothing is attached at block {layer}")
    old, new = group.old[layer], group.new.get(layer)
    if is_error(plan.site):
        before = old[rows, first:].flatten(2)
        return (torch.zeros_like(before) if new is None else new[rows, first:].flatten(2)) - before
    if all((layer, int(u)) in plan.directions for u in units):
        span = torch.arange(first, old.shape[1])
        index = (rows.unsqueeze(1), span.unsqueeze(0), units.unsqueeze(1))
        before = old[..., 0][index]
        change = (torch.zeros_like(before) if new is None else new[..., 0][index]) - before
        vectors = torch.stack([plan.directions[layer, int(u)] for u in units])
        return change.unsqueeze(-1) * vectors.to(change).unsqueeze(1)
    return torch.stack(
        [_decoded_change(one, old, new, int(u), int(r), w, first)
         for u, r, w in zip(units, rows, where, strict=True)]
    )  # fmt: skip


def _decoded_change(
    one: Attachment,
    old: torch.Tensor,
    new: torch.Tensor | None,
    unit: int,
    row: int,
    where: torch.Tensor,
    first: int,
) -> torch.Tensor:
    """Return what one run changes ``[pos - first, width]``, by the whole decoder."""
    before = old[row, first:, :, 0]
    put = torch.zeros_like(before) if new is None else new[row, first:, :, 0]
    after = put if unit == WHOLE else before.clone()
    if unit != WHOLE:
        after[:, unit] = put[:, unit]
    change = before.new_zeros(len(before), one.codec.d_out)
    with torch.no_grad():
        change[where] = one.decode(after[where]) - one.decode(before[where])
    return change
