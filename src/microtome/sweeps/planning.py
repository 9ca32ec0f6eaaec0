"""Planning a sweep: which cells there are, and which rules may be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from microtome.behaviors.behavior import Behavior
from microtome.behaviors.examples import Examples
from microtome.behaviors.metrics import LastTokenMetric, Metric, metric
from microtome.core.progress import Progress, quiet
from microtome.errors import (
    ConfigError,
    EmptyDataError,
    MetricError,
    PairError,
    SweepError,
    nearest,
)
from microtome.sweeps.cells import SWEPT, WHOLE, Cell, Operation
from microtome.sweeps.execution import means_of
from microtome.sweeps.plans import Plan, Rule
from microtome.tracing.catalog import require_anatomy
from microtome.tracing.sites import Site, at, resolve_index

if TYPE_CHECKING:
    import torch

    from microtome.models.anatomy import Anatomy
    from microtome.sweeps.results import Sweep
    from microtome.tracing.model import Model

RULES: tuple[Rule, ...] = ("batch", "restart")
"""``batch``: many cells share a forward pass. ``restart``: work starts at the changed block."""

Over = Literal["pos", "role", "head", "neuron", "all"]


def plan(
    model: Model,
    behavior: Behavior | Examples,
    site: str | Site = "resid_pre",
    *,
    over: Over | None = None,
    base: Literal["clean", "corrupt"] = "corrupt",
    operation: Operation = "patch",
    metric: str | Metric = "logit_difference",
    neurons: Sequence[int] | None = None,
    rules: Sequence[Rule] | None = None,
    memory_mb: float = 512.0,
    seed: int = 0,
) -> Plan:
    """Plan a sweep: one intervention for each layer and position, role, head or neuron.

    Args:
        model: A transformer.
        behavior: A behavior, or examples prepared for the model.
        site: One of ``resid_pre``, ``resid_mid``, ``resid_post``, ``attn.out``, ``mlp.out``,
            ``attn.z`` and ``mlp.act``; a layer selector limits the blocks.
        over: What each layer is split by; positions for the stream and what is added to it, heads
            for ``attn.z``, neurons for ``mlp.act``.
        base: The run that is changed; a patch comes from the other run.
        operation: ``patch``, ``zero`` or ``mean`` (over the other run's positions).
        metric: A metric that reads the prompt's end.
        neurons: Which neurons, for ``mlp.act``.
        rules: Rules that may be used, all by default; ``()`` runs one pass for each run.
        memory_mb: Budget for the activations of one batch.
        seed: For the certificate's sample.

    Returns:
        The plan: ``cost()``, ``explain()``, ``execute()``.

    Raises:
        SweepError: If the site cannot be swept, or the budget is too small for one row.
        MetricError: If the metric needs several rows for an example.
        PairError: If positions are swept over examples of different lengths.
    """
    anatomy = require_anatomy(model.anatomy, "A sweep")
    examples = behavior.prepare(model) if isinstance(behavior, Behavior) else behavior
    if len(examples) == 0:
        raise EmptyDataError("There are no examples to sweep over.")
    chosen = at(site)
    if chosen.name not in SWEPT:
        raise SweepError(f"{chosen.name!r} cannot be swept{nearest(chosen.name, SWEPT)}.")
    if operation not in ("patch", "zero", "mean"):
        raise ConfigError(f"operation={operation!r}; expected patch, zero or mean.")
    axis: Over = over or (
        "head" if chosen.name == "attn.z" else "neuron" if chosen.name == "mlp.act" else "pos"
    )
    columns = _columns(anatomy, chosen, axis, examples, neurons)
    cells = _cells(model, chosen, axis, columns)
    used, declined = _rules(anatomy, rules)
    return Plan(
        model=model,
        examples=examples,
        site=chosen.name,
        cells=cells,
        axis=axis,
        columns=columns,
        base=base,
        operation=operation,
        metric=_metric(metric),
        rules=used,
        declined=declined,
        rows=_rows(anatomy, examples, memory_mb),
        means=_means(model, examples, chosen.name, cells, base) if operation == "mean" else {},
        seed=seed,
    )


def sweep(
    model: Model,
    behavior: Behavior | Examples,
    site: str | Site = "resid_pre",
    *,
    over: Over | None = None,
    base: Literal["clean", "corrupt"] = "corrupt",
    operation: Operation = "patch",
    metric: str | Metric = "logit_difference",
    neurons: Sequence[int] | None = None,
    rules: Sequence[Rule] | None = None,
    memory_mb: float = 512.0,
    seed: int = 0,
    progress: Progress = quiet,
) -> Sweep:
    """Plan a sweep and execute it; see :func:`plan` for the arguments."""
    planned = plan(
        model, behavior, site, over=over, base=base, operation=operation, metric=metric,
        neurons=neurons, rules=rules, memory_mb=memory_mb, seed=seed,
    )  # fmt: skip
    return planned.execute(progress)


def _means(
    model: Model, examples: Examples, name: str, cells: Sequence[Cell], base: str
) -> dict[int, torch.Tensor]:
    other = examples.corrupt if base == "clean" else examples.clean
    names = {cell.layer: f"blocks.{cell.layer}.{name}" for cell in cells}
    return means_of(model, examples, other, names)


def _metric(name: str | Metric) -> LastTokenMetric:
    chosen = metric(name)
    if not isinstance(chosen, LastTokenMetric):
        raise MetricError(
            f"A sweep needs a metric that reads the prompt's end; {chosen.name} does not."
        )
    return chosen


def _columns(
    anatomy: Anatomy, site: Site, axis: Over, examples: Examples, neurons: Sequence[int] | None
) -> tuple[int | str, ...]:
    if axis == "head":
        heads = site.head
        return (
            tuple(range(anatomy.n_heads))
            if heads is None
            else resolve_index(heads, anatomy.n_heads, "head")
        )
    if axis == "neuron":
        if not neurons:
            raise SweepError(
                "A sweep over neurons needs neurons=[...]: all of them would take too long."
            )
        return resolve_index(tuple(neurons), anatomy.d_mlp, "neuron")
    if axis == "role":
        common = [r for r in examples[0].roles if all(r in e.roles for e in examples)]
        if not common:
            raise SweepError("The examples share no role; sweep over positions instead.")
        return tuple(common)
    if axis == "all":
        return ("all",)
    lengths = sorted({len(e.clean) for e in examples})
    if len(lengths) > 1:
        raise PairError(
            f"The examples have {lengths[0]} to {lengths[-1]} tokens, so a position means "
            "different things in them. Sweep over='role', or take examples of one length."
        )
    wanted = site.pos
    return tuple(range(lengths[0])) if wanted is None else resolve_index(wanted, lengths[0], "pos")


def _cells(
    model: Model, site: Site, axis: Over, columns: tuple[int | str, ...]
) -> tuple[Cell, ...]:
    layers = [
        layer
        for _, layer in model.catalog.resolve(Site(site.name, site.layer), write=True)
        if layer is not None
    ]
    cells = []
    for layer in layers:
        for column in columns:
            unit = int(column) if axis in ("head", "neuron") else WHOLE
            place = column if axis in ("pos", "role") else None
            cells.append(Cell(layer, unit, place))
    return tuple(cells)


def _rules(
    anatomy: Anatomy, wanted: Sequence[Rule] | None
) -> tuple[tuple[Rule, ...], dict[str, str]]:
    asked = RULES if wanted is None else tuple(wanted)
    unknown = [r for r in asked if r not in RULES]
    if unknown:
        raise ConfigError(f"Unknown rule {unknown[0]!r}{nearest(unknown[0], RULES)}.")
    declined: dict[str, str] = {r: "it was switched off" for r in RULES if r not in asked}
    if "restart" in asked and not anatomy.tail.exact:
        declined["restart"] = (
            f"the logits cannot be read off the last stream: {anatomy.tail.reason}"
        )
    odd = next((b.reasons["*"] for b in anatomy.blocks if "*" in b.reasons), "")
    if "restart" in asked and odd:
        declined["restart"] = odd
    if "batch" in declined and "restart" in asked:
        declined.setdefault("restart", "it needs batch")
    return tuple(r for r in asked if r not in declined), declined


def _rows(anatomy: Anatomy, examples: Examples, memory_mb: float) -> int:
    from microtome.sweeps.cost import COPIES

    width = max(len(e.clean) for e in examples)
    row = width * max(anatomy.d_model, anatomy.d_mlp, 1) * COPIES * 4 / 2**20
    fits = int(memory_mb / row)
    if fits < 1:
        raise SweepError(
            f"memory_mb={memory_mb:.3g} is too small: one row of {width} tokens needs {row:.3g} MB."
        )
    return min(fits, 512)
