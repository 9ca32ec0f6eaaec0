"""``microtome trace``, ``lens``, ``sweep`` and ``attribute``: looking into one model."""

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
    from microtome.behaviors.behavior import Behavior

Prompt = Annotated[str, typer.Argument(help="The prompt.", show_default=False)]


def trace(
    model: ModelName,
    prompt: Prompt,
    capture: Annotated[
        list[str] | None, typer.Option(help="A site to capture; may be given several times.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the captured values (.safetensors).")
    ] = None,
    top: Annotated[int, typer.Option(help="How many next tokens to show.", min=1)] = 10,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Run a prompt: show the likeliest next tokens, and save captured values.

    Example: microtome trace python-code "x = 'a" --capture blocks.1.attn.z --out trace.safetensors
    """
    from microtome.cli.dissection import check_folder
    from microtome.errors import UsageError

    if capture and out is None:
        raise UsageError("--capture needs --out FILE.safetensors for the captured values.")
    if out is not None:
        check_folder(out.parent)
    opened = open_model(model, device, dtype, threads)
    found = opened.trace(prompt, capture=capture or ())
    probabilities = found.last().float().softmax(-1)[0]
    best = probabilities.topk(min(top, probabilities.numel()))
    rows = [
        {"token": text, "id": int(i), "probability": float(p)}
        for text, i, p in zip(opened.tokens(best.indices), best.indices, best.values, strict=True)
    ]
    saved = None if out is None else str(found.save(out))
    shapes = {site: list(found[site].shape) for site in found.sites}
    if as_json:
        print_json(
            {
                "tokens": opened.tokens(found.tokens[0]),
                "next": rows,
                "captured": shapes,
                "file": saved,
            }
        )
        return
    print_table(
        ["token", "id", "probability"],
        [[repr(r["token"]), str(r["id"]), f"{r['probability']:.4f}"] for r in rows],
        right=(1, 2),
    )
    for site, shape in shapes.items():
        print(f"{site}: {'x'.join(str(n) for n in shape)}")
    if saved is not None:
        print(f"Saved: {saved}")


def lens(
    model: ModelName,
    prompt: Prompt,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Show the logit lens: what each layer would predict at each position.

    Example: microtome lens python-code "def f(self, x=None, y"
    """
    from microtome.attribution import logit_lens

    found = logit_lens(open_model(model, device, dtype, threads), prompt)
    if as_json:
        print_json(found.to_frame().to_dict("records"))
        return
    shown = range(max(0, len(found.tokens) - 6), len(found.tokens))
    rows = [
        [
            layer,
            *(
                f"{str(found.top_tokens[i, p])!r} {found.top_probabilities[i, p]:.2f}"
                for p in shown
            ),
        ]
        for i, layer in reversed(list(enumerate(found.layers)))
    ]
    print_table(["layer", *(repr(found.tokens[p]) for p in shown)], rows)


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
    operation: Annotated[str, typer.Option(help="patch, zero or mean.")] = "patch",
    base: Annotated[
        str, typer.Option(help="The run that is changed: corrupt or clean.")
    ] = "corrupt",
    n: Annotated[int, typer.Option(help="Items of a generated behavior.", min=20)] = 60,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print the plan and its cost, and run nothing.")
    ] = False,
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
    opened = open_model(model, device, dtype, threads)
    chosen = over or ("role" if clean is None and site not in ("attn.z", "mlp.act") else None)
    planned = plan(opened, task, site, over=chosen, operation=operation, base=base, seed=seed)
    if explain:
        print_json(vars(planned.cost())) if as_json else print(planned.explain())
        return
    with Bars() as bars:
        found = planned.execute(bars)
    frame = found.to_frame()
    if out is not None:
        write_text(out, frame.to_csv(index=False))
    if as_json:
        print_json({"cells": frame.to_dict("records"), "certificate": dict(found.certificate)})
        return
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


def attribute(
    model: ModelName,
    behavior: Annotated[
        str, typer.Argument(help="The name of a behavior or a file.", show_default=False)
    ],
    method: Annotated[
        str, typer.Option(help="patching, direct, attribution or exact.")
    ] = "patching",
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    n: Annotated[int, typer.Option(help="Items of a generated behavior.", min=20)] = 200,
    top: Annotated[int, typer.Option(help="How many parts to show.", min=1)] = 20,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Attribute a behavior to heads and MLPs.

    patching: first-order estimate of patching each; direct: what each writes to the answer;
    attribution and exact: support as dissect computes it.

    Example: microtome attribute python-code quote-closing --method direct
    """
    from microtome.behaviors.items import SPLITS
    from microtome.errors import UnknownNameError, nearest

    if split not in SPLITS:
        raise UnknownNameError(f"No split {split!r}{nearest(split, SPLITS)}.")
    if method not in _METHODS:
        raise UnknownNameError(f"No method {method!r}{nearest(method, _METHODS)}.")
    task = open_behavior(behavior, n, seed)
    opened = open_model(model, device, dtype, threads)
    examples = task.prepare(opened).split(split)
    frame, meaning = _attributed(opened, examples, method)
    frame = frame.reindex(frame["mean"].abs().sort_values(ascending=False).index)
    if as_json:
        print_json(
            {
                "method": method,
                "meaning": meaning,
                "n": len(examples),
                "components": frame.to_dict("records"),
            }
        )
        return
    print_table(
        ["part", "mean"],
        [[str(r["component"]), f"{r['mean']:.4f}"] for r in frame.head(top).to_dict("records")],
        right=(1,),
    )
    say(f"{meaning} n = {len(examples)}.")


_METHODS = ("patching", "direct", "attribution", "exact")


def _attributed(opened: Any, examples: Any, method: str) -> tuple[Any, str]:
    from microtome.attribution import attribution_patching, direct_logit_attribution
    from microtome.circuits import find

    if method == "direct":
        direct = direct_logit_attribution(opened, examples)
        return (
            direct.to_frame(),
            f"{direct.note} Completeness error {direct.completeness_error:.1e}.",
        )
    scores = (
        attribution_patching(opened, examples)
        if method == "patching"
        else find(opened, examples, method=method)
    )
    return scores.to_frame(), scores.meaning
