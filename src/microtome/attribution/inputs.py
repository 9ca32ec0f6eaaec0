"""Input attribution: which tokens of the prompt the answer rests on, rather than the wrong one.

The metric is contrastive (answer minus wrong answer), so what speaks for both cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from microtome.attribution.embeddings import embed, embedding_table
from microtome.attribution.patching import single_row
from microtome.attribution.results import InputAttribution
from microtome.behaviors.behavior import Behavior
from microtome.behaviors.evaluate import batches
from microtome.behaviors.metrics import LastTokenMetric, Metric
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.core.seeds import rng
from microtome.errors import ConfigError, MetricError, PairError, UnknownNameError, nearest
from microtome.tracing.catalog import require_anatomy
from microtome.tracing.sites import Site, at

if TYPE_CHECKING:
    from microtome.behaviors.examples import Example, Examples
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model

Method = Literal["integrated_gradients", "gradient_x_input", "occlusion", "value_zeroing"]
Baseline = Literal["corrupt", "zero", "mean", "resample"]

METHODS: tuple[str, ...] = get_args(Method)
BASELINES: tuple[str, ...] = get_args(Baseline)

_USUAL: dict[str, str | None] = {
    "integrated_gradients": "corrupt",
    "gradient_x_input": "zero",
    "occlusion": "mean",
    "value_zeroing": None,
}
_SPEAKS = {
    "corrupt": "the corrupt prompt's embeddings",
    "zero": "zero",
    "mean": "the mean embedding of the vocabulary",
    "resample": "embeddings of tokens drawn from all clean prompts",
}
_MEANING = {
    "integrated_gradients": (
        "Share of the metric's change from {base} to the clean prompt's token embeddings, "
        "integrated along the straight line between them (Sundararajan et al. 2017)."
    ),
    "gradient_x_input": (
        "Gradient of the metric times the token's embedding minus {base}: the first-order effect."
    ),
    "occlusion": "Drop of the metric when the token's embedding alone is replaced by {base}.",
    "value_zeroing": (
        "Drop of the metric when the token's value vectors are zero in every block that has "
        "attention, its keys and queries kept (after Mohebbi et al. 2023, who zero one block at a "
        "time and measure that block's output); representation_change is the cosine distance of "
        "the last residual stream at the prompt's end."
    ),
}
_EMBEDDING = at("embed.token")


def input_attribution(
    model: Model,
    examples: Examples | Behavior,
    *,
    method: str = "integrated_gradients",
    metric: str | Metric = "logit_difference",
    steps: int = 32,
    baseline: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress = quiet,
) -> InputAttribution:
    """Attribute a metric at the prompt's end to the tokens of the clean prompt, per example.

    Args:
        model: A transformer.
        examples: Examples prepared for it, or a behavior (all of its splits are taken).
        method: ``integrated_gradients``, ``gradient_x_input``, ``occlusion`` or
            ``value_zeroing``.
        metric: A metric that reads the prompt's end.
        steps: Gauss-Legendre points of integrated gradients.
        baseline: What stands for an absent token: ``corrupt`` (the other prompt's embedding there),
            ``zero``, ``mean`` (of the vocabulary) or ``resample`` (tokens drawn from all clean
            prompts). By default corrupt for integrated gradients, zero for gradient x input, mean
            for occlusion; value zeroing takes none.
        seed: For ``resample``.
        batch_size: Rows per pass; it does not change the values beyond rounding.
        progress: Told how far it is.

    Raises:
        ConfigError: If the steps are not positive, or value zeroing is given a baseline.
        MetricError: If the metric needs several rows, or has no gradient where one is needed.
        PairError: If a corrupt prompt of another length is to be the baseline.
        SiteAbsentError: If the model's embeddings or values cannot be reached.
        UnknownNameError: If there is no such method or baseline.

    Example:
        >>> import microtome as mt
        >>> from microtome.attribution import input_attribution
        >>> model = mt.load("python-code")
        >>> pair = mt.pair("x = 'data", 'x = "data', answer="'", wrong='"')
        >>> found = input_attribution(model, pair)
        >>> found.tokens[0][int(found.values[0].argmax())]
        "'"
    """
    key, chosen_baseline = _checked(method, baseline, steps)
    prepared = examples.prepare(model) if isinstance(examples, Behavior) else examples
    task = _Task(
        model,
        single_row(metric, "Input attribution"),
        chosen_baseline,
        _pool(prepared, seed),
        steps,
        batch_size,
    )
    require_anatomy(model.anatomy, "Input attribution")
    parts: dict[int, _Part] = {}
    for places in batches(prepared, batch_size):
        found = _METHODS[key](task, prepared.take(places))
        parts.update({place: found.row(n) for n, place in enumerate(places)})
        progress.step(len(parts), len(prepared), "input attribution")
    settings = {"method": key, "metric": task.metric.name, "baseline": chosen_baseline}
    if key == "integrated_gradients":
        settings["steps"] = str(steps)
    return _result(task, prepared, [parts[i] for i in range(len(prepared))], settings, seed)


@dataclass(frozen=True, eq=False)
class _Task:
    model: Model
    metric: LastTokenMetric
    baseline: str | None
    drawn: Callable[[Example], Sequence[int]]
    steps: int
    batch_size: int

    def measure(self, chunk: Examples) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return the metric of a batch, refusing one without a gradient."""

        def measured(logits: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            values = self.metric(logits, lengths, chunk)
            if torch.is_grad_enabled() and not values.requires_grad:
                raise MetricError(
                    f"{self.metric.name} has no gradient; take logit_difference, or occlusion or "
                    "value_zeroing, which need none."
                )
            return values

        return measured

    def score(self, chunk: Examples, changes: Sequence[Intervention] = ()) -> np.ndarray:
        """Return the metric of each example's clean prompt under changes."""
        trace = self.model.trace(chunk.clean, interventions=changes, logits="last")
        if trace.logits is None:
            raise MetricError("The model returned no logits to measure.")
        return self.metric(trace.logits, trace.lengths, chunk).double().cpu().numpy()

    def base(self, chunk: Examples) -> torch.Tensor:
        """Return what stands for absent tokens ``[batch, pos, d_model]``."""
        what = "Input attribution"
        if self.baseline == "corrupt":
            _same_length(chunk)
            return embed(self.model, chunk.corrupt, what)
        if self.baseline == "resample":
            return embed(self.model, [self.drawn(e) for e in chunk], what)
        clean = embed(self.model, chunk.clean, what)
        if self.baseline == "zero":
            return torch.zeros_like(clean)
        return embedding_table(self.model, what).mean(0).expand_as(clean)


@dataclass(frozen=True, eq=False)
class _Part:
    """Attributions ``[batch, pos]`` and what belongs to them, or one row of these."""

    values: np.ndarray
    total: np.ndarray
    start: np.ndarray | None = None
    moved: np.ndarray | None = None

    def row(self, number: int) -> _Part:
        start, moved = self.start, self.moved
        return _Part(
            self.values[number],
            self.total[number],
            None if start is None else start[number],
            None if moved is None else moved[number],
        )


def _integrated_gradients(task: _Task, chunk: Examples) -> _Part:
    base = task.base(chunk)
    nodes, weights = np.polynomial.legendre.leggauss(task.steps)
    slope = torch.zeros_like(base, dtype=torch.float64)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        change = _EMBEDDING.apply(_between(base, float(node)))
        found = task.model.gradients(
            task.measure(chunk), _EMBEDDING, chunk.clean, interventions=[change], logits="last"
        )
        slope += float(weight) * found[_EMBEDDING].double()
    distance = embed(task.model, chunk.clean, "Input attribution").double() - base.double()
    values = (distance * slope).sum(-1).cpu().numpy()
    return _Part(values, task.score(chunk), task.score(chunk, [_EMBEDDING.set(base)]))


def _between(base: torch.Tensor, share: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda value: base + share * (value - base)


def _gradient_x_input(task: _Task, chunk: Examples) -> _Part:
    base = task.base(chunk)
    found = task.model.gradients(task.measure(chunk), _EMBEDDING, chunk.clean, logits="last")
    distance = found.value(_EMBEDDING).detach().double() - base.double()
    values = (distance * found[_EMBEDDING].double()).sum(-1).cpu().numpy()
    return _Part(values, found.metric.double().cpu().numpy())


def _occlusion(task: _Task, chunk: Examples) -> _Part:
    base = task.base(chunk)

    def absent(rows: list[tuple[int, int]]) -> Intervention:
        value = torch.stack([base[e, p] for e, p in rows]).unsqueeze(1)
        return _one_position(_EMBEDDING, rows).set(value)

    total = task.score(chunk)
    return _Part(total[:, None] - _without_each(task, chunk, absent)[0], total)


def _value_zeroing(task: _Task, chunk: Examples) -> _Part:
    def absent(rows: list[tuple[int, int]]) -> Intervention:
        return _one_position(at("attn.v"), rows).zero()

    total = task.score(chunk)
    scores, ends = _without_each(task, chunk, absent)
    whole = task.model.trace(chunk.clean, capture=_end(task.model), logits=None)
    plain = whole[_end(task.model)][:, 0].double().cpu()
    moved = 1 - torch.cosine_similarity(ends, plain[:, None], dim=-1)
    return _Part(total[:, None] - scores, total, moved=moved.numpy())


def _without_each(
    task: _Task, chunk: Examples, absent: Callable[[list[tuple[int, int]]], Intervention]
) -> tuple[np.ndarray, torch.Tensor]:
    """Return metric and last stream at the prompt's end with each token taken away in turn."""
    width = len(chunk[0].clean)
    cells = [(example, position) for example in range(len(chunk)) for position in range(width)]
    scores, ends = [], []
    for start in range(0, len(cells), task.batch_size):
        rows = cells[start : start + task.batch_size]
        part = chunk.take(e for e, _ in rows)
        trace = task.model.trace(
            part.clean,
            capture=_end(task.model),
            interventions=[absent(rows)],
            logits="last",
        )
        if trace.logits is None:
            raise MetricError("The model returned no logits to measure.")
        scores.append(task.metric(trace.logits, trace.lengths, part).double().cpu().numpy())
        ends.append(trace[_end(task.model)][:, 0].double().cpu())
    shape = (len(chunk), width)
    return np.concatenate(scores).reshape(shape), torch.cat(ends).reshape(*shape, -1)


_METHODS: dict[str, Callable[[_Task, Examples], _Part]] = {
    "integrated_gradients": _integrated_gradients,
    "gradient_x_input": _gradient_x_input,
    "occlusion": _occlusion,
    "value_zeroing": _value_zeroing,
}


def _one_position(site: Site, rows: list[tuple[int, int]]) -> Site:
    return site.at_positions([[position] for _, position in rows])


def _end(model: Model) -> Site:
    """Return the last residual stream at the prompt's end."""
    last = require_anatomy(model.anatomy, "Input attribution").n_layers - 1
    return at("resid_post", layer=last, pos=-1)


def _checked(method: str, baseline: str | None, steps: int) -> tuple[str, str | None]:
    key = method.replace("-", "_")
    if key not in METHODS:
        raise UnknownNameError(f"No input attribution {method!r}{nearest(key, METHODS)}.")
    if steps < 1:
        raise ConfigError(f"steps={steps}; expected at least 1 point of integration.")
    if baseline is None:
        return key, _USUAL[key]
    if key == "value_zeroing":
        raise ConfigError(f"value_zeroing takes no baseline, got {baseline!r}; leave it out.")
    if baseline not in BASELINES:
        raise UnknownNameError(f"No baseline {baseline!r}{nearest(baseline, BASELINES)}.")
    return key, baseline


def _same_length(chunk: Examples) -> None:
    for example in chunk:
        if len(example.corrupt) != len(example.clean):
            raise PairError(
                f"Example {example.index}: the clean prompt has {len(example.clean)} tokens and "
                f"the corrupt one {len(example.corrupt)}, so it cannot be the baseline. Take "
                "baseline='mean' or 'zero'."
            )


def _pool(examples: Examples, seed: int) -> Callable[[Example], Sequence[int]]:
    """Return the draw of an example's absent tokens; it does not depend on the batch."""
    pool = np.array([token for e in examples for token in e.clean])

    def drawn(example: Example) -> Sequence[int]:
        stream = rng(seed, "input attribution", str(example.index))
        return [int(t) for t in stream.choice(pool, len(example.clean))]

    return drawn


def _result(
    task: _Task,
    examples: Examples,
    parts: list[_Part],
    settings: dict[str, str | None],
    seed: int,
) -> InputAttribution:
    method, baseline = str(settings["method"]), settings["baseline"]
    total = np.array([p.total for p in parts])
    start = None if parts[0].start is None else np.array([p.start for p in parts])
    error = None
    if start is not None:
        error = np.array([p.values.sum() for p in parts]) - (total - start)
    moved = None if parts[0].moved is None else _padded([p.moved for p in parts])
    return InputAttribution(
        tokens=tuple(tuple(task.model.tokens(e.clean)) for e in examples),
        roles=tuple(_roles(e) for e in examples),
        values=_padded([p.values for p in parts]),
        total=total,
        baseline_total=start,
        completeness_error=error,
        representation_change=moved,
        method=method,
        metric=task.metric.name,
        baseline=baseline,
        meaning=_MEANING[method].format(base=_SPEAKS.get(baseline or "", "")),
        provenance=collect(task.model, settings, seed=seed),
    )


def _padded(rows: Sequence[np.ndarray | None]) -> np.ndarray:
    """Return rows of different length as one array, NaN behind their ends."""
    found = [row for row in rows if row is not None]
    whole = np.full((len(found), max(len(row) for row in found)), np.nan)
    for number, row in enumerate(found):
        whole[number, : len(row)] = row
    return whole


def _roles(example: Example) -> tuple[str, ...]:
    """Return the role of each token, an empty text for those that have none."""
    names = [""] * len(example.clean)
    for role, (first, behind) in example.roles.items():
        for position in range(first, behind):
            names[position] = names[position] or role
    return tuple(names)
