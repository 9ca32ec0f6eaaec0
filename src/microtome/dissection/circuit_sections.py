"""The report's sections on edges, names of parts, a second condition, and latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from microtome.circuits.drawing.diagrams import diagram
from microtome.circuits.judging.contrasts import Versus
from microtome.circuits.results import Circuit
from microtome.circuits.taxonomy.results import PartNames
from microtome.dissection import phrases
from microtome.dissection.latents import NamedLatents
from microtome.dissection.results import Dissection
from microtome.dissection.wiring import Wiring
from microtome.views import Figure, Section
from microtome.views.numbers import number
from microtome.views.table import Cell, Table

MakeFigure = Callable[..., Figure]

_CARRIED = {
    "resample": "what it carries in the corrupt run",
    "mean": "its mean over the train prompts of both kinds",
    "zero": "nothing",
}
"""What an ablated edge carries, in words."""

SHOWN = 60
"""Edges that are drawn."""


def described(found: Dissection, figure: MakeFigure) -> list[Section]:
    """Return the sections on edges, names, latents and a second condition, as there are any."""
    sections = []
    if found.wiring is not None:
        sections.append(edges_section(found.wiring, found.names, figure))
    if found.names is not None and found.circuit is not None:
        sections.append(names_section(found.names, found.circuit, figure))
    if found.latents is not None:
        sections.append(latents_section(found.latents, figure))
    if found.versus is not None:
        sections.append(versus_section(found.versus, figure))
    if found.notes:
        left = " ".join(f"{step}: {reason}" for step, reason in found.notes.items())
        sections.append(Section("What was left out", (left,), short="Left out"))
    return sections


def edges_section(found: Wiring, names: PartNames | None, figure: MakeFigure) -> Section:
    """The circuit of edges: its picture, what it keeps, and its verdict where it was judged."""
    circuit, evaluation = found.circuit, found.evaluation
    verdict = None if found.judgment is None else found.judgment.verdict
    drawing = diagram(
        circuit, found.scores, classes=classes(names, circuit), max_edges=SHOWN, unit="logits"
    )
    blocks: list[Any] = [
        f"{found.sentence} An edge is the part of a head's query, key or value input, of an MLP's "
        "input or of the logits that one earlier part wrote.",
        figure(
            f"{len(circuit.parts)} of {len(circuit.universe)} edges keep "
            f"{number(evaluation.faithfulness.value)} of the effect",
            drawing,
            f"Edges ranked on train by {found.scores.method}; the smallest circuit that is "
            f"faithful on validation. Every other edge carries {_CARRIED[found.ablation]}.",
            n=len(evaluation.full),
        ),
        figure(
            _kinds_title(found),
            _kinds(found),
            "On unseen templates. Complement: faithfulness of everything but the circuit. Moved: "
            "share of the way to the ablated model that ablating only the circuit moves.",
            n=len(evaluation.full),
            baseline=_baseline(found),
        ),
    ]
    if verdict is not None:
        blocks.append(
            figure(
                phrases.controls_title([r["outcome"] for r in verdict.rules]),
                _rules(verdict.rules),
                "The same rules as for the circuit of heads and MLPs, with the nulls searched "
                "again by the finder of edges.",
                n=len(evaluation.full),
                baseline="in the table",
            )
        )
    grade = f": {verdict.grade}" if verdict is not None else ""
    return Section(f"Edge by edge{grade}", blocks, short="Edges")


def names_section(found: PartNames, circuit: Circuit, figure: MakeFigure) -> Section:
    """What the parts of the circuit do, as far as a detector's score beats its nulls."""
    rows: list[list[Cell]] = []
    table = found.table[found.table["part"].isin(set(circuit.parts))]
    for part in circuit.parts:
        own = table[(table["part"] == part) & table["stands_out"]]
        for row in own.sort_values("z", ascending=False).to_dict("records"):
            rows.append(
                [
                    part,
                    row["name"],
                    row["score"],
                    _threshold(row["threshold"]),
                    row["z"],
                    row["q"],
                    "named" if row["labelled"] else "stands out, below the customary value",
                ]
            )
    named = sorted({str(r[0]) for r in rows if r[6] == "named"})
    title = (
        f"{', '.join(named)} have a name" if named else "No part of the circuit earns a name"
    ) + f", of {len(circuit.parts)} parts"
    heads = ("part", "name", "score", "customary", "z", "q", "outcome")
    blocks: list[Any] = [
        figure(
            title,
            Table(heads, rows),
            f"{len(found.table)} tests over all parts of the model, each against its own "
            f"shuffles, the other parts and {found.twins} twins. {found.note}",
            n=len(table),
            clusters=None,
            baseline="the hardest null of each test",
            interval="z and the false-discovery rate q instead",
        )
    ]
    if found.not_run:
        reasons = "; ".join(f"{name} ({why})" for name, why in found.not_run.items())
        blocks.append(f"Not run: {reasons}.")
    return Section("What the parts do elsewhere", blocks, short="Names")


