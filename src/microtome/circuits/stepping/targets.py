"""What a step starts from: sites and names of parts, read from text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from microtome.circuits.graph import EMBED
from microtome.errors import SelectorError, SiteError, nearest
from microtome.tracing.indices import resolve_index
from microtome.tracing.sites import Site, parse

if TYPE_CHECKING:
    from microtome.circuits.stepping.recorded import Recorded

Kind = Literal["logits", "q", "k", "v", "mlp", "pre", "gate", "stream", "embed"]

_NAME = re.compile(
    r"a(?P<layer>\d+)\.h(?P<head>\d+)(<(?P<port>[qkv])>)?"
    r"|m(?P<mlp>\d+)(\.n(?P<neuron>\d+)(<(?P<branch>up|gate)>)?)?"
)

_SITES: dict[str, Kind] = {
    "attn.q": "q", "attn.in.q": "q", "attn.scores": "q", "attn.pattern": "q",
    "attn.k": "k", "attn.in.k": "k", "attn.v": "v", "attn.in.v": "v", "attn.z": "v",
    "attn.result": "v", "mlp.pre": "pre", "mlp.act": "pre", "mlp.gate": "gate", "mlp.out": "mlp",
    "mlp.in": "stream", "attn.in": "stream", "resid_pre": "stream", "resid_mid": "stream",
    "resid_post": "stream", "final.norm": "stream", "logits": "logits", "embed.token": "embed",
    "embed.pos": "embed",
}  # fmt: skip
"""What a step from each site means."""


@dataclass(frozen=True)
class Place:
    """Where a step starts.

    Attributes:
        kind: A port of a head, an MLP, a neuron's input, a stream, the logits or an embedding.
        text: As it was given.
        layer: The block.
        head: The query head.
        neuron: The neuron.
        site: Name of the site for streams and embeddings.
        pos: The position in the site's text, None if it names none.
    """

    kind: Kind
    text: str
    layer: int = 0
    head: int = 0
    neuron: int = 0
    site: str = ""
    pos: int | None = None


def place_of(recorded: Recorded, text: str | Site) -> Place:
    """Return what a text names: a part (``a1.h3``, ``a1.h3<q>``, ``m2.n17``) or a site.

    Raises:
        SiteError: If it names neither, or several places.
        SelectorError: If a block, head or neuron does not exist.
    """
    if str(text).strip() == EMBED:
        return Place("embed", EMBED, site=EMBED)
    match = _NAME.fullmatch(str(text).strip())
    place = _part(match, str(text)) if match else _site(recorded, text)
    if place.kind in ("logits", "embed", "stream"):
        return place
    n_layers = recorded.anatomy.n_layers
    _within(place.layer, n_layers, f"block of {text}")
    if place.kind in ("q", "k", "v"):
        _within(place.head, recorded.attention(place.layer).n_heads, f"head of {text}")
    elif place.kind in ("pre", "gate"):
        mlp = recorded.mlp(place.layer)
        _within(place.neuron, mlp.d_mlp, f"neuron of {text}")
        if place.kind == "gate" and mlp.gate is None:
            raise SiteError(f"{text}: the MLP of block {place.layer} is not gated.")
    return place


def _within(number: int, size: int, what: str) -> None:
    if number >= size:
        raise SelectorError(
            f"{what}: {number} is out of range; there are {size} (0 to {size - 1})."
        )


def _part(match: re.Match[str], text: str) -> Place:
    if match["mlp"] is None:
        port: Kind = match["port"] or "v"  # type: ignore[assignment]
        return Place(port, text, int(match["layer"]), int(match["head"]))
    if match["neuron"] is None:
        return Place("mlp", text, int(match["mlp"]))
    kind: Kind = "gate" if match["branch"] == "gate" else "pre"
    return Place(kind, text, int(match["mlp"]), neuron=int(match["neuron"]))


def _site(recorded: Recorded, text: str | Site) -> Place:
    try:
        site = text if isinstance(text, Site) else parse(text)
    except SiteError as error:
        raise type(error)(
            f"{error} A part is named such as a1.h3, a1.h3<q>, m2 or m2.n17."
        ) from None
    if site.name not in _SITES:
        raise SiteError(f"{site}: no step starts there{nearest(site.name, _SITES)}.")
    kind = _SITES[site.name]
    pos = None if site.pos is None else _single(site, "pos", recorded.length)
    if kind in ("logits", "embed") or site.name == "final.norm":
        return Place(kind, str(text), recorded.anatomy.n_layers, site=site.name, pos=pos)
    layers = site.layers(recorded.anatomy.n_layers)
    if len(layers) != 1:
        raise SiteError(f"{site}: name one block, as in blocks.1.{site.name}.")
    layer = layers[0]
    head, neuron = 0, 0
    if kind in ("q", "k", "v"):
        head = _head(recorded, site, layer)
    if kind in ("pre", "gate"):
        neuron = _single(site, "neuron", recorded.mlp(layer).d_mlp)
    return Place(kind, str(text), layer, head, neuron, site.name, pos)


def _head(recorded: Recorded, site: Site, layer: int) -> int:
    """Return the query head that a site selects, the first one of a selected key/value head."""
    attention = recorded.attention(layer)
    if "kv_head" in site.axes or site.name in ("attn.k", "attn.v"):
        size = attention.n_heads // attention.n_kv_heads
        return _single(site, "head", attention.n_kv_heads) * size
    return _single(site, "head", attention.n_heads)


def _single(site: Site, key: str, size: int) -> int:
    index = getattr(site, key)
    found = () if index is None else resolve_index(index, size, f"{key} of {site}")
    if len(found) != 1:
        raise SelectorError(f"{site}: a step starts from one {key}; add [{key}=...].")
    return found[0]
