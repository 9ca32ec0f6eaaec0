"""Attaching codecs that read or write several sites: crosscoders, cross-layer transcoders.

A codec of several sites is attached as its parts, the latents that become known at the same place.
All latents of a crosscoder read every source, so they are known at the last one; the latents of a
cross-layer transcoder read one source each and are known there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from microtome.core.protocols import Codec, CodecPart
from microtome.errors import ConfigError, ShapeError, SiteError
from microtome.models.discovery import probe_tokens
from microtome.tracing.attachments import (
    Attachment,
    attachment,
    order_of,
    place,
    probed,
    require_free,
    require_name,
)
from microtome.tracing.catalog import require_anatomy
from microtome.tracing.sites import Site, at

if TYPE_CHECKING:
    from microtome.tracing.model import Model

Places = str | Site | Sequence[str | Site] | None


def attachments(
    model: Model, name: str, codec: Codec, source: Places, target: Places
) -> tuple[Attachment, ...]:
    """Check a codec and where it is to be attached; see ``Model.attach`` for the arguments.

    Returns:
        One attachment for each place where latents become known.

    Raises:
        ConfigError: If the name is malformed or taken, the codec says nowhere where it belongs, its
            latents are known behind its targets, or it cannot compute there.
        SiteError: If a site cannot be read or written.
        ShapeError: If widths do not fit, or the codec gives NaN.
        ModelSupportError: If the model is not a transformer.
    """
    sources, targets = _given(name, codec, source, target)
    parts = _parts(codec)
    several = any(max(part.reads + part.writes) > 0 for part in parts or ())
    if not several and len(sources) < 2 and len(targets or ()) < 2:
        _require_own(name, codec, sources, targets)
        return (attachment(model, name, codec, sources[0], targets[0] if targets else None),)
    anatomy = require_anatomy(model.anatomy, "Attaching a codec")
    require_name(name)
    reads = _places(model, sources, write=targets is None)
    _require_own(name, codec, reads, targets)
    writes = reads if targets is None else _places(model, targets, write=True)
    _require_own(name, codec, reads, writes)
    parts = parts or (CodecPart(codec, tuple(range(len(reads))), tuple(range(len(writes)))),)
    _require_numbers(name, parts, reads, writes)
    tokens = probe_tokens(anatomy.vocab, anatomy.context, model.device)
    sites = list(dict.fromkeys((*reads, *writes)))
    trace = model.trace(tokens, capture=sites, logits=None)
    values = {site: trace[site].flatten(2) for site in sites}
    found = tuple(_attached(name, part, reads, writes, values) for part in parts)
    if len({one.at for one in found}) < len(found):
        raise ConfigError(f"{name}: two sets of latents are known at one site, {found[0].at}.")
    for one in found:
        require_free(one, model.codecs)
    return found


def _given(
    name: str, codec: Codec, source: Places, target: Places
) -> tuple[list[str | Site], list[str | Site] | None]:
    """Return the sites that were given, or those that the codec says it belongs to."""
    if source is None:
        origin = getattr(codec, "origin", None)
        source = list(getattr(origin, "sources", ()))
        known = list(getattr(origin, "targets", ()))
        target = (known if known != source else None) if target is None else target
    for given in (source, target):
        if not isinstance(given, str | Site | Iterable | None):
            raise SiteError(f"A site is a text such as 'blocks.3.attn.z'; got {given!r}.")
    sources = [source] if isinstance(source, str | Site) else list(source)
    targets = [target] if isinstance(target, str | Site) else list(target or ())
    if not sources or (target is not None and not targets):
        raise ConfigError(
            f"{name}: where it is to be attached was not given, and the codec does not say where "
            "it belongs. Give at=SITE, and to=SITE for a transcoder."
        )
    return sources, targets or None


def _require_own(
    name: str,
    codec: Codec,
    reads: Sequence[str | Site],
    writes: Sequence[str | Site] | None,
) -> None:
    """Refuse a codec's own sites in another order than it has them, or without those it writes.

    A codec may be attached elsewhere than where it was trained, but these are never meant.
    """
    origin = getattr(codec, "origin", None)
    own = [[str(at(s)) for s in getattr(origin, which, ())] for which in ("sources", "targets")]
    given = [[str(at(s)) for s in sites or ()] for sites in (reads, writes)]
    for verb, trained, now in zip(("reads", "writes"), own, given, strict=True):
        if now != trained and sorted(now) == sorted(trained):
            raise ConfigError(
                f"{name} {verb} {', '.join(trained)} in this order, and they were given as "
                f"{', '.join(now)}; leave them out, or give them in its order."
            )
    if writes is None and given[0] == own[0] and own[1] and own[0] != own[1]:
        raise ConfigError(
            f"{name} reads {', '.join(own[0])} and writes {', '.join(own[1])}; give to=, too, or "
            "leave at= out."
        )


def _parts(codec: Codec) -> tuple[CodecPart, ...] | None:
    """Return the parts of a codec that says what they are, else None."""
    parts = getattr(codec, "parts", None)
    return tuple(parts()) if callable(parts) else None


def _places(model: Model, given: Sequence[str | Site], *, write: bool) -> tuple[Site, ...]:
    """Return every place that some sites mean, one without a block that of every block."""
    found: list[Site] = []
    for one in map(at, given):
        known = model.catalog.resolve(one) if one == one.whole() else []
        if len(known) > 1:
            found += [
                place(model, Site(one.name, (layer or 0,)), write=write) for _, layer in known
            ]
        else:
            found.append(place(model, one, write=write))
    return tuple(found)


def _require_numbers(
    name: str, parts: Sequence[CodecPart], reads: Sequence[Site], writes: Sequence[Site]
) -> None:
    """Refuse other numbers of sites than the codec has, and a site that is named twice."""
    for what, sites, wanted in (
        ("reads", reads, 1 + max(max(part.reads) for part in parts)),
        ("writes", writes, 1 + max(max(part.writes) for part in parts)),
    ):
        if len(sites) != wanted:
            raise ConfigError(
                f"{name} {what} {wanted} sites, and {len(sites)} were given: "
                f"{', '.join(map(str, sites))}."
            )
        if len(set(sites)) < len(sites):
            raise ConfigError(f"{name} {what} a site twice: {', '.join(map(str, sites))}.")


def _attached(
    name: str,
    part: CodecPart,
    reads: Sequence[Site],
    writes: Sequence[Site],
    values: dict[Site, torch.Tensor],
) -> Attachment:
    """Return the attachment of one part, checked on recorded values."""
    read, written = [reads[n] for n in part.reads], [writes[n] for n in part.writes]
    known = max(read, key=order_of)
    late = [site for site in written if site != known and order_of(site) <= order_of(known)]
    timely = sorted((site for site in written if site not in late), key=order_of)
    if not timely or (late and len(read) == 1):
        wrong = late[0] if late else written[0]
        raise ConfigError(
            f"{name}: latents that read {known} write {wrong}, which is passed before them, so a "
            "change of them cannot be written there. Give the sites in the codec's own order."
        )
    inputs = torch.cat([values[site] for site in read], -1)
    outputs = torch.cat([values[site] for site in written], -1)
    for verb, width, sites, there in (
        ("reads", part.codec.d_in, read, inputs), ("writes", part.codec.d_out, written, outputs),
    ):  # fmt: skip
        if width != there.shape[-1]:
            raise ShapeError(
                f"{name} {verb} {width} numbers, but {', '.join(map(str, sites))} have "
                f"{there.shape[-1]} together."
            )
    draft = probed(name, part.codec, inputs, outputs, known, timely[0])
    return replace(
        draft,
        reads=tuple(read),
        writes=tuple(written),
        widths=tuple(values[site].shape[-1] for site in written),
        joint=True,
    )
