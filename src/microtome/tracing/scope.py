"""Interventions on any code that calls the module: positions are worked out at each call."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from microtome.errors import HookError
from microtome.models import hf
from microtome.tracing.call import Call
from microtome.tracing.instrument import Instrument
from microtome.tracing.positions import Positions


@dataclass
class Prompted:
    """The rows' prompts, fixed by the first call of a scope and by every call that starts anew.

    Attributes:
        pads: Padding columns on the left of each row.
        lengths: Tokens of each row's prompt.
    """

    pads: tuple[int, ...]
    lengths: tuple[int, ...]


@contextlib.contextmanager
def scoped(
    module: nn.Module, instrument: Instrument, prompted: Prompted | None = None
) -> Iterator[None]:
    """Serve every call of a module with an instrument.

    Args:
        module: The model.
        instrument: What is wanted.
        prompted: The prompts' padding and lengths, for loops that feed longer and longer sequences
            without a cache; by default every call without a cache is a prompt of its own.

    Raises:
        HookError: On leaving, if the module was called but a site was never passed.
    """
    signature = inspect.signature(module.forward)
    state: dict[str, Any] = {"calls": 0, "prompted": prompted, "passed": set()}

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = signature.bind_partial(*args, **kwargs).arguments
        positions = call_positions(bound, state, fixed=prompted is not None)
        state["call"] = Call(positions)
        instrument.serve(state["call"])

    def after(_module: nn.Module, _args: Any, _output: Any) -> None:
        call = state.pop("call", None)
        if call is not None:
            state["calls"] += 1
            state["passed"] |= set(call.passed)
        instrument.serve(None)

    with contextlib.ExitStack() as stack:
        stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        with instrument.active():
            # the model's own hooks of the scope run before this one, which ends the call
            stack.callback(module.register_forward_hook(after, always_call=True).remove)
            yield
    missed = [name for name in instrument.points if name not in state["passed"]]
    if state["calls"] and missed:
        raise HookError(f"{missed[0]} was never passed in {state['calls']} calls of the module.")


def call_positions(bound: dict[str, Any], state: dict[str, Any], *, fixed: bool) -> Positions:
    """Return where the rows' tokens lie in a call with these arguments.

    Args:
        bound: The call's arguments by name.
        state: Holds the scope's prompts under ``"prompted"``; filled by calls that start anew.
        fixed: Whether the prompts were given and calls without a cache continue them.
    """
    batch, width = _shape(bound)
    offset = hf.cache_length(bound.get("past_key_values"))
    mask = bound.get("attention_mask")
    total = offset + width
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        pads = tuple(int(p) for p in (mask.long().cumsum(1) == 0).sum(1).tolist())
        seen = tuple(int(n) for n in mask.sum(1).tolist())
    else:
        pads, seen = (0,) * batch, (total,) * batch
    prompted = state["prompted"]
    if prompted is None or (offset == 0 and not fixed) or len(prompted.lengths) != batch:
        prompted = state["prompted"] = Prompted(pads, seen)
    return Positions(batch, width, offset, pads, prompted.lengths, seen)


def _shape(bound: dict[str, Any]) -> tuple[int, int]:
    for name in ("input_ids", "inputs_embeds"):
        value = bound.get(name)
        if isinstance(value, torch.Tensor):
            return int(value.shape[0]), int(value.shape[1])
    for value in bound.values():
        if isinstance(value, torch.Tensor):
            return int(value.shape[0]), int(value.shape[1]) if value.ndim > 1 else 1
    raise HookError("The module was called without any tensor, so its positions are unknown.")
