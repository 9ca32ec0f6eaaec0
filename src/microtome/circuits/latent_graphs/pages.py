"""An attribution graph as one self-contained page: scores, picture, strongest nodes and edges."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from microtome.circuits.latent_graphs.results import KINDS
from microtome.views.figure import Figure
from microtome.views.page import Page, Section
from microtome.views.table import Cell, Table
from microtome.views.tokens import TokenRow, TokenStrip

if TYPE_CHECKING:
    from microtome.circuits.latent_graphs.results import LatentGraph

READING = (
    "Blocks go upward, positions to the right. A line is a direct effect with attention patterns "
    "and norms held at their values in this pass; its width is the share of the logits that passes "
    "through it, its color the sign of the effect. "
    "Squares are errors: what the transcoders leave over. The graph says what moved along the "
    "attention patterns, not why attention looks where it does."
)


def page_of(graph: LatentGraph, *, max_edges: int = 60, rows: int = 20, command: str = "") -> Page:
    """Return a page about an attribution graph.

    Args:
        graph: The graph, as a rule pruned.
        max_edges: Edges drawn at most, the strongest.
        rows: Nodes and edges listed at most.
        command: The command that makes the page again.
    """
    figure = Figure(
        title=_finding(graph),
        body=graph.diagram(max_edges=max_edges),
        caption=READING,
        n=1,
        facts=_facts(graph),
    )
    strip = TokenStrip(rows=(TokenRow(label="prompt", tokens=graph.tokens),))
    return Page(
        title=f"What leads from {graph.prompt!r} to {_likeliest(graph)}",
        dek=f"One pass of {graph.model or 'the model'}, its MLPs taken apart into the latents of "
        "transcoders.",
        kicker="attribution graph",
        sections=(
            Section("Prompt", (strip,)),
            Section("Graph", (figure,)),
            Section("Nodes by influence", (_nodes(graph, rows),), short="Nodes"),
            Section("Edges by size", (_edges(graph, rows),), short="Edges"),
        ),
        provenance=(
            ("model", graph.model),
            *((f"coder at {site}", fingerprint) for site, fingerprint in graph.transcoders.items()),
        ),
        command=command,
    )


def _likeliest(graph: LatentGraph) -> str:
    logits = np.flatnonzero(graph.of_kind("logit"))
    if not len(logits):
        return "its logits"
    return repr(graph.logit_text(int(logits[np.argmax(graph.probabilities[logits])])))


def _finding(graph: LatentGraph) -> str:
    if math.isnan(graph.replacement):
        return "Nothing that was followed leads to tokens or errors."
    return (
        f"{graph.replacement:.0%} of the influence that ends somewhere ends in tokens, the rest in "
        "errors of the transcoders."
    )


def _facts(graph: LatentGraph) -> tuple[tuple[str, str], ...]:
    kept = "all"
    if graph.pruned_nodes is not None:
        kept = f"{graph.pruned_nodes:.0%} of influence by nodes, {graph.pruned_edges:.0%} by edges"
    return (
        ("replacement", f"{graph.replacement:.3f}"),
        ("completeness", f"{graph.completeness:.3f}"),
        ("latents", f"{graph.active} active, {graph.followed} followed back"),
        ("kept", kept),
        ("sums", f"effects and bias miss values by {graph.unsummed:.1e} of the largest at most"),
    )


def _nodes(graph: LatentGraph, rows: int) -> Table:
    """Return the most influential nodes but the logits."""
    order = np.argsort(-graph.influence, kind="stable")
    table: list[tuple[Cell, ...]] = []
    for n in order[graph.influence[order] > 0][:rows].tolist():
        place = int(graph.positions[n])
        value = float(graph.activations[n])
        table.append(
            (
                graph.node_names[n],
                KINDS[graph.kinds[n]],
                f"{place} {graph.tokens[place]!r}",
                float(graph.influence[n]),
                None if math.isnan(value) else value,
                graph.label(n),
            )
        )
    columns = ("node", "kind", "position", "influence", "activation", "stands for")
    return Table(columns, table, caption="Share of the logits that passes through each node.")


def _edges(graph: LatentGraph, rows: int) -> Table:
    found = graph.to_frame().head(rows)
    table = [
        (str(source), str(target), float(effect))
        for source, target, effect in found.itertuples(index=False)
    ]
    return Table(
        ("from", "to", "effect"), table, caption="Direct effects on values, largest first."
    )
