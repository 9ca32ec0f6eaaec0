"""The main job: the steps of a dissection, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from microtome.behaviors.behavior import Behavior
from microtome.behaviors.check import check
from microtome.behaviors.registry import get
from microtome.circuits.judging.contrasts import versus as compare
from microtome.circuits.judging.cutting import cut
from microtome.circuits.taxonomy.catalog import DETECTORS
from microtome.circuits.taxonomy.naming import name_parts
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.dissection.config import Config
from microtome.dissection.latents import name_latents, with_coder
from microtome.dissection.locating import locate
from microtome.dissection.operating import operate
from microtome.dissection.proving import prove
from microtome.dissection.reducing import reduce
from microtome.dissection.results import Dissection, config_dict
from microtome.dissection.wiring import wire
from microtome.errors import EmptyDataError, MetricError, ModelSupportError
from microtome.tracing.catalog import require_anatomy

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.circuits.results import Circuit
    from microtome.sae import SAE
    from microtome.sae.harvesting.documents import Text
    from microtome.tracing.model import Model

T = TypeVar("T")


def dissect(
    model: Model,
    behavior: Behavior | str,
    *,
    versus: Behavior | str | None = None,
    sae: SAE | None = None,
    text: Text | None = None,
    config: Config | None = None,
    progress: Progress = quiet,
) -> Dissection:
    """Find the mechanism behind a behavior, test it by fixed rules, and say it in a few words.

    Steps: check the gate, locate the parts that carry the behavior, cut the smallest circuit that
    reaches the asked faithfulness, prove it on unseen templates, wire it edge by edge, name its
    parts, reduce what the model does to a readable rule, and operate: ablate the circuit and
    measure what changes.

    Args:
        model: A transformer with a tokenizer.
        behavior: A behavior, or the name of one.
        versus: A second condition, or its name: what the model does differently in the first.
        sae: A sparse coder of one site of the model, whose latents are to be named.
        text: Text in which the latents' explanations are found; the behavior's prompts by default.
        config: The settings.
        progress: Told of the steps.

    Returns:
        The dissection. Where the model does not show the behavior it ends at the gate, with
        ``explained`` false and the reason in ``sentence``.

    Raises:
        ModelSupportError: If the model is not a transformer.
        EmptyDataError: If no item of the behavior fits the model's tokenizer.
        ConfigError: If the coder has not one site.
        SiteError: If the model does not have its site.
        ShapeError: If its width is not that of the site.
    """
    settings = config or Config()
    task = get(behavior, seed=settings.seed) if isinstance(behavior, str) else behavior
    other = get(versus, seed=settings.seed) if isinstance(versus, str) else versus
    anatomy = require_anatomy(model.anatomy, "A dissection")
    coded = None if sae is None else with_coder(model, sae)
    watch = _Watch(progress)
    examples = task.prepare(model)
    gate = watch("check", lambda: check(model, task, seed=settings.seed, examples=examples))
    found = Dissection(
        behavior=task.name,
        title=task.title,
        description=task.description,
        model=model.name,
        shape=f"{anatomy.n_layers} blocks, {anatomy.n_heads} heads, width {anatomy.d_model}",
        config={"n": task.n, **config_dict(settings)},
        check=gate,
        seconds=dict(watch.seconds),
        provenance=collect(model, config_dict(settings), seed=settings.seed),
    )
    if settings.gate and not gate.passed:
        return found
    explained = _explained(model, task, other, found, settings, watch)
    if sae is None or coded is None:
        return explained
    return _with_latents(coded, sae, task, explained, text, settings, watch)


def _explained(
    model: Model,
    task: Behavior,
    other: Behavior | None,
    found: Dissection,
    settings: Config,
    watch: _Watch,
) -> Dissection:
    examples = task.prepare(model)
    train, validation, test = (examples.split(s) for s in ("train", "validation", "test"))
    located = watch(
        "locate",
        lambda: locate(
            model,
            train,
            test,
            metric=task.metric,
            ablation=settings.ablation,
            method=settings.method,
            progress=watch.progress,
        ),
    )
    scores = located.exact if settings.method == "exact" else located.scores
    circuit, curve = watch(
        "cut",
        lambda: cut(
            model,
            validation,
            scores.ranking(),
            faithfulness=settings.faithfulness,
            ablation=settings.ablation,
            metric=task.metric,
            reference=train,
            method=scores.method,
            seed=settings.seed,
        ),
    )
    proof, verdict = watch(
        "prove",
        lambda: prove(
            model,
            (train, validation, test),
            scores,
            circuit,
            curve,
            found.check if settings.gate else None,
            config=settings,
            metric=task.metric,
            progress=watch.progress,
        ),
    )
    found = _described(
        model, task, other, (train, validation, test), circuit, found, settings, watch
    )
    reduction = watch(
        "reduce", lambda: reduce(model, train, test, metric=task.metric, seed=settings.seed)
    )
    operation = watch(
        "operate", lambda: operate(model, task.name, train, test, circuit, seed=settings.seed)
    )
    return replace(
        found,
        located=located,
        circuit=circuit,
        curve=curve,
        proof=proof,
        verdict=verdict,
        reduction=reduction,
        operation=operation,
        seconds=dict(watch.seconds),
    )


def _with_latents(
    coded: Model,
    coder: SAE,
    task: Behavior,
    found: Dissection,
    text: Text | None,
    settings: Config,
    watch: _Watch,
) -> Dissection:
    """Return the dissection with the latents that carry the behavior, or why there are none."""
    examples, circuit = task.prepare(coded), found.circuit
    if circuit is None:
        return found
    train, validation, test = (examples.split(s) for s in ("train", "validation", "test"))
    try:
        named = watch(
            "latents",
            lambda: name_latents(
                coded,
                coder,
                (train, validation, test),
                circuit,
                text=text,
                metric=task.metric,
                seed=settings.seed,
                progress=watch.progress,
            ),
        )
    except (EmptyDataError, MetricError) as error:
        return replace(found, notes={**found.notes, "latents": str(error)})
    return replace(found, latents=named, seconds=dict(watch.seconds))


def _described(
    model: Model,
    task: Behavior,
    other: Behavior | None,
    splits: tuple[Examples, Examples, Examples],
    circuit: Circuit,
    found: Dissection,
    settings: Config,
    watch: _Watch,
) -> Dissection:
    """Return the dissection with edges, names and the second condition, as far as asked for.

    A model that a step does not fit keeps the rest; the reason is noted.
    """
    notes: dict[str, str] = {}

    def attempt(step: str, wanted: bool, work: Callable[[], T]) -> T | None:
        if not wanted:
            return None
        try:
            return watch(step, work)
        except (ModelSupportError, EmptyDataError, MetricError) as error:
            notes[step] = str(error)
            return None

    wiring = attempt(
        "wire",
        settings.edges != "off",
        lambda: wire(model, task, splits, config=settings, progress=watch.progress),
    )
    names = attempt(
        "name",
        settings.names,
        lambda: name_parts(
            model,
            task,
            circuit=circuit,
            detectors=OF_PARTS,
            seed=settings.seed,
            progress=watch.progress,
        ),
    )
    versus = None
    if other is not None:
        contrast = other
        versus = attempt(
            "versus",
            True,
            lambda: compare(
                model,
                task,
                contrast,
                finder=settings.method,
                faithfulness=settings.faithfulness,
                ablation=settings.ablation,
                metric=task.metric,
                seed=settings.seed,
            ),
        )
    return replace(found, wiring=wiring, names=names, versus=versus, notes=notes)


OF_PARTS = tuple(d.name for d in DETECTORS if d.kind in ("head", "pair"))
"""Detectors of heads and pairs of heads: the circuit has no single neurons."""

STEPS = (
    "check", "locate", "cut", "prove", "wire", "name", "versus", "reduce", "operate", "latents",
)  # fmt: skip
"""The steps in order."""


class _Watch:
    """Times the steps and passes their progress on."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    def __call__(self, step: str, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = work()
        self.seconds[step] = round(time.perf_counter() - began, 2)
        self.progress.step(STEPS.index(step) + 1, len(STEPS), step)
        return result
