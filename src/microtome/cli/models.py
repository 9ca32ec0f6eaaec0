"""``microtome models``: list, show and verify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from microtome.cli.options import (
    Device,
    Dtype,
    Json,
    ModelName,
    Threads,
    open_model,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from microtome.tracing.verification import Verification

app = typer.Typer(help="Models: list the shipped ones, show one, verify one.", no_args_is_help=True)


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the specimens that ship with microtome.

    Example: microtome models list
    """
    from microtome.models.specimens import specimen_card, specimen_names

    cards = [(name, specimen_card(name)) for name in specimen_names()]
    found = [(name, str(card.get("title", "")), card.get("parameters")) for name, card in cards]
    if as_json:
        print_json([{"name": n, "title": t, "parameters": p} for n, t, p in found])
        return
    if not found:
        print("No specimens are installed.")
        return
    rows = [[name, str(parameters), title] for name, title, parameters in found]
    print_table(["name", "parameters", "what it is"], rows, right=(1,))


@app.command()
def show(
    model: ModelName,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Show what was found of a model: its parts, sizes and how its blocks are built.

    Example: microtome models show python-code
    """
    opened = open_model(model, device, dtype, threads)
    a = opened.anatomy
    facts: dict[str, object] = {"name": opened.name, "class": type(opened.module).__name__}
    facts["parameters"] = sum(w.numel() for w in opened.module.parameters())
    if a is not None:
        placements = sorted({b.placement for b in a.blocks})
        facts.update(
            blocks=a.n_layers,
            heads=a.n_heads,
            kv_heads=a.n_kv_heads,
            d_model=a.d_model,
            d_head=a.d_head,
            neurons=a.d_mlp,
            vocabulary=a.vocab,
            context=a.context,
            causal=a.causal,
            block_shape=", ".join(placements),
            token_embedding=a.embed_token,
            final_norm=a.final_norm,
            unembedding=a.tail.head,
        )
    facts.update(dtype=str(opened.dtype), bos=opened.bos, fingerprint=opened.fingerprint)
    if as_json:
        print_json(facts)
        return
    print_table(["fact", "value"], [[k, str(v)] for k, v in facts.items()])


@app.command()
def verify(
    model: Annotated[
        str | None, typer.Argument(help="A folder, a hub id, or the name of a specimen.")
    ] = None,
    families: Annotated[
        bool, typer.Option("--families", help="Verify tiny random models of transformers families.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="Only these families; may be given several times.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Check every site and identity of a model numerically, or of many families.

    Exits with 1 where a check of a model fails. Families that fail are listed with the reason.

    Example: microtome models verify python-code
    Example: microtome models verify --families --json
    """
    from microtome.errors import UsageError

    if families:
        _families(only, threads, as_json)
        return
    if model is None:
        raise UsageError("Name a model, or give --families.")
    found = open_model(model, device, dtype, threads).verify()
    if as_json:
        print_json(
            {
                "model": found.model,
                "passed": found.passed,
                "identities": [vars(i) for i in found.identities],
                "sites": found.to_frame().to_dict("records"),
            }
        )
    else:
        _print(found)
    if not found.passed:
        raise typer.Exit(1)


def _print(found: Verification) -> None:
    sites = [
        [
            s.info.name,
            "x".join(str(n) for n in s.shape),
            _yes(s.info.readable and s.read),
            _yes(bool(s.info.writable and s.written)),
            s.reason or s.info.reason,
        ]
        for s in found.sites
    ]
    print_table(["site", "shape", "read", "write", "reason"], sites, title=found.model)
    identities = [
        [i.outcome, "" if i.error != i.error else f"{i.error:.1e}", i.name, i.reason]
        for i in found.identities
    ]
    print_table(["outcome", "error", "identity", "where or why"], identities, right=(1,))
    print("verified" if found.passed else "FAILED: " + "; ".join(found.failures()))


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _families(only: list[str] | None, threads: int | None, as_json: bool) -> None:
    import torch

    from microtome.cli.bars import Bars
    from microtome.models.hf import quiet
    from microtome.tracing.contract import verify_families

    torch.set_num_threads(threads or 1)
    with Bars() as bars, quiet():
        rows = list(verify_families(only, progress=bars))
    if as_json:
        print_json([vars(row) for row in rows])
        return
    print_table(
        ["family", "passed", "sites", "reason"],
        [[r.family, _yes(r.passed), r.sites, r.reason] for r in rows],
    )
    print(f"{sum(r.passed for r in rows)} of {len(rows)} passed")
