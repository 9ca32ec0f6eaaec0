"""Attribution graphs as circuit-tracer and Neuronpedia store them (``schema_version`` 1).

Node types of theirs are ``cross layer transcoder`` (a latent), ``mlp reconstruction error``,
``embedding`` and ``logit``; ours for heads and MLPs are ``attention head`` and ``mlp``. Reading is
strict: what is wrong is named, nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.circuits.exchange.files import LIMIT_BYTES, checked, read_json
from microtome.circuits.exchange.files import field as value_of
from microtome.errors import FormatError
from microtome.store.atomic import write_text
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
LATENT, ERROR, EMBEDDING, LOGIT = (
    "cross layer transcoder", "mlp reconstruction error", "embedding", "logit",
)  # fmt: skip
HEAD, MLP = "attention head", "mlp"

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_METADATA = ("slug", "scan", "transcoder_list", "prompt_tokens", "prompt", "node_threshold",
             "schema_version")  # fmt: skip


@dataclass(frozen=True)
class AttributionNode:
    """One node of an attribution graph; fields as in the file.

    Attributes:
        node_id: Unique name, ``"{layer}_{number}_{position}"``.
        feature: Number of the latent (the Cantor pairing of layer and latent), head or token.
        layer: Layer as text, ``"E"`` for embeddings, one past the last for logits.
        ctx_idx: Position in the prompt.
        feature_type: What it is.
        token_prob: Probability of a logit's token.
        is_target_logit: Whether it is the logit that is explained.
        run_idx: Theirs, 0.
        reverse_ctx_idx: Theirs, 0.
        js_node_id: Name by which the viewer links equal latents.
        clerp: Label.
        influence: Share of the output that passes through it, or None.
        activation: Activation, or None.
    """

    node_id: str
    feature: int
    layer: str
    ctx_idx: int
    feature_type: str
    token_prob: float = 0.0
    is_target_logit: bool = False
    run_idx: int = 0
    reverse_ctx_idx: int = 0
    js_node_id: str = ""
    clerp: str = ""
    influence: float | None = None
    activation: float | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return the fields under the names of the file."""
        plain = dict(vars(self))
        plain["jsNodeId"] = plain.pop("js_node_id") or self.node_id
        return plain


@dataclass(frozen=True)
class Link:
    """The effect of one node on another.

    Attributes:
        source: Name of the node it leaves.
        target: Name of the node it enters.
        weight: Direct effect.
        ports: Part of the weight by port of a head (``q``, ``k``, ``v``); empty where there is
            none. An extra key in the file, which other readers ignore.
    """

    source: str
    target: str
    weight: float
    ports: Mapping[str, float] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Return the fields under the names of the file."""
        plain: dict[str, Any] = {
            "source": self.source, "target": self.target, "weight": self.weight,
        }  # fmt: skip
        return plain | ({"ports": dict(self.ports)} if self.ports else {})


@dataclass(frozen=True, eq=False)
class AttributionGraph(Result):
    """An attribution graph for one prompt.

    Attributes:
        slug: Name of the graph and of its file.
        scan: Model or set of transcoders.
        nodes: The nodes.
        links: Their links.
        prompt: The prompt.
        prompt_tokens: Its tokens, or what stands at each position.
        transcoder_list: The transcoders, if the set has no name.
        node_threshold: Share of influence kept when nodes were pruned, or None.
        q_params: State of the viewer: pinned nodes, supernodes.
        extra: Further entries of the file's metadata.
    """

    slug: str
    scan: str
    nodes: tuple[AttributionNode, ...]
    links: tuple[Link, ...]
    prompt: str
    prompt_tokens: tuple[str, ...]
    transcoder_list: tuple[str, ...] = ()
    node_threshold: float | None = None
    q_params: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_document(self) -> dict[str, Any]:
        """Return the whole file as plain values."""
        params = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "",
                  "sg_pos": ""}  # fmt: skip
        return {
            "metadata": self._metadata(),
            "qParams": params | dict(self.q_params),
            "nodes": [node.to_plain() for node in self.nodes],
            "links": [link.to_plain() for link in self.links],
        }

    def _metadata(self) -> dict[str, Any]:
        return {
            "slug": self.slug,
            "scan": self.scan,
            "transcoder_list": list(self.transcoder_list),
            "prompt_tokens": list(self.prompt_tokens),
            "prompt": self.prompt,
            "node_threshold": self.node_threshold,
            "schema_version": SCHEMA_VERSION,
            **self.extra,
        }

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each link."""
        import pandas as pd

        rows = [(link.source, link.target, link.weight) for link in self.links]
        return pd.DataFrame(rows, columns=["source", "target", "weight"])


