"""``microtome circuit convert``, ``show`` and ``diff``: circuits as files and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microtome.cli.options import Json, open_model, print_json, print_table, say

if TYPE_CHECKING:
    from microtome.circuits.exchange.scored import ScoredCircuit
    from microtome.views import CircuitDiagram, CircuitSlider

CircuitFile = Annotated[
    Path, typer.Argument(help="A circuit: of microtome, MIB, circuit-tracer, GraphML or DOT.")
]
ScoresFile = Annotated[
    Path | None, typer.Option("--scores", help="Scores of its edges, a file of microtome.")
]
MaxEdges = Annotated[int, typer.Option(help="Edges drawn at most, the strongest.", min=1)]


def convert(
    source: CircuitFile,
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    to: Annotated[
        str | None,
        typer.Option(
            help="mib, circuit-tracer, graphml, dot or microtome; by default by the file's ending."
        ),
    ] = None,
    scores: ScoresFile = None,
    d_model: Annotated[
        int | None, typer.Option(help="Width of the model, for mib; or give --model.", min=1)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model, to check a mib file and take its width.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a circuit in another format.

    Example: microtome circuit convert circuit.json mib.json --to mib --d-model 768
    """
    from microtome.circuits.exchange.reading import ENDINGS, write_circuit

    to = to or ENDINGS.get(out.suffix.lower(), "microtome")
    found = _read(source, scores, model)
    if to == "mib" and d_model is None and model is not None:
        d_model = _width(model)
    place = write_circuit(out, found, to=to, d_model=d_model)
    notes = _notes(found)
    if as_json:
        print_json(
            {
                "file": str(place),
                "format": to,
                "parts": len(found.circuit),
                "scored": len(found.scores),
                "absent": len(found.absent),
                "partial": len(found.partial),
            }
        )
        return
    print(f"{len(found.circuit)} {found.circuit.level}s written to {place} ({to}).")
    for note in notes:
        say(note)


def show(
    source: CircuitFile,
    out: Annotated[Path, typer.Option(help="An .html or .svg file.")] = Path("circuit.html"),
    scores: ScoresFile = None,
    curve: Annotated[
        Path | None,
        typer.Option(help="Its faithfulness by size: the slider moves along all scored edges."),
    ] = None,
    max_edges: MaxEdges = 200,
    collapse: Annotated[
        Path | None,
        typer.Option(help="A JSON object, node to class: the nodes of one class become one."),
    ] = None,
    by_place: Annotated[
        bool,
        typer.Option("--by-place", help="Draw a part once for each role or position of its edges."),
    ] = False,
) -> None:
    """Draw a circuit; with scores, the HTML file has a slider over its size.

    Example: microtome circuit show circuit.json --scores scores.json --out circuit.html
    """
    from microtome.circuits.drawing.diagrams import diagram
    from microtome.circuits.exchange.files import read_json
    from microtome.store.atomic import write_text

    kind = _picture_kind(out)
    if (foreign := _foreign(source, max_edges)) is not None:
        document = foreign.to_svg() if kind == ".svg" else foreign.to_document(source.name)
        write_text(out, document)
        print(f"{len(foreign.drawn)} edges of an attribution graph drawn in {out}.")
        return
    found = _read(source, scores, None)
    classes = {k: str(v) for k, v in read_json(collapse).items()} if collapse else None
    drawing = diagram(
        found.circuit, found.scores, classes=classes, max_edges=max_edges, by_place=by_place
    )
    if classes:
        drawing = drawing.collapsed()
    if kind == ".svg":
        write_text(out, drawing.to_svg())
    else:
        moves = found.scores and not classes and not by_place
        moving = _slider(found, curve, max_edges) if moves else None
        write_text(out, (moving or drawing).to_document(f"Circuit: {source.name}"))
    print(f"{len(found.circuit)} {found.circuit.level}s drawn in {out}.")


