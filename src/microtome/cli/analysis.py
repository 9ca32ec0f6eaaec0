"""``microtome trace``, ``lens`` and ``attribute``: looking into one model."""

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
    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model

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
    from microtome.cli.places import check_file
    from microtome.errors import UsageError

    if capture and out is None:
        raise UsageError("--capture needs --out FILE.safetensors for the captured values.")
    if out is not None:
        check_file(out)
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


def attribute(
    model: ModelName,
    behavior: Annotated[
        str, typer.Argument(help="The name of a behavior or a file.", show_default=False)
    ],
    method: Annotated[
        str, typer.Option(help="patching, direct, attribution, exact or neurons.")
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
    attribution and exact: support as dissect computes it; neurons: all neurons ranked by a
    first-order estimate, the first --top of them patched exactly.

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
    if method == "neurons":
        _neurons(opened, examples, top, seed, as_json)
        return
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


_METHODS = ("patching", "direct", "attribution", "exact", "neurons")


def _neurons(opened: Model, examples: Examples, top: int, seed: int, as_json: bool) -> None:
    from microtome.attribution import top_neurons
    from microtome.cli.bars import Bars

    with Bars() as bars:
        found = top_neurons(opened, examples, top=top, seed=seed, progress=bars)
    rows = found.to_frame().to_dict("records")
    if as_json:
        print_json(
            {
                "method": found.method,
                "considered": found.considered,
                "agreement": found.agreement,
                "neurons": rows,
                "certificate": dict(found.certificate),
                "n": len(examples),
            }
        )
        return
    print_table(
        ["block", "neuron", "estimated", "exact effect", "95 % interval"],
        [
            [
                str(r["layer"]),
                str(r["neuron"]),
                f"{r['estimated']:.4f}",
                f"{r['effect']:.4f}",
                f"{r['low']:.4f} to {r['high']:.4f}",
            ]
            for r in rows
        ],
        right=(0, 1, 2, 3),
        title="share of the way from the clean to the corrupt run when one neuron is patched",
    )
    say(
        f"{len(rows)} of {found.considered} neurons, the strongest by {found.method}; estimate and "
        f"exact effect correlate by {found.agreement:.3f}. n = {len(examples)}."
    )


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
