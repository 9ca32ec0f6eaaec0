"""``microtome circuit benchmark``: the finders, scored by circuits that are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microtome.cli.options import (
    Home,
    Json,
    Seed,
    Threads,
    print_json,
    print_table,
    say,
    use_home,
    use_threads,
)

if TYPE_CHECKING:
    from microtome.circuits.truth.benchmarking import FinderBenchmark
    from microtome.core.intervals import Interval

ABREAST = 4
"""Finders side by side in the table of programs."""

_TRUTHS = (
    ("functional", "resample"),
    ("functional", "zero"),
    ("structural", "resample"),
    ("structural", "zero"),
)


def benchmark(
    program: Annotated[
        list[str] | None,
        typer.Option(help="A program; may be given several times. All by default."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A finder; may be given several times. All by default."),
    ] = None,
    redundant: Annotated[
        bool, typer.Option(help="Also plant programs in several redundant copies.")
    ] = True,
    n: Annotated[int, typer.Option(help="Clean/corrupt pairs that a finder sees.", min=20)] = 40,
    plantings: Annotated[
        int, typer.Option(help="How often each program is planted, with seeds of its own.", min=1)
    ] = 1,
    draws: Annotated[int, typer.Option(help="Random rankings, as a control.", min=1)] = 100,
    out: Annotated[Path | None, typer.Option(help="File for the result (.json).")] = None,
    seed: Seed = 0,
    threads: Threads = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Score every finder on compiled programs whose circuit is known, hidden among decoys.

    Example: microtome circuit benchmark --program induction --method eap --method mask-ig
    """
    from microtome.circuits.truth import benchmark as run
    from microtome.cli.bars import Bars
    from microtome.cli.places import check_folder
    from microtome.store.runs import home as home_folder

    use_home(home)
    place = out or home_folder() / "runs" / f"circuit-benchmark-{seed}" / "benchmark.json"
    check_folder(place.parent)
    use_threads(threads)
    with Bars() as bars:
        found = run(
            programs=program or None,
            methods=method or None,
            redundant=redundant,
            n=n,
            draws=draws,
            seeds=range(seed, seed + plantings),
            progress=bars,
        )
    found.save(place)
    if as_json:
        print_json({**_summaries(found), "rows": found.rows, "file": str(place)})
        return
    _print(found)
    print(f"Saved: {place}")


def _summaries(found: FinderBenchmark) -> dict[str, object]:
    """Return what the tables show, as plain values."""
    summaries = {
        f"{truth}, {ablation}": found.summary(
            truth=truth,  # type: ignore[arg-type]
            ablation=ablation,
        ).to_dict("records")
        for truth, ablation in _TRUTHS
    }
    return {
        "summaries": summaries,
        "random_auc": {
            "mean": float(found.draws.mean()),
            "low": float(found.draws.min()),
            "high": float(found.draws.max()),
            "draws": len(found.draws),
        },
        "n": found.n,
        "seconds": found.seconds,
    }


def _shown(interval: Interval) -> str:
    """Return a mean with its interval, without one where there is a single program."""
    if not math.isfinite(interval.high):
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} [{interval.low:.2f}, {interval.high:.2f}]"


def _print(found: FinderBenchmark) -> None:
    main = found.summary()
    print_table(
        ["finder", "AUC", "average precision", "best F1", "last true", "seconds"],
        [
            [
                f"{r['method']} ({r['level']}s)",
                _shown(r["auc"]),
                _shown(r["average_precision"]),
                _shown(r["best_f1"]),
                f"{r['last_rank']:.0f} of {r['parts']:.0f}, {r['true']:.0f} true",
                f"{r['seconds']:.1f}",
            ]
            for r in main.to_dict("records")
        ],
        title="Functional truth under resampling, programs without copies",
        right=(5,),
    )
    columns = [found.summary(truth=t, ablation=a) for t, a in _TRUTHS]  # type: ignore[arg-type]
    print_table(
        ["finder", *(f"{t}, {a}" for t, a in _TRUTHS)],
        [
            [
                str(main["method"][i]),
                *(
                    f"{c['auc'][i].value:.2f} / {c['average_precision'][i].value:.2f}"
                    for c in columns
                ),
            ]
            for i in range(len(main))
        ],
        title="AUC / average precision against each truth",
    )
    whole = found.by_program()
    # a terminal is not wide enough for all finders side by side
    for start in range(0, whole.shape[1], ABREAST):
        table = whole.iloc[:, start : start + ABREAST]
        print_table(
            ["program", *table.columns],
            [
                [str(name), *(f"{v:.2f}" for v in row)]
                for name, row in zip(table.index, table.to_numpy(), strict=True)
            ],
            title="Average precision by program, functional truth under resampling",
            right=tuple(range(1, 1 + table.shape[1])),
        )
    say(
        f"n = {found.n} pairs for each program; random rankings have an AUC of "
        f"{found.draws.mean():.3f} over {len(found.draws)} draws; {found.seconds:.0f} s in all. "
        "A program with 'vote' or 'backup' has redundant copies: no single edge carries it."
    )