def latents_section(found: NamedLatents, figure: MakeFigure) -> Section:
    """The latents that carry the behavior: exact effects, the circuit's share, explanations."""
    columns = {
        "latent": "latent", "effect": "effect", "interval": "95 %", "kept": "by the circuit",
        "active": "active", "simulation": "simulation", "when": "active when",
    }  # fmt: skip
    rows: list[list[Cell]] = []
    for row in found.table.to_dict("records"):
        row["interval"] = f"{number(row['low'])} to {number(row['high'])}"
        # a name, not a quantity
        row["latent"] = str(row["latent"])
        rows.append([_cell(row[name]) for name in columns])
    where = "a text given" if found.own_text else "the train prompts, which differ in little else"
    together = found.together
    return Section(
        f"What latents of {found.site} carry it",
        (
            figure(
                found.sentence.removesuffix("."),
                Table(tuple(columns.values()), rows),
                "Ranked on train by attribution. Effect: share of the way to the corrupt run when "
                "the latent alone is patched, exact, on unseen templates. By the circuit: share of "
                "the latent's change that the circuit brings about with all other heads and MLPs "
                f"patched. Explanations: rules found on half of {found.tokens:,} tokens of "
                f"{where}; simulation is the correlation on the other half, 0 is chance.",
                n=len(together.full),
                baseline="random sets of other latents, in the title",
            ),
        ),
        short="Latents",
    )


def versus_section(found: Versus, figure: MakeFigure) -> Section:
    """What differs between two conditions of the behavior."""
    frame = found.to_frame().head(20)
    rows: list[list[Cell]] = [
        [_cell(value) for value in row] for row in frame.itertuples(index=False)
    ]
    return Section(
        f"What differs between {found.a} and {found.b}",
        (
            figure(
                found.sentence,
                Table(tuple(map(str, frame.columns)), rows),
                "Support of each part in both conditions on train; the null exchanges the labels "
                "of the conditions within clusters.",
                n=found.clusters,
                baseline="exchanged labels",
            ),
        ),
        short="Versus",
    )


def classes(names: PartNames | None, circuit: Circuit) -> Mapping[str, str]:
    """Return the strongest name of each part that has one, for the rings of a diagram."""
    if names is None:
        return {}
    found = names.labelled.sort_values("z", ascending=False)
    return dict(zip(found["part"][::-1], found["name"][::-1], strict=True))


def _kinds_title(found: Wiring) -> str:
    parts = (f"{kind} {number(e.faithfulness.value)}" for kind, e in found.kinds.items())
    return f"Faithfulness by what ablated edges carry: {', '.join(parts)}"


def _kinds(found: Wiring) -> Table:
    rows: list[list[Cell]] = [
        [kind, *(str(getattr(e, name)) for name in _FIGURES)] for kind, e in found.kinds.items()
    ]
    return Table(("ablation", *_FIGURES), rows)


_FIGURES = ("faithfulness", "complement", "moved", "accuracy")


def _baseline(found: Wiring) -> str:
    judged = found.judgment
    if judged is None:
        return "1 for the whole model, 0 with every edge ablated"
    worst = max(judged.random.tolist(), default=math.nan)
    text = f"best of {len(judged.random)} random circuits {number(worst)}"
    areas = None if judged.curve is None else judged.curve.areas
    if areas is None:
        return text
    return f"{text}; CPR {areas.cpr}, CMD {areas.cmd}, log-CMD {areas.log_cmd}"


def _rules(rules: Any) -> Table:
    heads = ("rule", "outcome", "found", "compared with")
    rows: list[list[Cell]] = [
        [r["name"], r["outcome"], r["value"], r["baseline"] or ""] for r in rules
    ]
    return Table(heads, rows)


def _threshold(value: float) -> Cell:
    return "" if math.isnan(value) else value


def _cell(value: Any) -> Cell:
    return value if isinstance(value, str | int | float) else str(value)
