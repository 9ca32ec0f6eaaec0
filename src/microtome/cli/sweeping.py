"""``microtome sweep``: change a site cell by cell and measure the answer."""

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
    from microtome.behaviors.behavior import Behavior
    from microtome.sweeps.plans import Plan
    from microtome.sweeps.results import Sweep

STREAMS = ("resid_pre", "resid_mid", "resid_post", "attn.out", "mlp.out")
"""Sites that are swept by role where a behavior has several lengths of prompts."""

MEMORY = 512.0
"""Megabytes for the activations of a batch by default."""


def sweep(
    model: ModelName,
    behavior: Annotated[
        str | None, typer.Argument(help="The name of a behavior or a file; or give a pair.")
    ] = None,
    clean: Annotated[str | None, typer.Option(help="Clean prompt of a single pair.")] = None,
    corrupt: Annotated[str | None, typer.Option(help="Corrupt prompt of a single pair.")] = None,
    answer: Annotated[
        str | None, typer.Option(help="Right continuation of the clean prompt.")
    ] = None,
    wrong: Annotated[str | None, typer.Option(help="Wrong continuation.")] = None,
    site: Annotated[str, typer.Option(help="Site to sweep.")] = "resid_pre",
    over: Annotated[str | None, typer.Option(help="pos, role, head, neuron or all.")] = None,
    neurons: Annotated[str | None, typer.Option(help="Neurons of mlp.act, as in 3,17,40.")] = None,
    operation: Annotated[str, typer.Option(help="patch, zero or mean.")] = "patch",
    base: Annotated[
        str, typer.Option(help="The run that is changed: corrupt or clean.")
    ] = "corrupt",
    metric: Annotated[str, typer.Option(help="What is measured.")] = "logit_difference",
    without: Annotated[
        str | None, typer.Option(help="Rules of the planner to leave out, as in fast,suffix.")
    ] = None,
    memory: Annotated[float, typer.Option(help="Megabytes for the activations.")] = MEMORY,
    pairs: Annotated[
        str | None,
        typer.Option(help="Patch two parts at once instead: a0.h1,m2,... or all."),
    ] = None,
    certify: Annotated[
        int | None, typer.Option(help="Runs that are repeated the naive way.", min=1)
    ] = None,
    n: Annotated[int, typer.Option(help="Items of a generated behavior.", min=20)] = 60,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print the plan and its cost, and run nothing.")
    ] = False,
    resume: Annotated[
        Path | None, typer.Option(help="File that keeps what is done, to go on after a stop.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file for the grid.")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Change a site cell by cell and measure what happens to the answer.

    Example: microtome sweep python-code quote-closing --site attn.z
    """
    from microtome.cli.bars import Bars
    from microtome.store.atomic import write_text
    from microtome.sweeps import plan

    task = _task(behavior, clean, corrupt, answer, wrong, n, seed)
    if pairs is not None:
        from microtome.cli.pairs import print_pairs

        _only_parts(site, over, neurons, operation, without, memory, certify, explain)
        opened = open_model(model, device, dtype, threads)
        print_pairs(opened, task, pairs, base, metric, resume, out, seed, as_json)
        return
    chosen = over or ("role" if clean is None and site.split(".", 2)[-1] in STREAMS else None)
    options = {
        "over": chosen, "operation": operation, "base": base, "metric": metric,
        "neurons": _numbers(neurons), "rules": _rules(without), "memory_mb": memory,
        "seed": seed, "certify": certify,
    }  # fmt: skip
    planned = plan(open_model(model, device, dtype, threads), task, site, **options)
    if explain:
        _explain(planned, as_json)
        return
    with Bars() as bars:
        found = planned.execute(bars, resume=resume)
    if out is not None:
        write_text(out, found.to_frame().to_csv(index=False))
    if as_json:
        cells = found.to_frame().to_dict("records")
        print_json({"cells": cells, "certificate": dict(found.certificate)})
        return
    _print(planned, found)


def _only_parts(
    site: str,
    over: str | None,
    neurons: str | None,
    operation: str,
    without: str | None,
    memory: float,
    certify: int | None,
    explain: bool,
) -> None:
    """Refuse options that pairs of parts do not take."""
    from microtome.errors import UsageError

    given = {
        "--site": site != "resid_pre", "--over": over, "--neurons": neurons,
        "--operation": operation != "patch", "--without": without, "--memory": memory != MEMORY,
        "--certify": certify, "--explain": explain,
    }  # fmt: skip
    wrong = [option for option, value in given.items() if value not in (None, False)]
    if wrong:
        raise UsageError(f"--pairs patches whole heads and MLPs; leave out {', '.join(wrong)}.")


def _explain(planned: Plan, as_json: bool) -> None:
    if as_json:
        rules = {"rules": list(planned.rules), "declined": dict(planned.declined)}
        print_json({**vars(planned.cost()), **rules})
    else:
        print(planned.explain())


def _print(planned: Plan, found: Sweep) -> None:
    effect = found.effect
    columns = [str(c) for c in effect[effect.dims[1]].to_numpy()]
    rows = [
        [str(int(layer)), *(f"{v:.3f}" for v in row)]
        for layer, row in zip(effect["layer"].to_numpy(), effect.to_numpy(), strict=True)
    ]
    print_table(
        ["layer", *columns],
        rows[::-1],
        title=f"share of the way from {planned.base} to the other run",
        right=tuple(range(1, len(columns) + 1)),
    )
    c = found.certificate
    say(
        f"Certified: largest difference {c['difference']:.2g} over {c['sample']} runs, "
        f"tolerance {c['tolerance']:.2g}, rules {', '.join(c['rules']) or 'none'}."
    )


def _numbers(text: str | None) -> tuple[int, ...] | None:
    from microtome.errors import UsageError

    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--neurons {text!r}: expected numbers, as in 3,17,40.") from None


def _rules(without: str | None) -> tuple[str, ...] | None:
    from microtome.errors import UsageError, nearest
    from microtome.sweeps import RULES

    if without is None:
        return None
    left_out = [part.strip() for part in without.split(",")]
    for rule in left_out:
        if rule not in RULES:
            raise UsageError(f"--without: no rule {rule!r}{nearest(rule, RULES)}.")
    return tuple(rule for rule in RULES if rule not in left_out)


def _task(
    behavior: str | None,
    clean: str | None,
    corrupt: str | None,
    answer: str | None,
    wrong: str | None,
    n: int,
    seed: int,
) -> Behavior:
    from microtome.behaviors.pairs import pair
    from microtome.errors import UsageError

    given = {"--clean": clean, "--corrupt": corrupt, "--answer": answer, "--wrong": wrong}
    if behavior is not None:
        if any(v is not None for v in given.values()):
            raise UsageError("Give a behavior or a pair of prompts, not both.")
        return open_behavior(behavior, n, seed)
    missing = [k for k, v in given.items() if v is None]
    if missing:
        raise UsageError(f"Give a behavior, or a pair: {', '.join(missing)} missing.")
    return pair(str(clean), str(corrupt), answer=str(answer), wrong=str(wrong))
