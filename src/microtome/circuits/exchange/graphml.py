"""GraphML (Brandes et al., 2002), both ways, with a reader that runs nothing and fetches nothing.

A document type or an entity is refused before anything of it is expanded.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from microtome.circuits.exchange.files import LIMIT_BYTES, read_text
from microtome.circuits.exchange.listing import Listing, listing_of, scored_of
from microtome.circuits.exchange.scored import ScoredCircuit
from microtome.errors import DataError, FormatError, UnsafeFileError
from microtome.store.atomic import write_text

NAMESPACE = "http://graphml.graphdrawing.org/xmlns"
_TYPES = {"score": "double", "kept": "boolean"}
_DEEPEST = 64
# What XML 1.0 cannot hold at all, not even as a reference.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def graphml_text(scored: ScoredCircuit) -> str:
    """Return a circuit as a GraphML document.

    Raises:
        DataError: If a name holds a character that XML cannot hold.
    """
    listing = listing_of(scored)
    keys = [("graph", "info")]
    keys += [("node", name) for name in ("kind", "kept", "score")]
    keys += [("edge", name) for name in ("port", "kept", "score")]
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f'<graphml xmlns="{NAMESPACE}">']
    lines += [
        f'  <key id="{part}-{name}" for="{part}" attr.name="{name}" '
        f'attr.type="{_TYPES.get(name, "string")}"/>'
        for part, name in keys
    ]
    lines.append('  <graph id="circuit" edgedefault="directed">')
    lines.append(f'    <data key="graph-info">{escape(listing.info)}</data>')
    for node in listing.nodes:
        rest = {name: value for name, value in node.items() if name != "id"}
        lines.append(f"    <node id={quoteattr(node['id'])}>{_data('node', rest)}</node>")
    for number, edge in enumerate(listing.edges):
        ends = f"source={quoteattr(edge['source'])} target={quoteattr(edge['target'])}"
        rest = {name: value for name, value in edge.items() if name not in ("source", "target")}
        lines.append(f'    <edge id="e{number}" {ends}>{_data("edge", rest)}</edge>')
    text = "\n".join([*lines, "  </graph>", "</graphml>", ""])
    if found := _FORBIDDEN.search(text):
        raise DataError(
            f"a name of the circuit holds the character U+{ord(found.group()):04X}, which XML "
            "cannot hold; rename the part, or write another format"
        )
    return text


def write_graphml(path: str | Path, scored: ScoredCircuit) -> Path:
    """Write a circuit as GraphML: its parts, and the others that have a score.

    Raises:
        DataError: If a name holds a character that XML cannot hold.
        OutputError: If the file cannot be written.
    """
    return write_text(path, graphml_text(scored))


def read_graphml(path: str | Path, *, limit_bytes: int = LIMIT_BYTES) -> ScoredCircuit:
    """Read a circuit from GraphML, of microtome or of another program.

    Of a foreign file the attributes ``port``, ``kept`` and ``score`` (or ``weight``) are used;
    everything it lists is the universe, and belongs to the circuit unless ``kept`` is false.

    Raises:
        UnsafeFileError: The file declares a document type or an entity.
        FormatError: The file is missing, too large, not XML, not GraphML or contradicts itself.
    """
    text = read_text(path, limit_bytes=limit_bytes)
    reader = _Reader(str(path))
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartDoctypeDeclHandler = reader.refuse
    parser.EntityDeclHandler = reader.refuse
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.characters
    parser.buffer_text = True
    try:
        parser.Parse(text.encode(), True)
    except expat.ExpatError as error:
        raise FormatError(
            f"{path} is not XML or is truncated ({error}); export it again"
        ) from error
    return scored_of(reader.listing(), where=str(path))


def _data(part: str, values: dict[str, str]) -> str:
    return "".join(
        f'<data key="{part}-{name}">{escape(value)}</data>' for name, value in values.items()
    )


class _Reader:
    """Collects nodes, edges and their data while the file is parsed."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.depth = 0
        self.graphs = 0
        self.names: dict[str, str] = {}
        self.info = ""
        self.nodes: dict[str, dict[str, str]] = {}
        self.edges: list[dict[str, str]] = []
        self.owner: dict[str, str] | None = None
        self.key: str | None = None
        self.text: list[str] = []

    def refuse(self, *_: Any) -> None:
        raise UnsafeFileError(
            f"{self.where} declares a document type or an entity, which GraphML does not need and "
            "which can be used to exhaust memory or read other files; remove the declaration"
        )

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise FormatError(f"{self.where} is nested deeper than {_DEEPEST}; it is no GraphML")
        local = name.rpartition(" ")[2]
        if self.depth == 1 and local != "graphml":
            raise FormatError(f"{self.where} is a <{local}> document; expected <graphml>")
        if local in ("key", "graph", "node", "edge", "data"):
            getattr(self, f"_{local}")(attributes)

    def _key(self, attributes: dict[str, str]) -> None:
        self.names[self._need(attributes, "id", "a key")] = attributes.get("attr.name", "")

    def _graph(self, attributes: dict[str, str]) -> None:
        self.graphs += 1
        if self.graphs > 1:
            raise FormatError(f"{self.where} has more than one graph, or nested ones; keep one")
        if attributes.get("edgedefault") == "undirected":
            raise FormatError(f"{self.where} has undirected edges; a circuit's are directed")

    def _node(self, attributes: dict[str, str]) -> None:
        name = self._need(attributes, "id", "a node")
        if name in self.nodes:
            raise FormatError(f"{self.where} has the node {name!r} twice; leave one out")
        self.owner = self.nodes[name] = {"id": name}

    def _edge(self, attributes: dict[str, str]) -> None:
        ends = {end: self._need(attributes, end, "an edge") for end in ("source", "target")}
        self.edges.append(ends)
        self.owner = ends

    def _data(self, attributes: dict[str, str]) -> None:
        self.key = self.names.get(attributes.get("key", ""))
        self.text = []

    def characters(self, text: str) -> None:
        if self.key is not None:
            self.text.append(text)

    def end(self, name: str) -> None:
        self.depth -= 1
        local = name.rpartition(" ")[2]
        if local == "data" and self.key is not None:
            value = "".join(self.text)
            if self.owner is not None and self.key not in ("id", "source", "target"):
                self.owner[self.key] = value
            elif self.owner is None and self.key == "info":
                self.info = value
            self.key = None
        elif local in ("node", "edge"):
            self.owner = None

    def listing(self) -> Listing:
        if not self.graphs:
            raise FormatError(f"{self.where} has no graph; export it again")
        for edge in self.edges:
            for end in ("source", "target"):
                if edge[end] not in self.nodes:
                    raise FormatError(
                        f"an edge in {self.where} names the node {edge[end]!r}, which the file "
                        "does not have"
                    )
        return Listing(self.info, list(self.nodes.values()), self.edges)

    def _need(self, attributes: dict[str, str], name: str, what: str) -> str:
        value = attributes.get(name, "")
        if not value:
            raise FormatError(f"{what} in {self.where} lacks its {name!r}; export it again")
        return value
