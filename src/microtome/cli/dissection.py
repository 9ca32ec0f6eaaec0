"""``microtome dissect``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microtome.cli.options import (
    Device,
    Dtype,
    Home,
    Json,
    Seed,
    Threads,
    open_behavior,
    open_model,
    print_json,
    print_table,
    use_home,
)
from microtome.cli.sae_coders import warn_of_another_model

if TYPE_CHECKING:
    from microtome.dissection.results import Dissection
    from microtome.sae import SAE

SPECIMEN = "python-code"
BEHAVIOR = "quote-closing"

Second = Annotated[
    str | None, typer.Option(help="A second condition: the name of a behavior, or a file.")
]
Sae = Annotated[
    Path | None,
    typer.Option(help="Folder of a sparse coder, or a specimen's name: its latents are named."),
]
SaeText = Annotated[
    list[Path] | None,
    typer.Option(help="Text in which latents are explained; by default the prompts."),
]


def dissect(
    model: Annotated[
        str, typer.Argument(help="A folder, a hub id, or the name of a specimen.")
    ] = SPECIMEN,
    behavior: Annotated[
        str, typer.Argument(help="The name of a behavior, or a .jsonl or .csv file of pairs.")
    ] = BEHAVIOR,
    out: Annotated[Path | None, typer.Option(help="Folder for report and results.")] = None,
    n: Annotated[
        int, typer.Option(help="Items over all splits, for generated behaviors.", min=20)
    ] = 200,
    ablation: Annotated[
        str, typer.Option(help="What ablated parts give: resample, mean or zero.")
    ] = "resample",
    method: Annotated[str, typer.Option(help="A finder of heads and MLPs.")] = "attribution",
    faithfulness: Annotated[
        float, typer.Option(help="Faithfulness the circuit has to reach on validation.")
    ] = 0.9,
    nulls: Annotated[
        int, typer.Option(help="Twins, and permutations of the answers, searched as nulls.", min=1)
    ] = 20,
    edges: Annotated[
        str, typer.Option(help="Edges: cut, judged (with nulls and a verdict; minutes) or off.")
    ] = "cut",
    names: Annotated[
        bool, typer.Option(help="Hold the parts against the taxonomy of heads.")
    ] = True,
    versus: Second = None,
    sae: Sae = None,
    sae_text: SaeText = None,
    gate: Annotated[
        bool, typer.Option(help="End where the model does not show the behavior.")
    ] = True,
    strict: Annotated[
        bool, typer.Option(help="Exit with 1 where the verdict is not established.")
    ] = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Find the mechanism behind a behavior, test it by fixed rules, and write a report.

    Without arguments: the shipped specimen and the closing of quotes.

    Example: microtome dissect python-code bracket-closing --out reports/brackets
    """
    from microtome.cli.bars import Bars
    from microtome.cli.places import check_folder
    from microtome.dissection import Config
    from microtome.dissection import dissect as run
    from microtome.store.runs import home as home_folder

    use_home(home)
    config = Config(
        faithfulness=faithfulness, ablation=ablation, method=method, nulls=nulls, edges=edges,
        names=names, gate=gate, seed=seed,
    )  # fmt: skip
    task = open_behavior(behavior, n, seed)
    other = None if versus is None else open_behavior(versus, n, seed)
    folder = out or home_folder() / "runs" / f"dissect-{Path(model).name}-{task.name}-{seed}"
    check_folder(folder)
    coder, text = _coder(sae, sae_text)
    opened = open_model(model, device, dtype, threads)
    if coder is not None:
        warn_of_another_model(coder, opened)
    with Bars() as bars:
        found = run(opened, task, versus=other, sae=coder, text=text, config=config, progress=bars)
    found.save_folder(folder)
    if as_json:
        print_json({**found.summary(), "report": str(folder / "report.html")})
    else:
        _print(found, folder)
    if not found.explained or (strict and not _established(found)):
        raise typer.Exit(1)


def _coder(folder: Path | None, text: list[Path] | None) -> tuple[SAE | None, list[str] | None]:
    """Read a coder and the text to explain its latents in."""
    from microtome.errors import ConfigError
    from microtome.sae import load
    from microtome.store.texts import read_texts

    if folder is None:
        if text:
            raise ConfigError("--sae-text explains latents; give the coder, too, with --sae.")
        return None, None
    return load(folder), list(read_texts(text)) if text else None


def _established(found: Dissection) -> bool:
    return found.verdict is not None and found.verdict.established


def _print(found: Dissection, folder: Path) -> None:
    print(found.sentence)
    if found.verdict is not None:
        print(f"\nGrade: {found.verdict.grade}")
        rows = [[r["name"], r["outcome"], r["value"], r["baseline"]] for r in found.verdict.rules]
        print_table(["rule", "outcome", "value", "baseline"], rows)
    if found.wiring is not None:
        print(f"Edges: {found.wiring.sentence}")
    if found.names is not None and found.circuit is not None:
        named = {part: found.names.names_of(part) for part in found.circuit.parts}
        listed = "; ".join(f"{part} {', '.join(n)}" for part, n in named.items() if n)
        print(f"Names: {listed or 'no part of the circuit earns one'}")
    if found.latents is not None:
        print(f"Latents: {found.latents.sentence}")
        listed_rows = [
            [str(r["latent"]), f"{r['effect']:.2f}", f"{r['low']:.2f} to {r['high']:.2f}",
             f"{r['kept']:.2f}", r["when"]]
            for r in found.latents.table.to_dict("records")
        ]  # fmt: skip
        print_table(["latent", "effect", "95 %", "by the circuit", "active when"], listed_rows)
    if found.versus is not None:
        print(f"Versus: {found.versus.sentence}")
    for step, reason in found.notes.items():
        print(f"Left out: {step}, because {reason}")
    print(f"Report: {folder / 'report.html'}")
