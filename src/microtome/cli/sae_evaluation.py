"""``microtome sae eval`` and ``stability``: what a coder is worth, and what other seeds find."""

from __future__ import annotations

import tempfile
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
    print_json,
    print_table,
    say,
    use_threads,
)
from microtome.cli.sae_coders import CoderPlace, Context, Site, Texts, Tokens
from microtome.cli.sae_opening import open_both

if TYPE_CHECKING:
    from torch import Tensor

    from microtome.core.progress import Progress
    from microtome.sae import SAE, SAEEvaluation
    from microtome.tracing.model import Model


def evaluate(
    model: ModelName,
    coder: CoderPlace,
    text: Texts,
    site: Site = None,
    tokens: Tokens = 20_000,
    context: Context = 128,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="random, coordinates or twin (a coder of the model with permuted weights); may be "
            "given several times; the first two by default.",
        ),
    ] = None,
    twin: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the twin's coder; it is trained there if there is none. Implies "
            "--baseline twin."
        ),
    ] = None,
    twin_text: Annotated[
        list[Path] | None,
        typer.Option(help="Text to train the twin's coder on; the evaluation's by default."),
    ] = None,
    twin_tokens: Annotated[int, typer.Option(help="Tokens of it to read.", min=2)] = 200_000,
    twin_steps: Annotated[int, typer.Option(help="Batches to train it on.", min=1)] = 1000,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to save.")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure a coder in its model, beside random directions, plain coordinates and the twin.

    Example: microtome sae eval python-code SAE FOLDER --tokens 20000
    Example: microtome sae eval python-code SAE FOLDER --twin TWIN --twin-text TRAINING-TEXT
    """
    from microtome.cli.bars import Bars
    from microtome.cli.places import check_file, check_folder
    from microtome.sae import evaluate as evaluated
    from microtome.sae.evaluation.evaluating import BASELINES
    from microtome.store.texts import read_texts

    if out is not None:
        check_file(out)
    if twin is not None:
        check_folder(twin)
    texts = read_texts(text)
    wanted = list(BASELINES) if baseline is None else baseline
    opened, loaded = open_both(model, coder, site, device=device, dtype=dtype, threads=threads)
    try:
        with Bars() as bars:
            other = None
            if twin is not None or "twin" in wanted:
                own = read_texts(twin_text) if twin_text else texts
                other = _twin(opened, loaded, own, twin, twin_tokens, twin_steps, seed, bars)
            found = evaluated(
                opened, loaded, texts, tokens=tokens, context=context, twin=other,
                baselines=[name for name in wanted if name != "twin"], seed=seed, progress=bars,
            )  # fmt: skip
    except KeyboardInterrupt:
        if twin is not None:
            say(f"The state of the twin's training is in {twin}; the same command goes on with it.")
        raise
    if out is not None:
        found.save(out)
    if as_json:
        print_json(found.to_frame().reset_index())
        return
    _print_evaluation(found)


def _twin(
    model: Model,
    coder: SAE,
    texts: list[str],
    folder: Path | None,
    tokens: int,
    steps: int,
    seed: int,
    progress: Progress,
) -> SAE:
    """Return the twin's coder of a folder, trained now if it is not there."""
    from microtome.sae import FORMATS, load, save, train_twin

    for place in () if folder is None else (folder, folder / "sae"):
        if any(known.recognizes(place) for known in FORMATS.values()):
            return load(place).to(model.device)
    with tempfile.TemporaryDirectory(prefix="microtome-twin-") as temporary:
        found = train_twin(
            model, coder, texts, tokens=tokens, steps=steps, seed=seed, progress=progress,
            folder=folder or temporary,
        )  # fmt: skip
        if folder is not None:
            save(found, folder / "sae")
        return found


def _print_evaluation(found: SAEEvaluation) -> None:
    table = found.to_frame()
    shown = {
        "fvu": "FVU",
        "l0": "L0",
        "dead_share": "dead",
        "ce_recovered_zero": "CE recovered (zero)",
        "ce_recovered_mean": "(mean)",
        "kl_score_zero": "KL score (zero)",
        "kl_score_mean": "(mean)",
        "bias": "bias",
    }
    rows = [[str(name), *(f"{row[key]:.4g}" for key in shown)] for name, row in table.iterrows()]
    print_table(["coder", *shown.values()], rows, right=tuple(range(1, len(shown) + 1)))
    clean = table["ce_clean"].iloc[0]
    beside = " The twin's row is measured in the twin." if "twin" in table.index else ""
    say(
        f"{int(table['rows'].iloc[0]):,} rows; the whole model's cross-entropy is {clean:.4f} nats "
        f"a token.{beside}"
    )


def stability(
    coders: Annotated[
        list[Path],
        typer.Argument(help="Folders of coders of one site, two or more.", show_default=False),
    ],
    activations: Annotated[
        Path | None,
        typer.Option(
            help="Folder of microtome sae harvest; latents active on none of its first rows are "
            "left out."
        ),
    ] = None,
    at: Annotated[
        float, typer.Option(help="Cosine above which a latent counts as found.", min=0, max=1)
    ] = 0.7,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to save.")] = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Say which latents other seeds find again, beside random dictionaries.

    Example: microtome sae stability RUN-0/sae RUN-1/sae RUN-2/sae --activations RUN-0/activations
    """
    from microtome.cli.places import check_file
    from microtome.sae import load
    from microtome.sae import stability as compared

    if out is not None:
        check_file(out)
    use_threads(threads)
    loaded = [load(place) for place in coders]
    sample = None if activations is None else _rows(activations, loaded)
    found = compared(loaded, names=list(map(str, coders)), sample=sample, at=at, seed=seed)
    if out is not None:
        found.save(out)
    table = found.to_frame().reset_index()
    if as_json:
        print_json({"pairs": table, "in_all": found.in_all, "null_in_all": found.null_in_all})
        return
    rows = [
        [r["coder"], r["in"], *(f"{r[key]:.3f}" for key in ("mmcs", "mmcs_random")),
         *(f"{100 * r[key]:.1f} %" for key in ("recall", "mutual"))]
        for r in table.to_dict("records")
    ]  # fmt: skip
    print_table(["coder", "in", "MMCS", "random", "found", "mutual"], rows, right=(2, 3, 4, 5))
    shares = ", ".join(
        f"{100 * share:.1f} % of {n:,}"
        for share, n in zip(found.in_all, found.n_latents, strict=True)
    )
    random = 100 * max(found.null_in_all)
    say(f"Found in all others at a cosine above {at:g}: {shares}; at random {random:.1f} %.")


def _rows(folder: Path, coders: list[SAE], count: int = 20_000) -> Tensor:
    """Return rows of harvested activations as coders of one site take them."""
    import contextlib

    import torch

    from microtome.errors import UsageError
    from microtome.sae import ActivationStore

    store = ActivationStore(folder)
    sites = coders[0].origin.sources
    others = {coder.origin.sources for coder in coders} - {sites, ()}
    if others:
        raise UsageError(
            f"the coders read {', '.join(sites)} and {', '.join(min(others))}; activations of one "
            "do not say which latents of the other are active: leave --activations out"
        )
    if not sites or not set(sites) <= set(store.sites):
        raise UsageError(
            f"{folder} holds {', '.join(store.sites)} and the coder reads "
            f"{', '.join(sites) or 'it does not say what'}; give activations of its sites"
        )
    stream = store.batches(min(count, store.rows), seed=0, sites=sites)
    with contextlib.closing(stream):
        batch = next(stream)
    return torch.cat([batch[site] for site in sites], 1)
