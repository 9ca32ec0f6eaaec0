"""``microtome sae probe`` and ``interchange``: what latents say about labels, and about facts."""

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
    print_json,
    print_table,
    say,
)
from microtome.cli.sae_coders import CoderPlace, Site
from microtome.cli.sae_opening import open_both

if TYPE_CHECKING:
    from microtome.sae import Absorption
    from microtome.sae.evaluation.labelled import SparseProbing


def probe(
    model: ModelName,
    coder: CoderPlace,
    labelled: Annotated[
        Path,
        typer.Argument(
            help='JSONL file with {"text": ..., "label": ...} on each line.', show_default=False
        ),
    ],
    site: Site = None,
    pooled: Annotated[
        str, typer.Option("--pool", help="Over the tokens of a text: max, mean or last.")
    ] = "max",
    position: Annotated[int, typer.Option(help="Token that absorption is measured at.")] = -1,
    prop: Annotated[
        list[str] | None,
        typer.Option(
            "--property", help="Labels to measure absorption of; may be given several times."
        ),
    ] = None,
    least_f1: Annotated[
        float, typer.Option(help="F1 of a probe from which absorption is measured.", min=0, max=1)
    ] = 0.6,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Learn labels from few latents, ablate these, and look for what absorbs them.

    Example: microtome sae probe MODEL SAE labelled.jsonl --pool last
    """
    from microtome.errors import EmptyDataError
    from microtome.sae import absorption
    from microtome.sae.evaluation.labelled import Pooled, pool, probe_perturbation, sparse_probing
    from microtome.sae.evaluation.rows import read_rows
    from microtome.sae.evaluation.tokens import at_tokens

    rows = read_rows(labelled, ("text", "label"))
    texts, labels = [r[0] for r in rows], [r[1] for r in rows]
    opened, loaded = open_both(model, coder, site, device=device, dtype=dtype, threads=threads)
    data: Pooled = pool(opened, loaded, texts, labels, how=pooled, seed=seed)  # type: ignore[arg-type]
    sparse = sparse_probing(data)
    facts: dict[str, Any] = {
        "sparse_probing": sparse.to_dict(),
        "probe_perturbation": None,
        "absorption": None,
    }
    found: Absorption | str = "it needs a coder that writes the site it reads"
    if loaded.origin.sources == loaded.origin.targets:
        facts["probe_perturbation"] = probe_perturbation(data, loaded).to_dict()
        there = at_tokens(opened, loaded, texts, labels, positions=position, seed=seed)
        try:
            found = absorption(there, loaded, classes=prop, least_f1=least_f1, seed=seed)
            facts["absorption"] = found.to_dict()
        except EmptyDataError as error:
            found = str(error)
    if as_json:
        print_json(facts)
        return
    _print_probing(sparse, facts["probe_perturbation"])
    _print_absorption(found)


def _print_probing(sparse: SparseProbing, perturbed: dict[str, Any] | None) -> None:
    table = sparse.to_frame()
    print_table(
        ["k", "latents", "coordinates"],
        [
            [str(k), *(f"{v:.3f}" for v in row)]
            for k, row in zip(table.index, table.to_numpy(), strict=True)
        ],
        title=f"accuracy; the whole value {sparse.whole:.3f}, chance {sparse.chance:.3f}",
        right=(0, 1, 2),
    )
    for name, latents in sparse.chosen.items():
        say(f"{name}: latents {', '.join(map(str, latents))}")
    if perturbed is not None:
        shown = ", ".join(
            f"{n}: {s:.3f}" for n, s in zip(perturbed["n"], perturbed["score"], strict=True)
        )
        say(f"Targeted probe perturbation by latents ablated: {shown}.")


def _print_absorption(found: Absorption | str) -> None:
    if isinstance(found, str):
        say(f"Absorption was not measured: {found}.")
        return
    frame = found.to_frame()
    rows = [
        [
            str(name),
            str(row["n"]),
            *(f"{row[key]:.3f}" for key in ("fraction", "full", "shuffled", "probe_f1")),
            ", ".join(map(str, row["main"])),
            ", ".join(map(str, row["absorbers"][:5])),
        ]
        for name, row in frame.iterrows()
    ]
    heads = ["label", "n", "absorbed", "in full", "by chance", "probe F1", "own", "absorbed by"]
    print_table(heads, rows, title="absorption", right=(1, 2, 3, 4, 5))


def interchange(
    model: ModelName,
    coder: CoderPlace,
    facts: Annotated[
        Path,
        typer.Argument(
            help='JSONL file with {"entity", "attribute", "prompt", "answer"} on each line.',
            show_default=False,
        ),
    ],
    site: Site = None,
    method: Annotated[str, typer.Option(help="mask (learned) or variance (ranked).")] = "mask",
    among: Annotated[
        str, typer.Option(help="Compare the whole vocabulary, or the attribute's answers.")
    ] = "vocabulary",
    unseen: Annotated[
        str, typer.Option(help="The half judged on has other entities, or other prompts.")
    ] = "entities",
    pairs: Annotated[int, typer.Option(help="Pairs of each kind and half at most.", min=4)] = 200,
    steps: Annotated[int, typer.Option(help="Steps of a learned mask.", min=1)] = 200,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to save.")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Exchange an attribute's latents between entities: what changes, and what stays.

    Example: microtome sae interchange MODEL SAE facts.jsonl --unseen prompts
    """
    from microtome.cli.bars import Bars
    from microtome.cli.places import check_file
    from microtome.sae import disentanglement
    from microtome.sae.evaluation.facts import read_facts

    if out is not None:
        check_file(out)
    rows = read_facts(facts)
    opened, loaded = open_both(model, coder, site, device=device, dtype=dtype, threads=threads)
    with Bars() as bars:
        found = disentanglement(
            opened, loaded, rows, method=method, among=among, unseen=unseen,
            pairs=pairs, steps=steps, seed=seed, progress=bars,
        )  # fmt: skip
    if out is not None:
        found.save(out)
    if as_json:
        print_json({"score": found.score, "latents": found.latents, "table": found.table})
        return
    figures = ("cause", "isolation", "score")
    shown = [
        [r["attribute"], r["what"], *(f"{r[name]:.3f}" for name in figures), str(r["latents"])]
        for r in found.table.to_dict("records")
    ]
    heads = ["attribute", "exchanged", "cause", "isolation", "score", "latents"]
    print_table(heads, shown, right=(2, 3, 4, 5))
    say(
        f"{found.n_right} of {found.n_facts} facts are right without a change. Mean score of the "
        f"chosen latents: {found.score:.3f}."
    )
