"""The main job: the steps of a dissection, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from microtome.behaviors.behavior import Behavior
from microtome.behaviors.check import check
from microtome.behaviors.registry import get
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.dissection.config import Config
from microtome.dissection.locating import locate
from microtome.dissection.operating import operate
from microtome.dissection.proving import cut, prove
from microtome.dissection.reducing import reduce
from microtome.dissection.results import Dissection, config_dict
from microtome.tracing.catalog import require_anatomy

if TYPE_CHECKING:
    from microtome.tracing.model import Model

T = TypeVar("T")


def dissect(
    model: Model,
    behavior: Behavior | str,
    *,
    config: Config | None = None,
    progress: Progress = quiet,
) -> Dissection:
    """Find the mechanism behind a behavior, test it by fixed rules, and say it in a few words.

    Steps: check the gate, locate the parts that carry the behavior, cut the smallest circuit that
    reaches the asked faithfulness, prove it on unseen templates, reduce what the model does to a
    readable rule, and operate: ablate the circuit and measure what changes.

    Args:
        model: A transformer with a tokenizer.
        behavior: A behavior, or the name of one.
        config: The settings.
        progress: Told of the steps.

    Returns:
        The dissection. Where the model does not show the behavior it ends at the gate, with
        ``explained`` false and the reason in ``sentence``.

    Raises:
        ModelSupportError: If the model is not a transformer.
        EmptyDataError: If no item of the behavior fits the model's tokenizer.
    """
    settings = config or Config()
    task = get(behavior, seed=settings.seed) if isinstance(behavior, str) else behavior
    anatomy = require_anatomy(model.anatomy, "A dissection")
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
    return _explained(model, task, found, settings, watch)


def _explained(
    model: Model, task: Behavior, found: Dissection, settings: Config, watch: _Watch
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
            progress=watch.progress,
        ),
    )
    scores = located.exact if settings.method == "exact" else located.scores
    circuit, curve = watch(
        "cut", lambda: cut(model, scores, validation, config=settings, metric=task.metric)
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


STEPS = ("check", "locate", "cut", "prove", "reduce", "operate")
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
