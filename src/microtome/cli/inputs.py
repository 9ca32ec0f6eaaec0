"""``microtome attribute-inputs`` and ``maximize``: what of the input matters, and which excites."""

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
    from microtome.attribution import InputAttribution
    from microtome.tracing.model import Model


def attribute_inputs(
    model: ModelName,
    behavior: Annotated[
        str, typer.Argument(help="The name of a behavior or a file.", show_default=False)
    ],
    method: Annotated[
        str,
        typer.Option(help="integrated-gradients, gradient-x-input, occlusion or value-zeroing."),
    ] = "integrated-gradients",
    metric: Annotated[
        str, typer.Option(help="A metric that reads the prompt's end.")
    ] = "logit-difference",
    baseline: Annotated[
        str | None,
        typer.Option(help="corrupt, zero, mean or resample; the method's usual one by default."),
    ] = None,
    steps: Annotated[
        int, typer.Option(help="Points of integration of integrated gradients.", min=1)
    ] = 32,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    n: Annotated[int, typer.Option(help="Items of a generated behavior.", min=20)] = 60,
    show: Annotated[int, typer.Option(help="How many examples to show token by token.", min=0)] = 1,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Attribute a behavior to the tokens of its prompts: answer against wrong answer.

    Example: microtome attribute-inputs python-code quote-closing --method occlusion
    """
    from microtome.attribution import input_attribution
    from microtome.behaviors.items import SPLITS
    from microtome.cli.bars import Bars
    from microtome.errors import UnknownNameError, nearest

    if split not in SPLITS:
        raise UnknownNameError(f"No split {split!r}{nearest(split, SPLITS)}.")
    task = open_behavior(behavior, n, seed)
    opened = open_model(model, device, dtype, threads)
    examples = task.prepare(opened).split(split)
    with Bars() as bars:
        found = input_attribution(
            opened, examples, method=method, metric=metric, baseline=baseline, steps=steps,
            seed=seed, progress=bars,
        )  # fmt: skip
    if as_json:
        print_json(_attribution_facts(found))
        return
    _print_attribution(found, show)


def _attribution_facts(found: InputAttribution) -> dict[str, object]:
    return {
        "method": found.method,
        "metric": found.metric,
        "baseline": found.baseline,
        "meaning": found.meaning,
        "n": len(found.tokens),
        "roles": found.by_role().to_dict("records"),
        "tokens": found.to_frame().to_dict("records"),
        "completeness_error": found.completeness_error,
    }


def _print_attribution(found: InputAttribution, show: int) -> None:
    roles = found.by_role().to_dict("records")
    print_table(["role", "mean"], [[r["role"], f"{r['mean']:.4f}"] for r in roles], right=(1,))
    frame = found.to_frame()
    for number in range(min(show, len(found.tokens))):
        rows = frame[frame["example"] == number].to_dict("records")
        print_table(
            ["pos", "token", "role", "value"],
            [[str(r["pos"]), repr(r["token"]), r["role"], f"{r['value']:.4f}"] for r in rows],
            title=f"example {number}: {found.metric} {found.total[number]:.4f}",
            right=(0, 3),
        )
    error = ""
    if found.completeness_error is not None:
        error = f" Largest completeness error {abs(found.completeness_error).max():.1e}."
    say(f"{found.meaning}{error} n = {len(found.tokens)}.")


def maximize(
    model: ModelName,
    unit: Annotated[
        str,
        typer.Argument(
            help="A neuron or head, as blocks.2.mlp.act[neuron=5]; for an image network a channel, "
            "as module:conv2:out[neuron=3].",
            show_default=False,
        ),
    ],
    texts: Annotated[
        list[Path] | None,
        typer.Option(help="File or folder of text for the corpus; may be given several times."),
    ] = None,
    length: Annotated[int, typer.Option(help="Tokens of an optimized text.", min=2)] = 12,
    population: Annotated[int, typer.Option(help="Members of the search.", min=1)] = 8,
    iterations: Annotated[
        int, typer.Option(help="Generations of the search, or steps of the ascent.", min=1)
    ] = 100,
    out: Annotated[Path | None, typer.Option(help="File for the whole result (.json).")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find the texts, or the image, that most excite a unit, beside the corpus and a random unit.

    Example: microtome maximize python-code "blocks.2.mlp.act[neuron=5]" --texts FOLDER
    Example: microtome maximize digits-cnn "module:conv2:out[neuron=3]"
    """
    from microtome.attribution import maximize as maximized
    from microtome.cli.bars import Bars
    from microtome.cli.places import check_file
    from microtome.errors import UsageError
    from microtome.store.texts import read_texts

    if out is not None:
        check_file(out)
    opened = open_model(model, device, dtype, threads)
    if opened.anatomy is None:
        _maximize_pixels(opened, unit, texts, iterations, out, seed, as_json)
        return
    if not texts:
        raise UsageError("Give a corpus with --texts FILE or --texts FOLDER.")
    with Bars() as bars:
        found = maximized(
            opened, unit, texts=read_texts(texts), length=length, population=population,
            iterations=iterations, seed=seed, progress=bars,
        )  # fmt: skip
    saved = None if out is None else str(found.save(out))
    rows = found.to_frame().to_dict("records")
    if as_json:
        print_json(
            {
                "unit": found.unit, "rows": rows, "corpus_tokens": found.corpus.n_tokens,
                "median_cross_entropy": found.median_cross_entropy, "limit": found.limit,
                "file": saved,
            }
        )  # fmt: skip
        return
    print_table(
        ["unit", "what", "activation", "nats", "text"],
        [
            [r["unit"], r["source"], f"{r['activation']:.3f}", _number(r["cross_entropy"]),
             repr(r["text"][-70:])]
            for r in rows
        ],
        right=(2, 3),
    )  # fmt: skip
    say(
        f"nats: cross-entropy per token; the corpus's windows of {length} tokens have a median of "
        f"{found.median_cross_entropy:.2f}, the optimized text at most {found.limit:.2f}. Corpus: "
        f"{found.corpus.n_tokens} tokens."
    )


def _maximize_pixels(
    opened: Model,
    unit: str,
    texts: list[Path] | None,
    iterations: int,
    out: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Optimize an image for a channel of the digits network."""
    from microtome.attribution import optimize_pixels
    from microtome.cli.bars import Bars
    from microtome.errors import ModelSupportError, UsageError
    from microtome.models.digits import DigitsCNN, digits

    if texts:
        raise UsageError(f"{opened.name} reads images; leave --texts out.")
    if not isinstance(opened.module, DigitsCNN):
        raise ModelSupportError(
            f"The command has images only for digits-cnn, not for {opened.name}; call "
            "microtome.attribution.optimize_pixels with yours."
        )
    with Bars() as bars:
        found = optimize_pixels(
            opened, unit, images=digits().images, steps=iterations, seed=seed, progress=bars
        )
    saved = None if out is None else str(found.save(out))
    rows = found.to_frame().to_dict("records")
    if as_json:
        print_json({"unit": found.unit, "rows": rows, "image": found.image, "file": saved})
        return
    print_table(
        ["unit", "what", "activation"],
        [[r["unit"], r["source"], f"{r['activation']:.3f}"] for r in rows],
        right=(2,),
    )
    print("\n".join("".join(_SHADES[int(v * 9.999)] * 2 for v in row) for row in found.image[0]))


_SHADES = " .:-=+*#%@"


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.2f}"
