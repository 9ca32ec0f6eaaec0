"""``microtome sae train``: a sparse coder from harvested activations, resumable after any stop."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from microtome.cli.options import Json, Seed, Threads, print_json, say, use_threads

Sites = Annotated[
    str | None,
    typer.Option(
        help="SITE, or SOURCE->TARGET for a transcoder; several by commas, without a block that of "
        "every block; all harvested by default."
    ),
]
Reach = Annotated[
    str,
    typer.Option(
        help="Of several sites: all (crosscoder), later (each latent reads one source and writes "
        "the target of its number and all behind it: cross-layer transcoder) or own."
    ),
]


def train(
    activations: Annotated[
        Path,
        typer.Argument(help="Folder written by microtome sae harvest.", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the run.", show_default=False)
    ],
    site: Sites = None,
    reach: Reach = "all",
    activation: Annotated[
        str, typer.Option(help="relu, topk, batchtopk, jumprelu, gated or abstopk.")
    ] = "batchtopk",
    k: Annotated[int, typer.Option(help="Latents kept; 0 for what fits the width.", min=0)] = 0,
    d_sae: Annotated[
        int | None, typer.Option("--latents", help="Number of latents; 16 times the width.", min=1)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Batches; one pass at least.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Rows of a batch.", min=1)] = 2048,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; fits the steps.")] = None,
    skip: Annotated[bool, typer.Option("--skip", help="Add a skip connection.")] = False,
    prefixes: Annotated[
        str, typer.Option(help="Matryoshka prefixes by commas, the last one all latents.")
    ] = "",
    format: Annotated[
        str, typer.Option("--format", help="Format of the saved coder.")
    ] = "microtome",
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="Device to train on, such as cpu or cuda.")] = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train a sparse coder; the same command goes on where it was stopped.

    Example: microtome sae train ACTIVATIONS -o RUN --activation batchtopk --k 16

    A cross-layer transcoder: --site "mlp.in->mlp.out" --reach later
    """
    from microtome.cli.bars import Bars
    from microtome.cli.places import check_folder
    from microtome.sae import ActivationStore, Config, Origin, save
    from microtome.sae import train as trained

    check_folder(out)
    use_threads(threads)
    store = ActivationStore(activations)
    sources, targets = _sites(site)
    config = Config(
        activation=activation, k=k, d_sae=d_sae, steps=steps, batch_size=batch_size, lr=lr,
        skip=skip, prefixes=_numbers(prefixes), reach=reach, seed=seed, device=device,
    )  # fmt: skip
    origin = Origin(fingerprint=store.fingerprint)
    try:
        with Bars() as bars:
            found = trained(
                store, config, sources=sources, targets=targets, folder=out, origin=origin,
                progress=bars, watch=_Early(),
            )  # fmt: skip
    except KeyboardInterrupt:
        command = shlex.join(["microtome", *sys.argv[1:]])
        say(f"The state is in {out}. The same command goes on: {command}")
        raise
    place = save(found.sae, out / "sae", format=format)
    summary = found.summary
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
        f"dead, after {summary.steps:,} steps of {batch_size:,} rows in {summary.seconds:.0f} s."
    )


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
    if site is None:
        return None, None
    source, _, target = site.partition("->")
    return source.split(","), (target or source).split(",")


def _numbers(text: str) -> tuple[int, ...]:
    from microtome.errors import UsageError

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"--prefixes is {text!r}; expected whole numbers by commas") from None