def diff(
    first: CircuitFile,
    second: CircuitFile,
    out: Annotated[Path | None, typer.Option(help="An .html or .svg file with both.")] = None,
    max_edges: MaxEdges = 200,
    as_json: Json = False,
) -> None:
    """Compare two circuits of one model: what both have, what only one has, overlap.

    Example: microtome circuit diff eap.json exact.json --out diff.html
    """
    from microtome.circuits.drawing.differences import difference
    from microtome.store.atomic import write_text
    from microtome.views.figure import Figure
    from microtome.views.page import Page, Section
    from microtome.views.table import cell_text

    kind = _picture_kind(out) if out else ""
    a, b = _read(first, None, None), _read(second, None, None)
    names = (first.stem, second.stem) if first.stem != second.stem else ("A", "B")
    found = difference(a.circuit, b.circuit, scores=(a.scores, b.scores), names=names)
    table = found.table()
    if out is not None:
        drawing = found.diagram(max_edges=max_edges)
        title = f"{len(found.shared)} {a.circuit.level}s are in both circuits"
        figure = Figure(title, (drawing, table), f"{names[0]} and {names[1]} in one diagram.")
        page = Page(f"{names[0]} and {names[1]}", (Section("Difference", (figure,)),))
        write_text(out, drawing.to_svg() if kind == ".svg" else page.to_html())
    if as_json:
        print_json(
            {
                "in both": found.shared,
                **dict(zip(found.groups[1:], (found.only_first, found.only_second), strict=True)),
                "jaccard": found.jaccard,
                "recall": found.recall,
                "precision": found.precision,
                "recall at": [list(pair) for pair in found.recall_at],
            }
        )
        return
    print_table(
        list(table.columns), [[cell_text(cell) for cell in row] for row in table.rows], right=(1,)
    )
    if out is not None:
        print(f"Picture: {out}")


def _read(source: Path, scores: Path | None, model: str | None) -> ScoredCircuit:
    """Read a circuit, and scores from a file of their own."""
    from microtome.circuits.exchange.mib import read_mib
    from microtome.circuits.exchange.reading import format_of, read_circuit, read_scores
    from microtome.circuits.exchange.scored import ScoredCircuit

    if model is not None and format_of(source) == "mib":
        from microtome.circuits.graph import ComponentGraph

        opened = open_model(model, None, None, None)
        found = read_mib(source, graph=ComponentGraph.of(opened), model=opened.fingerprint)
    else:
        found = read_circuit(source)
    return ScoredCircuit(found.circuit, read_scores(scores)) if scores else found


def _foreign(source: Path, max_edges: int) -> CircuitDiagram | None:
    """Return the diagram of another program's attribution graph, None for anything else."""
    from microtome.circuits.exchange import diagram_of, format_of, read_attribution_graph

    if format_of(source) != "circuit-tracer":
        return None
    graph = read_attribution_graph(source)
    return None if "microtome" in graph.extra else diagram_of(graph, max_edges=max_edges)


def _width(model: str) -> int:
    from microtome.tracing.catalog import require_anatomy

    opened = open_model(model, None, None, None)
    return require_anatomy(opened.anatomy, "The MIB format").d_model


def _slider(found: ScoredCircuit, curve: Path | None, max_edges: int) -> CircuitSlider | None:
    """Return the picture with a slider, None where too little is scored or drawn for one."""
    from microtome.circuits.drawing.growing import nested, slider, spread_sizes
    from microtome.circuits.results import FaithfulnessCurve

    circuit = found.circuit
    along = FaithfulnessCurve.load(curve) if curve else None
    names = circuit.parts if along is None else circuit.universe
    ranking = sorted(
        (name for name in names if name in found.scores), key=lambda n: -abs(found.scores[n])
    )
    most = min(len(ranking), max_edges)
    sizes = spread_sizes(most) if along is None else along.sizes
    sizes = tuple(size for size in sizes if 1 <= size <= most)
    if len(sizes) < 2:
        return None
    circuits = nested(ranking, sizes, universe=circuit.universe, level=circuit.level)
    chosen = len(circuit) if along is not None and len(circuit) in sizes else None
    return slider(circuits, found.scores, curve=along, chosen=chosen, max_edges=max_edges)


def _notes(found: ScoredCircuit) -> list[str]:
    notes = []
    if found.absent:
        notes.append(
            f"{len(found.absent)} edges of the model are not in the file; they are not in the "
            "circuit."
        )
    if found.partial:
        notes.append(
            f"{len(found.partial)} edges into key/value groups are kept for some heads of the "
            "group only; they are in the circuit."
        )
    return notes


def _picture_kind(out: Path) -> str:
    from microtome.errors import ConfigError

    kind = out.suffix.lower()
    if kind not in (".html", ".svg"):
        raise ConfigError(f"--out {out}; expected a file that ends in .html or .svg")
    return kind
