"""``microtome circuit judge``: a finder, or a circuit of a file, by the whole protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from microtome.cli.circuit_finding import Ablation, BehaviorName
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
)


def judge(
    model: ModelName,
    behavior: BehaviorName,
    circuit: Annotated[
        Path | None, typer.Option(help="A circuit file; by default one is found on train.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="The finder, also of the nulls; by the level by default.")
    ] = None,
    level: Annotated[
        str | None, typer.Option(help="edge (the default), node, neuron, role-edge, position-edge.")
    ] = None,
    nulls: Annotated[
        int, typer.Option(help="Twins and permutations; fewer than 20 cannot pass.", min=0)
    ] = 20,
    faithfulness: Annotated[float, typer.Option(help="Asked for on validation.")] = 0.9,
    ablation: Ablation = "resample",
    gate: Annotated[bool, typer.Option(help="Whether the gate counts.")] = True,
    n: Annotated[int, typer.Option(help="Items of a generated behavior.", min=20)] = 200,
    out: Annotated[Path | None, typer.Option(help="File for the judgment (.json).")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Judge a circuit: areas of the curve, knock-outs, tests, and the verdict by fixed rules.

    Example: microtome circuit judge python-code quote-closing --method attribution
    """
    from microtome.circuits import Circuit
    from microtome.circuits import judge as judged
    from microtome.circuits.judging.levels import check_level, default_finder
    from microtome.circuits.references import check_ablation
    from microtome.cli.bars import Bars
    from microtome.cli.places import check_file

    check_ablation(ablation)
    if out is not None:
        check_file(out)
    given = None if circuit is None else Circuit.load(circuit)
    task = open_behavior(behavior, n, seed)
    opened = open_model(model, device, dtype, threads)
    with Bars() as bars:
        asked = None if level is None else check_level(level)
        if method is None:
            asked = asked or ("edge" if given is None else given.level)
            method = default_finder(opened, asked, examples=task.prepare(opened).split("train"))
        found = judged(
            opened, task, given, finder=method, level=asked, faithfulness=faithfulness,
            ablation=ablation, nulls=nulls, gate=gate, seed=seed, progress=bars,
        )  # fmt: skip
    saved = None if out is None else str(found.save(out))
    rows = found.to_frame().to_dict("records")
    verdict = found.verdict
    if as_json:
        print_json(
            {
                "parts": list(found.circuit.parts),
                "of": len(found.circuit.universe),
                "figures": rows,
                "grade": None if verdict is None else verdict.grade,
                "rules": [] if verdict is None else list(verdict.rules),
                "file": saved,
            }
        )
        return
    print_table(
        ["figure", "value", "low", "high"],
        [[str(r["quantity"]), *(_text(r[k]) for k in ("value", "low", "high"))] for r in rows],
        right=(1, 2, 3),
    )
    if verdict is None:
        print("No verdict: the circuit brings no finder's scores with which to search nulls.")
    else:
        rules = [[r["name"], r["outcome"], r["value"], r["baseline"]] for r in verdict.rules]
        print_table(["rule", "outcome", "value", "baseline"], rules)
        print(verdict.sentence)
    if saved is not None:
        print(f"Saved: {saved}")


def _text(value: object) -> str:
    return "" if value is None or value != value else f"{float(str(value)):.3g}"
