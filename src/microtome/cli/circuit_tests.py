"""``microtome circuit test``: a written hypothesis against the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    from microtome.circuits.hypotheses.interchange import Interchange
    from microtome.circuits.hypotheses.scrubbing import Scrubbing


def test(
    model: ModelName,
    behavior: Annotated[
        str, typer.Argument(help="The name of a behavior, or a .jsonl or .csv file of pairs.")
    ],
    hypothesis: Annotated[Path, typer.Argument(help="A TOML file that maps parts to claims.")],
    n: Annotated[
        int, typer.Option(help="Items over all splits, for generated behaviors.", min=20)
    ] = 200,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    metric: Annotated[str, typer.Option(help="A metric that reads the prompt's end.")] = "loss",
    draws: Annotated[int, typer.Option(help="Times that every item is scrubbed.", min=1)] = 4,
    relabelings: Annotated[
        int, typer.Option(help="Hypotheses with exchanged labels, for the null.", min=1)
    ] = 20,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Test a hypothesis about a circuit by causal scrubbing and by interchange interventions.

    Example: microtome circuit test python-code quote-closing hypothesis.toml
    """
    from microtome.behaviors.items import SPLITS
    from microtome.circuits.hypotheses.hypothesis import load_hypothesis
    from microtome.circuits.hypotheses.interchange import swap_claims
    from microtome.circuits.hypotheses.scrubbing import scrub
    from microtome.cli.bars import Bars
    from microtome.errors import UnknownNameError, nearest

    claimed = load_hypothesis(hypothesis)
    if split not in SPLITS:
        raise UnknownNameError(f"No split {split!r}{nearest(split, SPLITS)}.")
    chosen = next(s for s in SPLITS if s == split)
    task = open_behavior(behavior, n, seed)
    opened = open_model(model, device, dtype, threads)
    examples = task.prepare(opened).split(chosen)
    with Bars() as bars:
        scrubbed = scrub(
            opened, examples, claimed, metric=metric, draws=draws, relabelings=relabelings,
            seed=seed, progress=bars,
        )  # fmt: skip
        swapped = None
        if claimed.predicts is not None:
            swapped = swap_claims(opened, examples, claimed, seed=seed, progress=bars)
    if as_json:
        print_json(
            {
                "scrubbing": scrubbed.to_dict(),
                "interchange": None if swapped is None else swapped.to_dict(),
            }
        )
        return
    _print(scrubbed, swapped)


def _print(scrubbed: Scrubbing, swapped: Interchange | None) -> None:
    best = max(scrubbed.null.tolist(), default=float("nan"))
    print(f"{scrubbed.hypothesis}: {len(scrubbed.full)} items in {scrubbed.clusters} clusters")
    rows = [
        ["recovered under the hypothesis", str(scrubbed.recovered)],
        ["recovered with the item itself", str(scrubbed.same_item)],
        [f"best of {len(scrubbed.null)} relabelings", f"{best:.3g}"],
        ["p", f"{scrubbed.p:.3g}"],
        *([f"{n}: items without another", f"{s:.0%}"] for n, s in scrubbed.alone.items()),
    ]
    print_table(["causal scrubbing", scrubbed.metric], rows, right=(1,))
    if swapped is None:
        say("No interchange: the hypothesis predicts nothing.")
        return
    table = [
        [c.claim, str(c.pairs), str(c.accuracy), f"{c.chance:.3g}", f"{c.unswapped:.3g}",
         f"{max(c.random.tolist(), default=float('nan')):.3g}", f"{c.p:.3g}"]
        for c in swapped.claims
    ]  # fmt: skip
    columns = ["interchange", "pairs", "accuracy", "chance", "unswapped", "best random", "p"]
    print_table(columns, table, right=(1, 2, 3, 4, 5, 6))
    if swapped.untested:
        say(f"Not swapped, since they carry no plain variable: {', '.join(swapped.untested)}.")


def versus(
    model: ModelName,
    a: Annotated[str, typer.Argument(help="The behavior in condition A: a name or a file.")],
    b: Annotated[str, typer.Argument(help="The behavior in condition B: a name or a file.")],
    n: Annotated[
        int, typer.Option(help="Items over all splits, for generated behaviors.", min=20)
    ] = 200,
    method: Annotated[str, typer.Option(help="The finder, of nodes or edges.")] = "attribution",
    ablation: Annotated[
        str, typer.Option(help="What ablated parts give: resample, mean or zero.")
    ] = "resample",
    top: Annotated[int, typer.Option(help="Rows of the table.", min=1)] = 20,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Show what differs between two conditions of one behavior, with its own nulls.

    Example: microtome circuit versus python-code monitored.jsonl unmonitored.jsonl
    """
    from microtome.circuits.judging.contrasts import versus as compare
    from microtome.circuits.references import ABLATIONS, check_ablation

    check_ablation(ablation)
    kind = next(k for k in ABLATIONS if k == ablation)
    tasks = [open_behavior(name, n, seed) for name in (a, b)]
    opened = open_model(model, device, dtype, threads)
    found = compare(opened, tasks[0], tasks[1], finder=method, ablation=kind, seed=seed)
    if as_json:
        print_json({**found.to_dict(), "sentence": found.sentence})
        return
    print(found.sentence)
    print(f"Shared: {len(found.shared)}; only A: {len(found.only_a)}; only B: {len(found.only_b)}")
    rows = [
        [str(r["part"]), f"{r['support_a']:.3g}", f"{r['support_b']:.3g}",
         f"{r['difference']:.3g} [{r['low']:.3g}, {r['high']:.3g}]", f"{r['p']:.2g}",
         "yes" if r["differs"] else "no", str(r["circuit"])]
        for r in found.to_frame().head(top).to_dict("records")
    ]  # fmt: skip
    columns = ["part", "A", "B", "difference", "p", "at 5 %", "circuit"]
    print_table(columns, rows, right=(1, 2, 3, 4))