def write_attribution_graph(path: str | Path, graph: AttributionGraph) -> Path:
    """Write a graph, and list it in ``graph-metadata.json`` beside it, as the viewer expects.

    Args:
        path: The file; a folder takes ``SLUG.json``.
        graph: The graph.

    Raises:
        FormatError: If the list beside it is damaged, or the slug is no file name.
        OutputError: If a file cannot be written.
    """
    if not _SLUG.fullmatch(graph.slug):
        raise FormatError(
            f"slug {graph.slug!r} is no file name; use letters, digits, dots, dashes and "
            "underscores"
        )
    place = Path(path)
    if place.is_dir():
        place = place / f"{graph.slug}.json"
    listing = place.with_name("graph-metadata.json")
    known: list[Any] = []
    if listing.exists():
        known = value_of(read_json(listing), "graphs", list, where=str(listing))
    document = graph.to_document()
    write_text(place, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    others = [g for g in known if not (isinstance(g, dict) and g.get("slug") == graph.slug)]
    entries = {"graphs": [*others, document["metadata"]]}
    write_text(listing, json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return place


def read_attribution_graph(path: str | Path, *, limit_bytes: int = LIMIT_BYTES) -> AttributionGraph:
    """Read an attribution graph and check all of it.

    Args:
        path: The file.
        limit_bytes: Largest file that is read.

    Raises:
        FormatError: The file cannot be read, is of another schema version, lacks a field, has one
            of another type, two nodes of one name, a link to no node, or a position outside the
            prompt.
    """
    where = str(path)
    document = read_json(path, limit_bytes=limit_bytes)
    metadata = value_of(document, "metadata", dict, where=where)
    version = metadata.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise FormatError(
            f"{where} has schema_version {version!r}; this microtome reads {SCHEMA_VERSION}"
        )
    inside = f"metadata of {where}"
    tokens = _texts(metadata, "prompt_tokens", inside)
    nodes = tuple(
        _node(entry, f"node {number} of {where}", len(tokens))
        for number, entry in enumerate(value_of(document, "nodes", list, where=where))
    )
    names = _unique_names(nodes, where)
    links = tuple(
        _link(entry, f"link {number} of {where}", names)
        for number, entry in enumerate(value_of(document, "links", list, where=where))
    )
    return AttributionGraph(
        slug=value_of(metadata, "slug", str, where=inside),
        scan=value_of(metadata, "scan", str, where=inside),
        nodes=nodes,
        links=links,
        prompt=value_of(metadata, "prompt", str, where=inside),
        prompt_tokens=tokens,
        transcoder_list=_texts(metadata, "transcoder_list", inside, optional=True),
        node_threshold=_maybe(metadata, "node_threshold", inside),
        q_params=value_of(document, "qParams", dict, where=where),
        extra={key: value for key, value in metadata.items() if key not in _METADATA},
    )


def _node(entry: Any, where: str, positions: int) -> AttributionNode:
    node = AttributionNode(
        node_id=value_of(entry, "node_id", str, where=where),
        feature=value_of(entry, "feature", int, where=where),
        layer=value_of(entry, "layer", str, where=where),
        ctx_idx=value_of(entry, "ctx_idx", int, where=where),
        feature_type=value_of(entry, "feature_type", str, where=where),
        token_prob=_optional(entry, "token_prob", float, 0.0, where),
        is_target_logit=_optional(entry, "is_target_logit", bool, False, where),
        run_idx=_optional(entry, "run_idx", int, 0, where),
        reverse_ctx_idx=_optional(entry, "reverse_ctx_idx", int, 0, where),
        js_node_id=_optional(entry, "jsNodeId", str, "", where),
        clerp=_optional(entry, "clerp", str, "", where),
        influence=_maybe(entry, "influence", where),
        activation=_maybe(entry, "activation", where),
    )
    if not 0 <= node.ctx_idx < max(1, positions):
        raise FormatError(
            f"'ctx_idx' of {where} is {node.ctx_idx}; the prompt has {positions} tokens"
        )
    if node.layer != "E" and not re.fullmatch(r"\d{1,6}", node.layer):
        raise FormatError(f"'layer' of {where} is {node.layer!r}; expected 'E' or a number as text")
    return node


def _link(entry: Any, where: str, names: frozenset[str]) -> Link:
    link = Link(
        source=value_of(entry, "source", str, where=where),
        target=value_of(entry, "target", str, where=where),
        weight=value_of(entry, "weight", float, where=where),
        ports={
            port: checked(part, float, where=f"port {port!r} of {where}")
            for port, part in _optional(entry, "ports", dict, {}, where).items()
        },
    )
    for name in (link.source, link.target):
        if name not in names:
            raise FormatError(f"{where} names the node {name!r}, which the file does not have")
    if unknown := set(link.ports) - set("qkv"):
        raise FormatError(f"{where} has the ports {sorted(unknown)}; expected q, k and v")
    return link


def _unique_names(nodes: tuple[AttributionNode, ...], where: str) -> frozenset[str]:
    names = frozenset(node.node_id for node in nodes)
    if len(names) != len(nodes):
        seen: set[str] = set()
        for node in nodes:
            if node.node_id in seen:
                raise FormatError(f"{where} has two nodes {node.node_id!r}; give each its own name")
            seen.add(node.node_id)
    return names


def _texts(
    record: Mapping[str, Any], name: str, where: str, *, optional: bool = False
) -> tuple[str, ...]:
    if optional and name not in record:
        return ()
    values = value_of(record, name, list, where=where)
    return tuple(checked(x, str, where=f"an entry of {name!r} of {where}") for x in values)


def _optional(record: Mapping[str, Any], name: str, kind: type, other: Any, where: str) -> Any:
    return value_of(record, name, kind, where=where) if name in record else other


def _maybe(record: Mapping[str, Any], name: str, where: str) -> float | None:
    if record.get(name) is None:
        return None
    found: float = value_of(record, name, float, where=where)
    return found
