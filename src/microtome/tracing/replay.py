"""Recording a forward pass so that it can be restarted at any block, and replaying from there.

The model's own blocks run with the arguments they were called with, expanded over rows. Nothing
here knows an architecture; whether a replay equals the whole pass is checked by verification and by
the certificate of each sweep.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from microtome.errors import ModelSupportError, ShapeError
from microtome.models.discovery import logits_of
from microtome.models.probe import first_tensor
from microtome.tracing.arguments import Rows, argument_facts, cut, for_rows
from microtome.tracing.call import Call
from microtome.tracing.catalog import require_anatomy
from microtome.tracing.forward import forward_arguments
from microtome.tracing.instrument import Instrument
from microtome.tracing.interventions import Intervention
from microtome.tracing.passes import require_eval
from microtome.tracing.positions import Positions, of_batch
from microtome.tracing.sites import sites_of
from microtome.tracing.suffix import (
    KeptKeys,
    Keys,
    SuffixFacts,
    cache_name,
    suffix_facts,
    with_mask,
)
from microtome.tracing.turns import turn

if TYPE_CHECKING:
    from microtome.tracing.model import Model
    from microtome.tracing.prompts import Prompts
    from microtome.tracing.sites import Site


@dataclass(frozen=True, eq=False)
class BaseRun:
    """A forward pass with what is needed to restart it at any block.

    Attributes:
        tokens: Token ids ``[batch, pos]``, right-padded.
        lengths: Tokens of each row.
        streams: Residual stream into every block and out of the last, ``n_layers + 1`` tensors
            ``[batch, pos, d_model]``.
        names: What each block calls the stream where it is passed by name, else ``""``.
        arguments: The other arguments of each block by name.
        logits: ``[batch, pos, vocab]``, or at the last position only.
        keys: Keys and values by the cache's layer number, where they were asked for.
        captured: Values of sites that were asked for, by text form of the site.
    """

    tokens: torch.Tensor
    lengths: tuple[int, ...]
    streams: tuple[torch.Tensor, ...]
    names: tuple[str, ...]
    arguments: tuple[dict[str, Any], ...]
    logits: torch.Tensor
    keys: Keys | None = None
    captured: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Entry:
    """Rows that enter a replay at one block.

    Attributes:
        layer: The block.
        stream: Residual stream into it, from the first position that is computed
            ``[n, pos - first, d_model]``.
        rows: Row of the base run that each row comes from ``[n]``.
    """

    layer: int
    stream: torch.Tensor
    rows: torch.Tensor


def record(
    model: Model,
    prompts: Prompts,
    *,
    keys: bool = False,
    capture: str | Site | Sequence[str | Site] = (),
    logits: Literal["all", "last"] = "all",
) -> BaseRun:
    """Run the model once without a cache and keep what a restart at any block needs.

    Args:
        model: The model.
        prompts: Texts or token ids.
        keys: Also keep keys and values, for replays of the last positions.
        capture: Sites whose values are kept, too.
        logits: At all positions, or where each row's answer is read, if the model can.

    Raises:
        ModelSupportError: If a block did not run exactly once on one residual stream.
    """
    anatomy = require_anatomy(model.anatomy, "Recording a base run")
    require_eval(model.module, model.name)
    batch = model.batch(prompts)
    if "*" in anatomy.blocks[0].reasons:
        raise ModelSupportError(f"The pass cannot be restarted: {anatomy.blocks[0].reasons['*']}.")
    recorder = _Recorder(KeptKeys({}) if keys else None)
    blocks = [model.module.get_submodule(b.path) for b in anatomy.blocks]
    wanted = sites_of(capture)
    call = Call(of_batch(batch.lengths, batch.tokens.shape[1]))
    with turn(model.module), contextlib.ExitStack() as stack:
        if wanted:
            instrument = Instrument(model.module, model.catalog, captures=wanted)
            stack.enter_context(instrument.active(call))
        for block in blocks:
            hook = block.register_forward_pre_hook(recorder.before, with_kwargs=True)
            stack.callback(hook.remove)
        stack.callback(blocks[-1].register_forward_hook(recorder.after).remove)
        stack.enter_context(torch.no_grad())
        arguments = forward_arguments(model.module, anatomy, batch, logits, model.readout)
        output = model.module(batch.tokens, **arguments)
    if len(recorder.streams) != len(blocks) or len(recorder.last) != 1:
        raise ModelSupportError(
            f"{len(blocks)} blocks ran {len(recorder.streams)} times in one pass, so it cannot be "
            "restarted."
        )
    return BaseRun(
        batch.tokens,
        batch.lengths,
        (*recorder.streams, recorder.last[0]),
        tuple(recorder.names),
        tuple(recorder.arguments),
        logits_of(output),
        recorder.cache.kept if recorder.cache is not None else None,
        {name: kept.value() for name, kept in call.captured.items()},
    )


class _Recorder:
    """What the hooks of a recorded pass keep."""

    def __init__(self, cache: KeptKeys | None) -> None:
        self.cache = cache
        self.names: list[str] = []
        self.arguments: list[dict[str, Any]] = []
        self.streams: list[torch.Tensor] = []
        self.last: list[torch.Tensor] = []

    def before(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stream, name, named = _split(block, args, kwargs)
        self.streams.append(stream)
        self.names.append(name)
        self.arguments.append(named)
        if self.cache is None:
            return None
        cached = {**named, cache_name(block, named): self.cache}
        return ((), {name: stream, **cached}) if name else ((stream,), cached)

    def after(self, _block: nn.Module, _args: Any, output: Any) -> None:
        value = first_tensor(output)
        if value is not None:
            self.last.append(value)


def _split(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Tensor, str, dict[str, Any]]:
    """Return the residual stream, its name if passed by name, and the other arguments by name."""
    if args and isinstance(args[0], torch.Tensor):
        parameters = list(inspect.signature(block.forward).parameters)
        behind = dict(zip(parameters[1:], args[1:], strict=False))
        if len(behind) < len(args) - 1:
            raise ModelSupportError(
                f"{type(block).__name__} takes unnamed arguments, so it cannot be restarted there."
            )
        return args[0], "", {**behind, **kwargs}
    for key, value in kwargs.items():
        if isinstance(value, torch.Tensor):
            named = {k: v for k, v in kwargs.items() if k != key}
            return value, key, named
    raise ModelSupportError("A block received no tensor, so the pass cannot be restarted there.")


def replay(
    model: Model,
    base: BaseRun,
    start: int,
    stream: torch.Tensor,
    *,
    rows: torch.Tensor,
    interventions: Iterable[Intervention] = (),
) -> torch.Tensor:
    """Run the model's own blocks from one block on.

    Args:
        model: The model.
        base: The pass the rows were taken from.
        start: First block to run.
        stream: Residual stream into it ``[n, pos, d_model]``.
        rows: Row of the base run that each new row comes from ``[n]``.
        interventions: Changes at sites of the blocks from ``start`` on; their rows are new rows.

    Returns:
        The residual stream after the last block ``[n, pos, d_model]``.

    Raises:
        ShapeError: If the stream has not one row for each entry of ``rows``, or another width.
    """
    return wave(model, base, [Entry(start, stream, rows)], interventions=interventions)


def wave(
    model: Model,
    base: BaseRun,
    entries: Sequence[Entry],
    *,
    first: int = 0,
    interventions: Iterable[Intervention] = (),
    facts: SuffixFacts | None = None,
) -> torch.Tensor:
    """Walk the blocks once; at each block its entries join the rows that are under way.

    Args:
        model: The model.
        base: The pass all rows were taken from, recorded with keys where ``first`` is not 0.
        entries: Rows and where they enter; ``layer`` may be ``n_layers`` (nothing is left to run).
        first: First position that is computed; the model has to pass
            :func:`microtome.tracing.suffix.suffix_facts` for others than 0.
        interventions: Changes at sites of the blocks; their rows count all entries' rows in order
            of entry, and positions are absolute. A row may only be changed in blocks it runs.
        facts: How arguments are cut; found out by default.

    Returns:
        The residual stream after the last block ``[n, pos - first, d_model]``, rows in order of
        entry.

    Raises:
        ShapeError: If a stream has not one row for each entry of ``rows``, or another width.
        ModelSupportError: If the last positions cannot be replayed alone.
    """
    anatomy = require_anatomy(model.anatomy, "Replaying blocks")
    ordered = sorted(entries, key=lambda entry: entry.layer)
    width = base.streams[0].shape[1]
    for entry in ordered:
        expected = (len(entry.rows), width - first, base.streams[0].shape[2])
        if tuple(entry.stream.shape) != expected:
            raise ShapeError(
                f"The stream has shape {tuple(entry.stream.shape)}; expected {expected}."
            )
    cutting = _cutting(model, base, first, facts)
    counts = argument_facts(model).rows
    wanted = tuple(interventions)
    instrument = Instrument(model.module, model.catalog, interventions=wanted) if wanted else None
    stream = base.streams[0][:0, first:]
    rows = torch.zeros(0, dtype=torch.long)
    passed: Counter[str] = Counter()
    call = None
    with turn(model.module), contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if instrument is not None:
            stack.enter_context(instrument.active())
        for number in range(anatomy.n_layers + 1):
            joining = [entry for entry in ordered if entry.layer == number]
            if joining:
                stream = torch.cat([stream, *(e.stream.to(stream) for e in joining)])
                rows = torch.cat([rows, *(e.rows for e in joining)])
            if number == anatomy.n_layers or not len(rows):
                continue
            if instrument is not None:
                lengths = [base.lengths[r] for r in rows.tolist()]
                call = Call(_positions(lengths, width, first), passed=passed)
                instrument.serve(call)
            block = model.module.get_submodule(anatomy.blocks[number].path)
            stream = _run_block(block, stream, base, number, rows, counts[number], cutting)
    if instrument is not None and call is not None:
        instrument.check(call)
    return stream


def _positions(lengths: Sequence[int], width: int, first: int) -> Positions:
    whole = of_batch(lengths, width)
    return whole if not first else replace(whole, width=width - first, offset=first)


@dataclass(frozen=True, eq=False)
class _Cutting:
    """How the arguments of blocks are cut to the last positions."""

    model: Model
    facts: SuffixFacts
    first: int
    width: int


def _cutting(model: Model, base: BaseRun, first: int, facts: SuffixFacts | None) -> _Cutting | None:
    if not first:
        return None
    known = facts or suffix_facts(model)
    if not known.usable:
        raise ModelSupportError(f"The last positions cannot be replayed alone: {known.reason}.")
    if base.keys is None:
        raise ModelSupportError("The base run was recorded without keys; record it with keys=True.")
    return _Cutting(model, known, first, base.streams[0].shape[1])


def _run_block(
    block: nn.Module,
    stream: torch.Tensor,
    base: BaseRun,
    number: int,
    rows: torch.Tensor,
    counts: Mapping[str, Rows],
    cutting: _Cutting | None,
) -> torch.Tensor:
    named = base.arguments[number]
    cache = None
    if cutting is not None:
        masked = with_mask(cutting.model, block, named, cutting.width, cutting.first)
        axes = cutting.facts.axes[number]
        named = {
            k: cut(v, k, axes, cutting.first) if v is named.get(k) else v for k, v in masked.items()
        }
    named = {k: for_rows(v, k, counts, base, rows) for k, v in named.items()}
    if cutting is not None:
        cache = KeptKeys(base.keys or {}, cutting.first, rows)
        named[cache_name(block, named)] = cache
    key = base.names[number]
    output = block(**{key: stream, **named}) if key else block(stream, **named)
    value = first_tensor(output)
    if value is None:
        raise ModelSupportError(f"{type(block).__name__} returned no tensor when it was replayed.")
    if cache is not None and cache.updates != 1:
        raise ModelSupportError(
            f"{type(block).__name__} asked the cache {cache.updates} times; expected once."
        )
    return value


def tail(model: Model, stream: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return the logits at chosen positions of a last residual stream.

    Args:
        model: The model.
        stream: Residual stream after the last block ``[n, pos, d_model]``.
        positions: Positions for each row ``[n, k]``.

    Returns:
        Logits ``[n, k, vocab]``, with the model's own scale and soft cap.

    Raises:
        ModelSupportError: If the logits are not unembedding(final norm(stream)) in this model.
    """
    anatomy = require_anatomy(model.anatomy, "The tail")
    if not anatomy.tail.exact or anatomy.final_norm is None or anatomy.tail.head is None:
        raise ModelSupportError(
            f"The logits cannot be read off the last stream: {anatomy.tail.reason}."
        )
    rows = torch.arange(stream.shape[0], device=stream.device).unsqueeze(1)
    with turn(model.module), torch.no_grad():
        read = stream[rows, positions.to(stream.device)]
        normed = model.module.get_submodule(anatomy.final_norm)(read)
        logits: torch.Tensor = model.module.get_submodule(anatomy.tail.head)(normed)
        if anatomy.tail.scale != 1.0:
            logits = logits * anatomy.tail.scale
        if anatomy.tail.softcap is not None:
            logits = anatomy.tail.softcap * torch.tanh(logits / anatomy.tail.softcap)
    return logits
