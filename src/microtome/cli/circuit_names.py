"""``microtome circuit name``: what the parts of a model are, by detectors with nulls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli.options import (
    Device,
    Dtype,
    Json,
    ModelName,
    Seed,
    Threads,
    open_behavior,
    open_model,
    print_json,
    print_table,
    say,
)

if TYPE_CHECKING:
    from microtome.circuits import Circuit, PartNames

SHOWN = 8
"""Rows of one detector that the table shows unless all are asked for."""


def name(
    model: ModelName,
    behavior: Annotated[
        str | None,
        typer.Option(help="A behavior or a file, for what heads do to it."),
    ] = None,
    circuit: Annotated[
        Path | None, typer.Option(help="A circuit (.json), for its motifs and redundant pairs.")
    ] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option(help="File or folder of text for the corpus; may be given several times."),
    ] = None,
    detector: Annotated[
        list[str] | None, typer.Option(help="A detector; may be given several times.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Show every named part, not the first ones of each name.")
    ] = False,
    twins: Annotated[int, typer.Option(help="Twins that stand as a null.", min=1)] = 4,
    n: Annotated[int, typer.Option(help="Items of a generated behavior.", min=20)] = 200,
    out: Annotated[Path | None, typer.Option(help="File for the whole result (.json).")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Name heads, neurons and pairs: each score beside its nulls, and what was not run.

    Example: microtome circuit name python-code --behavior quote-closing --texts FOLDER
    """
    from microtome.circuits import Circuit, name_parts
    from microtome.cli.bars import Bars
    from microtome.cli.places import check_file
    from microtome.store.texts import read_texts

    if out is not None:
        check_file(out)
    given: Circuit | None = Circuit.load(circuit) if circuit is not None else None
    task = open_behavior(behavior, n, seed) if behavior is not None else None
    corpus = read_texts(texts) if texts else None
    opened = open_model(model, device, dtype, threads)
    with Bars() as bars:
        found = name_parts(
            opened, task, corpus=corpus, circuit=given, detectors=detector, twins=twins, seed=seed,
            progress=bars,
        )  # fmt: skip
    saved = None if out is None else str(found.save(out))
    if as_json:
        print_json(_facts(found, saved))
        return
    _print(found, everything)
    if saved is not None:
        print(f"Saved: {saved}")


def _facts(found: PartNames, saved: str | None) -> dict[str, Any]:
    rows = found.table.astype(object).where(found.table.notna(), None)
    return {
        "model": found.model,
        "names": rows[rows["labelled"].astype(bool)].to_dict("records"),
        "tests": rows.to_dict("records"),
        "not_run": dict(found.not_run),
        "left_out": {key: list(why) for key, why in found.left_out.items()},
        "twins": found.twins,
        "rate": found.rate,
        "note": found.note,
        "seconds": dict(found.seconds),
        "file": saved,
    }


def _print(found: PartNames, everything: bool) -> None:
    rows = []
    for _, some in found.labelled.groupby("name", sort=False):
        ordered = some.sort_values("score", ascending=False, kind="stable")
        shown = ordered if everything else ordered.head(SHOWN)
        for row in shown.to_dict("records"):
            rows.append(_cells(row))
        if len(shown) < len(ordered):
            rows.append([f"({len(ordered) - len(shown)} more)", *[""] * 7])
    print_table(
        ["part", "name", "score", "customary", "null", "z", "q", "detail"],
        rows,
        title=f"Names of the parts of {found.model}",
        right=(2, 3, 4, 5, 6),
    )
    # the names stand in the table; what is left are the near misses and what was not run
    for line in found.summary().splitlines():
        if "stands out" in line or line.startswith("not run"):
            say(line)
    say(f"{len(found.table)} tests, {found.twins} twins. {found.note}")


def _cells(row: dict[str, Any]) -> list[str]:
    threshold = row["threshold"]
    return [
        row["part"],
        row["name"],
        f"{row['score']:.3f}",
        "" if threshold != threshold else f"{threshold:g}",
        f"{row['null_mean']:.3f} +- {row['null_sd']:.3f}",
        f"{row['z']:.1f}",
        f"{row['q']:.1e}",
        row["detail"],
    ]
