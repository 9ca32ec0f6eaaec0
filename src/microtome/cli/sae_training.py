"""``microtome sae train``: a sparse coder of a model and text, or of harvested activations."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli.options import Dtype, Json, Seed, Threads, print_json, say, use_threads

if TYPE_CHECKING:
    from microtome.sae import SAE
    from microtome.tracing.model import Model


Data = Annotated[
    str,
    typer.Argument(
        help="Folder written by microtome sae harvest; or, with --text, a model: a folder, a hub "
        "id, or the name of a specimen.",
        show_default=False,
    ),
]
Sites = Annotated[
    str | None,
    typer.Option(
        help="SITE, or SOURCE->TARGET for a transcoder; several by commas, without a block that "
        "of every block; all harvested by default."
    ),
]
Text = Annotated[
    list[Path] | None,
    typer.Option(help="Text that the model reads: a file or folder; may be given several times."),
]
Tokens = Annotated[
    int | None, typer.Option(help="Tokens of the text to read; all by default.", min=1)
]
Context = Annotated[
    int | None,
    typer.Option(help="Tokens that the model reads at a time; 128 or its own by default."),
]
Shards = Annotated[
    Path | None,
    typer.Option(help="Folder of the harvested activations; OUT/activations by default."),
]
Kind = Annotated[str, typer.Option(help="relu, topk, batchtopk, jumprelu, gated or abstopk.")]
Latents = Annotated[
    int | None, typer.Option("--latents", help="Number of latents; 16 times the width.", min=1)
]
Steps = Annotated[int | None, typer.Option(help="Batches; one pass at least.", min=1)]
Prefixes = Annotated[
    str, typer.Option(help="Matryoshka prefixes by commas, the last one all latents.")
]

Reach = Annotated[
    str,
    typer.Option(
        help="Of several sites: all (crosscoder), later (each latent reads one source and writes "
        "the target of its number and all behind it: cross-layer transcoder) or own."
    ),
]


def train(
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the run.", show_default=False)
    ],
    site: Sites = None,
    text: Text = None,
    tokens: Tokens = None,
    context: Context = None,
    shards: Shards = None,
    reach: Reach = "all",
    activation: Kind = "batchtopk",
    k: Annotated[int, typer.Option(help="Latents kept; 0 for what fits the width.", min=0)] = 0,
    d_sae: Latents = None,
    steps: Steps = None,
    batch_size: Annotated[int, typer.Option(help="Rows of a batch.", min=1)] = 2048,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; fits the steps.")] = None,
    skip: Annotated[bool, typer.Option("--skip", help="Add a skip connection.")] = False,
    prefixes: Prefixes = "",
    format: Annotated[
        str, typer.Option("--format", help="Format of the saved coder.")
    ] = "microtome",
    seed: Seed = 0,
    device: Annotated[
        str | None, typer.Option(help="Device to train on, and of the model: cpu, cuda.")
    ] = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train a sparse coder on a model and text, or on harvested activations.

    The same command goes on where it was stopped, in harvesting or in training.

    Example: microtome sae train MODEL --site blocks.2.resid_post --text FOLDER -o RUN --k 16
    Example: microtome sae train ACTIVATIONS -o RUN --activation batchtopk --k 16

    A cross-layer transcoder: --site "mlp.in->mlp.out" --reach later
    """
    from microtome.cli.bars import Bars
    from microtome.cli.places import check_folder
    from microtome.errors import UsageError
    from microtome.sae import Config
    from microtome.sae import train as trained
    from microtome.sae.saving import require_format
    from microtome.store.texts import read_texts

    check_folder(out)
    require_format(format)
    sources, targets = _sites(site)
    config = Config(
        activation=activation, k=k, d_sae=d_sae, steps=steps, batch_size=batch_size, lr=lr,
        skip=skip, prefixes=_numbers(prefixes), reach=reach, seed=seed, device=device or "cpu",
    )  # fmt: skip
    if shards is not None and not text:
        raise UsageError("--shards says where a model's activations go; give --text, too")
    texts = read_texts(text) if text else None
    opened = _opened(data, device, dtype, threads, reads=bool(text))
    try:
        with Bars() as bars:
            found = trained(
                opened, config, text=texts, sources=sources, targets=targets, tokens=tokens,
                context=context, shards=shards, folder=out, progress=bars, watch=_Early(),
            )  # fmt: skip
    except KeyboardInterrupt:
        command = shlex.join(["microtome", *sys.argv[1:]])
        say(f"The state is in {out}. The same command goes on: {command}")
        raise
    _report(found, out / "sae", format, as_json=as_json)


def _report(coder: SAE, folder: Path, format: str, *, as_json: bool) -> None:
    """Save a coder and say what it came to."""
    from microtome.sae import save

    place = save(coder, folder, format=format)
    summary = coder.summary
    facts = {
        "folder": str(place),
        "fvu": summary.fvu,
        "l0": summary.l0,
        "dead_share": summary.dead_share,
        "steps": summary.steps,
        "rows": summary.rows,
        "seconds": round(summary.seconds, 3),
    }
    if as_json:
        print_json(facts)
        return
    say(
        f"{place}: FVU {summary.fvu:.4f} at L0 {summary.l0:.1f}, {100 * summary.dead_share:.1f} % "
        f"dead, after {summary.steps:,} steps, {summary.rows:,} rows, in {summary.seconds:.0f} s."
    )


def _opened(
    name: str, device: str | None, dtype: str | None, threads: int | None, *, reads: bool
) -> Model | Path:
    """Open the model that reads text, or check that there is a folder of activations."""
    from microtome.cli.options import open_model
    from microtome.errors import UsageError

    if reads:
        return open_model(name, device, dtype, threads)
    if not Path(name).is_dir():
        raise UsageError(
            f"{name} is no folder of activations; to train on a model of this name, give the text "
            "that it reads: --text FILE --site SITE"
        )
    use_threads(threads)
    return Path(name)


class _Early:
    """Says once, early, how the training goes."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self, row: Mapping[str, Any]) -> None:
        if not self._said:
            self._said = True
            shown = ", ".join(f"{n} {row[n]:.3g}" for n in ("fvu", "l0", "dead_share") if n in row)
            say(f"Early look: {shown}.")


def _sites(site: str | None) -> tuple[list[str] | None, list[str] | None]:
    """Return source and target sites of a text like ``A->B``, None for all."""
    from microtome.errors import UsageError

    if site is None:
        return None, None
    source, arrow, target = site.partition("->")
    if not source or (arrow and not target) or "->" in target:
        raise UsageError(
            f"--site is {site!r}; expected SITE, SITE,SITE, or SOURCE->TARGET with sites on both "
            "sides"
        )
    return source.split(","), (target or source).split(",")


def _numbers(text: str) -> tuple[int, ...]:
    from microtome.errors import UsageError

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"--prefixes is {text!r}; expected whole numbers by commas") from None
