"""DOT text (the language of Graphviz): written for any program, read back as microtome wrote it."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, unquote

from microtome.circuits.exchange.files import LIMIT_BYTES, read_text
from microtome.circuits.exchange.listing import Listing, listing_of, scored_of
from microtome.circuits.exchange.scored import ScoredCircuit
from microtome.errors import DataError, FormatError
from microtome.store.atomic import write_text

_SHAPES = {"head": "circle", "mlp": "box", "kv group": "circle"}
_RISES, _FALLS = "#D55E00", "#0072B2"
_PAIR = r'([a-z_]+)="([^"]*)"'
_ATTRIBUTES = rf"\[({_PAIR}(?:, {_PAIR})*)\];"
_NODE = re.compile(rf'  "([^"]+)" {_ATTRIBUTES}')
_EDGE = re.compile(rf'  "([^"]+)" -> "([^"]+)" {_ATTRIBUTES}')
_INFO = re.compile(r'  graph \[comment="([^"]*)"\];')
_FIXED = ("digraph circuit {", "  rankdir=BT;", "}", "")


def dot_text(scored: ScoredCircuit) -> str:
    """Return a circuit as DOT text, layers upward; parts outside it are there but not drawn.

    Raises:
        DataError: If a name holds a quote, a backslash or a line end.
    """
    listing = listing_of(scored)
    lines = ["digraph circuit {", "  rankdir=BT;"]
    lines.append(f'  graph [comment="{quote(listing.info, safe=" :,[]{}")}"];')
    drawn = {e[end] for e in listing.edges if e["kept"] == "true" for end in ("source", "target")}
    for node in listing.nodes:
        look = {"shape": _SHAPES.get(node["kind"], "plaintext")}
        seen = node.get("kept") == "true" if "kept" in node else node["id"] in drawn
        rest = {name: value for name, value in node.items() if name != "id"}
        lines.append(f"  {_name(node['id'])} {_list(rest | look | _hidden(seen))};")
    weights = [abs(float(e["score"])) for e in listing.edges if "score" in e]
    largest = max(weights, default=0.0) or 1.0
    for edge in listing.edges:
        rest = {name: value for name, value in edge.items() if name not in ("source", "target")}
        look = _look(float(edge.get("score", "0")) / largest, edge.get("port", ""))
        look |= _hidden(edge["kept"] == "true")
        ends = f"{_name(edge['source'])} -> {_name(edge['target'])}"
        lines.append(f"  {ends} {_list(rest | look)};")
    return "\n".join([*lines, "}", ""])


def write_dot(path: str | Path, scored: ScoredCircuit) -> Path:
    """Write a circuit as DOT text.

    Raises:
        DataError: If a name holds a quote, a backslash or a line end.
        OutputError: If the file cannot be written.
    """
    return write_text(path, dot_text(scored))


def read_dot(path: str | Path, *, limit_bytes: int = LIMIT_BYTES) -> ScoredCircuit:
    """Read the DOT text that ``write_dot`` wrote; other DOT is refused.

    Raises:
        FormatError: The file is missing, too large, truncated or of another form; the message
            names the line.
    """
    lines = read_text(path, limit_bytes=limit_bytes).split("\n")
    if lines[0] != _FIXED[0] or lines[-2:] != ["}", ""]:
        raise FormatError(f"{path} is no DOT text of microtome, or is truncated; export it again")
    info, nodes, edges = "", [], []
    for number, line in enumerate(lines, start=1):
        if line in _FIXED:
            continue
        if match := _EDGE.fullmatch(line):
            edges.append({"source": match[1], "target": match[2], **dict(_pairs(match[3]))})
        elif match := _NODE.fullmatch(line):
            nodes.append({"id": match[1], **dict(_pairs(match[2]))})
        elif match := _INFO.fullmatch(line):
            info = unquote(match[1])
        else:
            raise FormatError(
                f"{path}, line {number}: {line[:60]!r} is not what microtome writes; it reads back "
                "only its own DOT text. Use GraphML for graphs of other programs"
            )
    return scored_of(Listing(info, nodes, edges), where=str(path))


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(found[1], found[2]) for found in re.finditer(_PAIR, text)]


def _name(name: str) -> str:
    if set('"\\\n\r') & set(name):
        raise DataError(
            f"the part {name!r} holds a quote, a backslash or a line end, which DOT text would "
            "mistake; rename it, or write GraphML"
        )
    return f'"{name}"'


def _list(values: dict[str, str]) -> str:
    return "[" + ", ".join(f'{name}="{value}"' for name, value in values.items()) + "]"


def _look(share: float, port: str) -> dict[str, str]:
    look = {"penwidth": f"{0.6 + 3.4 * abs(share):.2f}"}
    if share:
        look["color"] = _RISES if share > 0 else _FALLS
        look["style"] = "solid" if share > 0 else "dashed"
    return look | ({"headlabel": port} if port else {})


def _hidden(seen: bool) -> dict[str, str]:
    return {} if seen else {"style": "invis"}
