"""Recording a forward pass so that it can be restarted at any block, and replaying from there.

The model's own blocks run with the arguments they were called with, expanded over rows. Nothing
here knows an architecture; whether a replay equals the whole pass is checked by verification and by
the certificate of each sweep.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from microtome.errors import ModelSupportError, ShapeError
from microtome.models import hf
from microtome.models.probe import first_tensor
from microtome.tracing.call import Call
from microtome.tracing.catalog import require_anatomy
from microtome.tracing.forward import forward_arguments
from microtome.tracing.instrument import Instrument
from microtome.tracing.interventions import Intervention
from microtome.tracing.positions import of_batch

if TYPE_CHECKING:
    from microtome.tracing.model import Model
    from microtome.tracing.prompts import Batch, Prompts


@dataclass(frozen=True, eq=False)
class BaseRun:
    """A forward pass with what is needed to restart it at any block.

    Attributes:
        tokens: Token ids ``[batch, pos]``, right-padded.
        lengths: Tokens of each row.
        streams: Residual stream into every block and out of the last, ``n_layers + 1`` tensors
            ``[batch, pos, d_model]``.
        arguments: For each block, its positional arguments after the stream and its keyword
            arguments.
        logits: ``[batch, pos, vocab]``.
    """

    tokens: torch.Tensor
    lengths: tuple[int, ...]
    streams: tuple[torch.Tensor, ...]
    arguments: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]
    logits: torch.Tensor


def record(model: Model, prompts: Prompts) -> BaseRun:
    """Run the model once without a cache and keep what a restart at any block needs.

    Raises:
        ModelSupportError: If a block did not run exactly once on one residual stream.
    """
    anatomy = require_anatomy(model.anatomy, "Recording a base run")
    batch = model.batch(prompts)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    streams: list[torch.Tensor] = []
    last: list[torch.Tensor] = []

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream, rest, named = _split(args, kwargs)
        streams.append(stream)
        calls.append((rest, named))

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        value = first_tensor(output)
        if value is not None:
            last.append(value)

    blocks = [model.module.get_submodule(b.path) for b in anatomy.blocks]
    if "*" in anatomy.blocks[0].reasons:
        raise ModelSupportError(f"The pass cannot be restarted: {anatomy.blocks[0].reasons['*']}.")
    with contextlib.ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(blocks[-1].register_forward_hook(after).remove)
        stack.enter_context(torch.no_grad())
        output = model.module(
            batch.tokens, **forward_arguments(model.module, anatomy, batch, "all")
        )
    if len(streams) != len(blocks) or len(last) != 1:
        raise ModelSupportError(
            f"{len(blocks)} blocks ran {len(streams)} times in one pass, so it cannot be restarted."
        )
    return _base(batch, streams, last[0], calls, output)


def _base(
    batch: Batch, streams: list[torch.Tensor], last: torch.Tensor, calls: list[Any], output: Any
) -> BaseRun:
    from microtome.models.discovery import logits_of

    return BaseRun(batch.tokens, batch.lengths, (*streams, last), tuple(calls), logits_of(output))


def _split(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]:
    """Separate the residual stream from a block's other arguments."""
    if args and isinstance(args[0], torch.Tensor):
        return args[0], args[1:], dict(kwargs)
    named = dict(kwargs)
    for key, value in kwargs.items():
        if isinstance(value, torch.Tensor):
            del named[key]
            return value, args, {**named, "__stream__": key}
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
    anatomy = require_anatomy(model.anatomy, "Replaying blocks")
    expected = (len(rows), *base.streams[0].shape[1:])
    if tuple(stream.shape) != expected:
        raise ShapeError(f"The stream has shape {tuple(stream.shape)}; expected {expected}.")
    lengths = [base.lengths[int(r)] for r in rows]
    wanted = tuple(interventions)
    instrument = Instrument(model.module, model.catalog, interventions=wanted) if wanted else None
    call = Call(of_batch(lengths, stream.shape[1]))
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if instrument is not None:
            stack.enter_context(instrument.active(call))
        for number in range(start, anatomy.n_layers):
            block = model.module.get_submodule(anatomy.blocks[number].path)
            stream = _run_block(block, stream, base, number, rows, anatomy.n_heads)
    if instrument is not None:
        instrument.check(call)
    return stream


def _run_block(
    block: nn.Module,
    stream: torch.Tensor,
    base: BaseRun,
    number: int,
    rows: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    rest, named = base.arguments[number]
    batch = base.tokens.shape[0]
    flat = batch * heads
    named = {k: _for_rows(v, rows, batch, flat) for k, v in named.items() if k != "__stream__"}
    rest = tuple(_for_rows(value, rows, batch, flat) for value in rest)
    key = base.arguments[number][1].get("__stream__")
    output = block(*rest, **{key: stream, **named}) if key else block(stream, *rest, **named)
    value = first_tensor(output)
    if value is None:
        raise ModelSupportError(f"{type(block).__name__} returned no tensor when it was replayed.")
    return value


def _for_rows(value: Any, rows: torch.Tensor, batch: int, flat: int) -> Any:
    """Expand an argument that has one entry per row of the base run to the new rows.

    A cache that the model made although none was asked for holds the base run's keys and is left
    out.
    """
    if hf.is_cache(value):
        return None
    if isinstance(value, torch.Tensor) and value.ndim > 0:
        if value.shape[0] == batch and batch > 1:
            return value[rows.to(value.device)]
        if value.shape[0] == flat and value.ndim == 3 and value.shape[1] == 1:
            # ALiBi biases are flattened over batch and head
            return value.unflatten(0, (batch, -1))[rows.to(value.device)].flatten(0, 1)
        if value.shape[0] == 1 and value.ndim == 4:
            return value.expand(len(rows), *value.shape[1:])
        return value
    if isinstance(value, tuple | list):
        return type(value)(_for_rows(v, rows, batch, flat) for v in value)
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
    with torch.no_grad():
        read = stream[rows, positions.to(stream.device)]
        normed = model.module.get_submodule(anatomy.final_norm)(read)
        logits: torch.Tensor = model.module.get_submodule(anatomy.tail.head)(normed)
        if anatomy.tail.scale != 1.0:
            logits = logits * anatomy.tail.scale
        if anatomy.tail.softcap is not None:
            logits = anatomy.tail.softcap * torch.tanh(logits / anatomy.tail.softcap)
    return logits
