"""``microtome circuit find`` and ``evaluate``: score edges, choose a circuit, test it held out."""

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
    from microtome.attribution import ComponentScores
    from microtome.circuits.edges.scores import EdgeScores
    from microtome.circuits.results import Circuit

BehaviorName = Annotated[
    str, typer.Argument(help="The name of a behavior or a file.", show_default=False)
]
Split = Annotated[str, typer.Option(help="train, validation or test.")]
Ablation = Annotated[str, typer.Option(help="What is left out gives: resample, mean or zero.")]


def find(
    model: ModelName,
    behavior: BehaviorName,
    method: Annotated[
        str,
        typer.Option(
            help="eap, eap-ig, clean-corrupted, eap-ig-activations, mask-ig, information-flow, "
            "exact-edges, acdc, edge-pruning, ugs, rank-ensemble, relp (patented); of heads and "
            "MLPs attribution, exact, contextual-decomposition."
        ),
    ] = "eap-ig",
    level: Annotated[
        str | None,
        typer.Option(
            help="What is scored: role-edge or position-edge (edges told apart by where they are "
            "read; eap, eap-ig, clean-corrupted, exact-edges), neuron (heads and neurons; "
            "attribution, exact). By default what the method scores."
        ),
    ] = None,
    edges: Annotated[
        int, typer.Option("--edges", help="Edges (or nodes) of the circuit.", min=1)
    ] = 200,
    connected: Annotated[
        bool, typer.Option("--connected", help="Grow the circuit outward from the logits.")
    ] = False,
    signed: Annotated[
        bool, typer.Option("--signed", help="Rank by value, not by magnitude.")
    ] = False,
    ablation: Ablation = "resample",
    metric: Annotated[str, typer.Option(help="What is measured.")] = "logit_difference",
    out: Annotated[
        Path | None,
        typer.Option(help="File for the circuit (.json); scores go to NAME-scores.json beside it."),
    ] = None,
    split: Split = "train",
    n: Annotated[int, typer.Option(help="Items of a generated behavior.", min=20)] = 200,
    top: Annotated[int, typer.Option(help="How many parts to show.", min=1)] = 20,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Score every edge (or node, or neuron) by its support for a behavior and keep the strongest.

    Example: microtome circuit find python-code quote-closing --method eap --edges 60
    """
    from microtome.circuits import find as find_scores
    from microtome.circuits.references import check_ablation
    from microtome.cli.bars import Bars
    from microtome.cli.places import check_file

    check_ablation(ablation)
    if out is not None:
        check_file(out)
    task = open_behavior(behavior, n, seed)
    opened = open_model(model, device, dtype, threads)
    examples = task.prepare(opened).split(_split(split))
    with Bars() as bars:
        given = {"ablation": ablation, "metric": metric, "seed": seed, "progress": bars}
        options: dict[str, Any] = _taken(method, {**given, "edges": edges})
        if level is not None:
            options["level"] = level
        scores = find_scores(opened, examples, method=method, **options)
    circuit = _chosen(opened, scores, edges, connected=connected, signed=signed)
    saved = _saved(out, scores, circuit)
    _show(scores, circuit, len(examples), saved, top, as_json=as_json)


def evaluate(
    model: ModelName,
    behavior: BehaviorName,
    circuit: Annotated[
        Path, typer.Argument(help="A circuit file that `circuit find` wrote.", show_default=False)
    ],
    ablation: Ablation = "resample",
    metric: Annotated[str, typer.Option(help="What is measured.")] = "logit_difference",
    split: Split = "test",
    n: Annotated[int, typer.Option(help="Items of a generated behavior.", min=20)] = 200,
    out: Annotated[Path | None, typer.Option(help="File for the evaluation (.json).")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Run a circuit with everything else ablated, and everything else without it, held out.

    Example: microtome circuit evaluate python-code quote-closing circuit.json --ablation mean
    """
    from microtome.circuits import Circuit as _Circuit
    from microtome.circuits import evaluate as evaluate_circuit
    from microtome.circuits.references import check_ablation
    from microtome.cli.places import check_file

    check_ablation(ablation)
    if out is not None:
        check_file(out)
    chosen = _Circuit.load(circuit)
    task = open_behavior(behavior, n, seed)
    opened = open_model(model, device, dtype, threads)
    examples = task.prepare(opened).split(_split(split))
    if chosen.model and chosen.model != opened.fingerprint:
        say(f"{circuit} was found in a model of other weights; it is run in this one all the same.")
    found: Any = evaluate_circuit(
        opened, examples, chosen, ablation=ablation, metric=metric, seed=seed
    )  # fmt: skip
    saved = None if out is None else str(found.save(out))
    figures = {
        name: getattr(found, name)
        for name in ("faithfulness", "complement", "moved", "accuracy", "accuracy_without")
    }
    if as_json:
        print_json(
            {"level": chosen.level, "size": len(chosen), "of": len(chosen.universe),
             "ablation": ablation, "n": len(examples), "file": saved, **figures}
        )  # fmt: skip
        return
    print_table(["", "value"], [[name.replace("_", " "), str(v)] for name, v in figures.items()])
    say(
        f"{len(chosen)} of {len(chosen.universe)} {chosen.level}s under {ablation} ablation, "
        f"{split} split, n = {len(examples)}." + (f" Saved: {saved}" if saved else "")
    )


def _taken(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return those of some options that a finder takes; all of another one's, which is refused."""
    import inspect

    from microtome.circuits.finding import FINDERS

    if method not in FINDERS:
        return options
    taken = inspect.signature(FINDERS[method].run).parameters
    return {name: value for name, value in options.items() if name in taken}


def _split(name: str) -> Any:
    from microtome.behaviors.items import SPLITS
    from microtome.errors import UnknownNameError, nearest

    if name not in SPLITS:
        raise UnknownNameError(f"No split {name!r}{nearest(name, SPLITS)}.")
    return name


def _chosen(
    opened: Any,
    scores: ComponentScores | EdgeScores,
    size: int,
    *,
    connected: bool,
    signed: bool,
) -> Circuit:
    """Return the circuit of the strongest parts."""
    from microtome.circuits.edges.scores import EdgeScores as _EdgeScores
    from microtome.circuits.places import level_by_name
    from microtome.circuits.results import Circuit as _Circuit
    from microtome.errors import UsageError

    if isinstance(scores, _EdgeScores):
        size = min(size, len(scores.universe))
        return scores.select(edges=size, connected=connected, signed=signed)
    if connected:
        raise UsageError("--connected needs a method that scores edges, such as eap-ig.")
    kept = set(scores.ranking(signed=signed)[:size])
    parts = tuple(name for name in scores.names if name in kept)
    return _Circuit(
        parts, scores.names, scores.method, level=level_by_name(scores.names),
        model=opened.fingerprint, provenance=scores.provenance,
    )  # fmt: skip


def _saved(out: Path | None, scores: Any, circuit: Circuit) -> dict[str, str]:
    if out is None:
        return {}
    beside = out.with_name(f"{out.stem}-scores.json")
    return {"circuit": str(circuit.save(out)), "scores": str(scores.save(beside))}


def _show(
    scores: Any, circuit: Circuit, n: int, saved: dict[str, str], top: int, *, as_json: bool
) -> None:
    frame = scores.to_frame()
    name = str(frame.columns[0])
    frame = frame.reindex(frame["mean"].abs().sort_values(ascending=False).index)
    note = getattr(scores, "note", "")
    if as_json:
        kept = frame[frame[name].isin(circuit.kept)]
        print_json(
            {"method": scores.method, "meaning": scores.meaning, "n": n, "level": circuit.level,
             "size": len(circuit), "of": len(circuit.universe), "note": note, "files": saved,
             "parts": kept.to_dict("records")}
        )  # fmt: skip
        return
    print_table(
        [name, "mean", "standard error"],
        [
            [str(r[name]), f"{r['mean']:.4f}", f"{r['standard_error']:.4f}"]
            for r in frame.head(top).to_dict("records")
        ],
        right=(1, 2),
    )
    files = f" Saved: {', '.join(saved.values())}." if saved else ""
    say(
        f"{scores.meaning} n = {n}. {len(circuit)} of {len(circuit.universe)} "
        f"{circuit.level}s kept.{files}"
    )
    if note:
        say(note)
