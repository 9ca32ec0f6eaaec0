"""``microtome circuit graph``: the attribution graph of a prompt over transcoders."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microtome.cli.options import (
    Device,
    Dtype,
    Json,
    ModelName,
    Threads,
    open_model,
    print_json,
    print_table,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microtome.circuits import LatentGraph
    from microtome.sae import SAE
    from microtome.tracing.model import Model

NAME = "transcoders"
"""The name that coders are attached under."""

SHOWN = 12
"""Nodes printed at most."""


def graph(
    model: ModelName,
    prompt: Annotated[str, typer.Argument(help="The prompt.", show_default=False)],
    coders: Annotated[
        list[Path],
        typer.Option(
            "--coder",
            help="A transcoder of an MLP, or a cross-layer one: its folder, or a folder of such "
            "folders. Give it again for each block.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="An .html page or an .svg picture.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="A file for the viewers of circuit-tracer and Neuronpedia (JSON)."),
    ] = None,
    slug: Annotated[str, typer.Option(help="Name of the graph in that file.")] = "graph",
    labels: Annotated[
        Path | None, typer.Option(help='What latents stand for: JSON, {"block/latent": text}.')
    ] = None,
    nodes: Annotated[float, typer.Option(help="Share of influence that kept nodes have.")] = 0.8,
    edges: Annotated[float, typer.Option(help="The same for edges; 1 and 1 keep all.")] = 0.98,
    probability: Annotated[
        float, typer.Option(help="Explain the fewest tokens that reach this probability.")
    ] = 0.95,
    max_logits: Annotated[int, typer.Option(help="How many of them at most.")] = 10,
    max_latents: Annotated[int, typer.Option(help="Latents followed back at most.")] = 7500,
    max_edges: Annotated[int, typer.Option(help="Edges drawn at most.", min=1)] = 60,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Follow a prompt's next token back through the latents of transcoders.

    Example: microtome circuit graph python-code "x = 'abc" --coder transcoders --out graph.html
    """
    from microtome.circuits import exchange, latent_graph
    from microtome.cli.bars import Bars
    from microtome.cli.places import check_file

    for path in (out, export):
        if path is not None:
            check_file(path)
    kind = _kind(out)
    known = {} if labels is None else _labels(labels)
    opened = _attached(open_model(model, device, dtype, threads), _coders(coders))
    with Bars() as bars:
        whole = latent_graph(
            opened, prompt, name=NAME, probability=probability, max_logits=max_logits,
            max_latents=max_latents, labels=known, progress=bars,
        )  # fmt: skip
    found = whole.prune(nodes=nodes, edges=edges)
    if out is not None:
        _draw(found, out, kind, max_edges)
    if export is not None:
        document = exchange.latents_as_graph(found, slug=slug)
        exchange.write_attribution_graph(export, document)
        say(f"Written: {export}")
    if as_json:
        print_json(_facts(found))
        return
    _print(whole, found)


def _kind(out: Path | None) -> str:
    from microtome.errors import UsageError

    if out is not None and out.suffix.lower() not in (".html", ".svg"):
        raise UsageError(f"--out is {str(out)!r}; expected a file that ends in .html or .svg")
    return "" if out is None else out.suffix.lower()


def _labels(path: Path) -> dict[str, str]:
    """Read what latents stand for; a name that no latent can have is a mistake."""
    import re

    from microtome.circuits.exchange.files import read_json
    from microtome.errors import FormatError

    found: dict[str, str] = {}
    for name, text in read_json(path).items():
        if not re.fullmatch(r"\d+/\d+", name) or not isinstance(text, str):
            raise FormatError(
                f"{path} says {text!r} of {name!r}; expected a text by block and latent, such as "
                '{"2/17": "an open quote"}'
            )
        found[name] = text
    return found


def _coders(given: Sequence[Path]) -> list[SAE]:
    """Read coders from folders, or from the folders in them."""
    from microtome.errors import FormatError
    from microtome.sae import load

    found: list[SAE] = []
    for place in given:
        try:
            found.append(load(place))
        except FormatError:
            inside = sorted(p for p in place.iterdir() if p.is_dir()) if place.is_dir() else []
            if not inside:
                raise
            found += [load(path) for path in inside]
    return found


def _attached(model: Model, coders: Sequence[SAE]) -> Model:
    for coder in coders:
        model = model.attach(NAME, coder.to(model.device))
    return model


def _draw(found: LatentGraph, out: Path, kind: str, max_edges: int) -> None:
    from microtome.circuits.latent_graphs.pages import page_of
    from microtome.store.atomic import write_text

    if kind == ".svg":
        write_text(out, found.diagram(max_edges=max_edges).to_svg())
    else:
        command = shlex.join(["microtome", *sys.argv[1:]])
        write_text(out, page_of(found, max_edges=max_edges, command=command).to_html())
    say(f"Written: {out}")


def _facts(found: LatentGraph) -> dict[str, object]:
    table = found.nodes_frame()
    return {
        "prompt": found.prompt,
        "tokens": list(found.tokens),
        "replacement": found.replacement,
        "completeness": found.completeness,
        "unsummed": found.unsummed,
        "active": found.active,
        "followed": found.followed,
        "nodes": table.to_dict("records"),
        "edges": found.to_frame().to_dict("records"),
    }


def _print(whole: LatentGraph, found: LatentGraph) -> None:
    table = found.nodes_frame()
    logits = table[table["kind"] == "logit"].sort_values("probability", ascending=False)
    names = [found.logit_text(found.node(name)) for name in logits["node"]]
    pairs = zip(names, logits["probability"], strict=True)
    print("next: " + ", ".join(f"{name!r} {chance:.3f}" for name, chance in pairs))
    print(
        f"replacement {found.replacement:.3f}, completeness {found.completeness:.3f}; "
        f"{found.active} latents active, {found.followed} followed; "
        f"{len(found)} of {len(whole)} nodes kept"
    )
    rest = table[table["kind"] != "logit"].head(SHOWN)
    rows = [
        [r.node, f"{r.position} {r.token!r}", f"{r.influence:.3f}", r.label]
        for r in rest.itertuples()
    ]
    print_table(["node", "position", "influence", "stands for"], rows)
