"""Planning a sweep: which cells there are, and which rules may be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from microtome.behaviors.behavior import Behavior
from microtome.behaviors.examples import Examples
from microtome.behaviors.metrics import LastTokenMetric, Metric, SequenceLogProbability, metric
from microtome.core.progress import Progress, quiet
from microtome.errors import (
    ConfigError,
    EmptyDataError,
    MetricError,
    PairError,
    SweepError,
    nearest,
)
from microtome.sweeps.cells import (
    GROUPED,
    HEADS,
    SINGLE,
    SWEPT,
    UNITS,
    WHOLE,
    Cell,
    Operation,
    read_at,
)
from microtome.sweeps.cost import bytes_of_token
from microtome.sweeps.execution import means_of
from microtome.sweeps.latents import (
    Units,
    chosen_latents,
    directions_of,
    rows_together,
    split_reason,
)
from microtome.sweeps.plans import Plan
from microtome.sweeps.rows import Row, SweepMetric, rows_of
from microtome.sweeps.rules import Rule, choose
from microtome.tracing.catalog import require_anatomy
from microtome.tracing.indices import resolve_index
from microtome.tracing.sites import Site, at
from microtome.tracing.vocabulary import codec_of, is_latents

if TYPE_CHECKING:
    import torch

    from microtome.models.anatomy import Anatomy
    from microtome.sweeps.results import Sweep
    from microtome.tracing.model import Model

MOST_TOKENS = 4096
"""Tokens of a wave at most: more do not make matrix products faster."""

PER_GROUP = 32
"""Rows that are recorded together at most."""

Over = Literal["pos", "role", "head", "neuron", "latent", "all"]


def plan(
    model: Model,
    behavior: Behavior | Examples,
    site: str | Site = "resid_pre",
    *,
    over: Over | None = None,
    base: Literal["clean", "corrupt"] = "corrupt",
    operation: Operation = "patch",
    metric: str | Metric = "logit_difference",
    neurons: Units | None = None,
    latents: Units | None = None,
    rules: Sequence[Rule] | None = None,
    memory_mb: float = 512.0,
    seed: int = 0,
    certify: int | None = None,
) -> Plan:
    """Plan a sweep: one intervention for each layer and position, role, head, neuron or latent.

    Args:
        model: A transformer.
        behavior: A behavior, or examples prepared for the model.
        site: One of ``resid_pre``, ``resid_mid``, ``resid_post``, ``attn.out``, ``mlp.out``,
            ``mlp.act``, ``attn.z``, ``attn.q``, ``attn.k``, ``attn.v``, ``attn.pattern`` and the
            ports ``attn.in.q``, ``attn.in.k``, ``attn.in.v``, or the latents ``SITE/NAME`` or the
            error ``SITE/NAME.error`` of an attached codec; a layer selector limits the blocks.
        over: What each layer is split by; positions for the stream and what is added to it, heads
            inside attention, neurons for ``mlp.act``, latents for a codec's.
        base: The run that is changed; a patch comes from the other run.
        operation: ``patch``, ``zero`` or ``mean`` (over the other run's positions).
        metric: A metric of the prompt's end, or ``sequence_log_probability``.
        neurons: Which neurons, for ``mlp.act``: of every block, or by block.
        latents: Which latents, likewise; by default those of the site's selector, else all that
            are active in either run.
        rules: Rules that may be used, all by default; ``()`` runs one pass for each run.
        memory_mb: Budget for the activations of one batch.
        seed: For the certificate's sample.
        certify: How many runs are repeated the naive way; one in a hundred, 3 to 32, if None.

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
    _check(chosen, operation, certify)
    axis = _axis(chosen, over)
    by_block = chosen_latents(model, chosen, examples, latents) if axis == "latent" else {}
    units = by_block or _from_start(anatomy, neurons)
    columns = _columns(anatomy, chosen, axis, examples, units)
    cells = _cells(model, chosen, axis, columns, units if isinstance(units, Mapping) else None)
    measured = _metric(metric)
    used, declined = choose(model, measured, rules, split=split_reason(model, chosen))
    lines = rows_of(measured, examples, base, model.readout)
    return Plan(
        model=model,
        examples=examples,
        lines=lines,
        site=chosen.name,
        cells=cells,
        axis=axis,
        columns=columns,
        base=base,
        operation=operation,
        metric=measured,
        rules=used,
        declined=declined,
        tokens=_tokens(model, anatomy, lines, memory_mb),
        per_group=_per_group(model, chosen, lines, memory_mb),
        means=_means(model, examples, chosen.name, cells, base) if operation == "mean" else {},
        seed=seed,
        certify=certify,
        directions=directions_of(model, chosen, by_block),
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
    neurons: Units | None = None,
    latents: Units | None = None,
    rules: Sequence[Rule] | None = None,
    memory_mb: float = 512.0,
    seed: int = 0,
    certify: int | None = None,
    progress: Progress = quiet,
) -> Sweep:
    """Plan a sweep and execute it; see :func:`plan` for the arguments."""
    planned = plan(
        model, behavior, site, over=over, base=base, operation=operation, metric=metric,
        neurons=neurons, latents=latents, rules=rules, memory_mb=memory_mb, seed=seed,
        certify=certify,
    )  # fmt: skip
    return planned.execute(progress)


def _check(site: Site, operation: str, certify: int | None) -> None:
    if site.name not in SWEPT and not codec_of(site.name):
        raise SweepError(f"{site.name!r} cannot be swept{nearest(site.name, SWEPT)}.")
    if operation not in ("patch", "zero", "mean"):
        raise ConfigError(f"operation={operation!r}; expected patch, zero or mean.")
    if certify is not None and certify < 1:
        raise ConfigError(f"certify={certify}; expected at least one run.")


def _means(
    model: Model, examples: Examples, name: str, cells: Sequence[Cell], base: str
) -> dict[int, torch.Tensor]:
    other = examples.corrupt if base == "clean" else examples.clean
    names = {cell.layer: f"blocks.{cell.layer}.{read_at(name)}" for cell in cells}
    return means_of(model, examples, other, names)


def _metric(name: str | Metric) -> SweepMetric:
    chosen = metric(name)
    if not isinstance(chosen, LastTokenMetric | SequenceLogProbability):
        raise MetricError(
            f"A sweep cannot measure {chosen.name}: it compares with the unchanged run."
        )
    return chosen


def _from_start(anatomy: Anatomy, neurons: Units | None) -> Units | None:
    """Return neurons by block counted from the first, without the blocks that have none."""
    if not isinstance(neurons, Mapping):
        return neurons
    named = {layer: tuple(some) for layer, some in neurons.items() if some}
    return {n: resolve_index(some, anatomy.d_mlp, "neuron") for n, some in named.items()}


def _axis(site: Site, over: Over | None) -> Over:
    """Return what each layer is split by.

    Raises:
        ConfigError: If there is no such axis.
        SweepError: If the site has none.
    """
    if over is None:
        if is_latents(site.name):
            return "latent"
        return "head" if site.name in HEADS else "neuron" if site.name == "mlp.act" else "pos"
    known = get_args(Over)
    if over not in known:
        raise ConfigError(f"over={over!r}; expected one of {', '.join(known)}.")
    fits = {
        "head": site.name in HEADS,
        "neuron": site.name == "mlp.act",
        "latent": is_latents(site.name),
    }
    if not fits.get(over, True):
        instead = {"head": "attn.z", "neuron": "mlp.act", "latent": "the latents SITE/NAME"}[over]
        raise SweepError(
            f"{site.name} has no {over}s to sweep over; sweep over pos, role or all, or sweep "
            f"{instead}."
        )
    return over


def _columns(
    anatomy: Anatomy, site: Site, axis: Over, examples: Examples, units: Units | None
) -> tuple[int | str, ...]:
    if axis == "head":
        count = anatomy.n_kv_heads if site.name in GROUPED else anatomy.n_heads
        heads = site.head
        return tuple(range(count)) if heads is None else resolve_index(heads, count, "head")
    if axis in SINGLE:
        if not units:
            raise SweepError(
                "A sweep over neurons needs neurons=[...]: all of them would take too long."
            )
        given = units.values() if isinstance(units, Mapping) else [units]
        every = tuple(sorted({n for some in given for n in some}))
        return resolve_index(every, anatomy.d_mlp, "neuron") if axis == "neuron" else every
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
    model: Model,
    site: Site,
    axis: Over,
    columns: tuple[int | str, ...],
    units: Mapping[int, Sequence[int]] | None,
) -> tuple[Cell, ...]:
    layers = [
        layer
        for _, layer in model.catalog.resolve(Site(site.name, site.layer), write=True)
        if layer is not None
    ]
    if units is not None and not set(units) <= set(layers):
        wrong = sorted(set(units) - set(layers))[0]
        raise SweepError(f"neurons= names block {wrong}; {site} is there in {layers}.")
    cells = []
    for layer in layers:
        for column in columns:
            if units is not None and column not in units.get(layer, ()):
                continue
            unit = int(column) if axis in UNITS else WHOLE
            place = column if axis in ("pos", "role") else None
            cells.append(Cell(layer, unit, place))
    return tuple(cells)


def _per_group(model: Model, site: Site, lines: Sequence[Row], memory_mb: float) -> int:
    """Return how many rows are recorded together: fewer where they have many latents."""
    if not codec_of(site.name):
        return PER_GROUP
    width = max(len(row.base) for row in lines)
    return rows_together(model, site, width, memory_mb, PER_GROUP)


def _tokens(model: Model, anatomy: Anatomy, lines: Sequence[Row], memory_mb: float) -> int:
    """Return how many tokens of a wave fit the budget."""
    width = max(len(row.base) for row in lines)
    token = bytes_of_token(model, anatomy) / 2**20
    fits = memory_mb / token
    if not fits >= width:
        raise SweepError(
            f"memory_mb={memory_mb:.3g} is too small: one row of {width} tokens needs "
            f"{width * token:.3g} MB."
        )
    return int(min(fits, MOST_TOKENS))
