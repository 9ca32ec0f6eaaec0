"""One forward pass with every module's inputs and outputs kept: the raw facts for discovery."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from microtome.models import hf


@dataclass
class Call:
    """What one call of one module received and returned.

    Attributes:
        path: Dotted path of the module in the model.
        start: Order in which calls began.
        end: Order in which calls ended.
        args: Positional arguments.
        kwargs: Keyword arguments.
        input: Copy of the first tensor it received, made when the call began.
        output: What the module returned.
        result: Copy of the tensor it returned, the first one of a tuple.
    """

    path: str
    start: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    input: torch.Tensor | None = None
    end: int = -1
    output: Any = None
    result: torch.Tensor | None = None


@dataclass
class AttentionCall:
    """What reached the attention entry: q, k, v, the mask and the mixed values z."""

    module: nn.Module
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None
    kwargs: dict[str, Any]
    z: torch.Tensor


@dataclass
class Recording:
    """All calls of one forward pass, by module path and in order."""

    calls: dict[str, list[Call]] = field(default_factory=dict)
    attention: dict[int, list[AttentionCall]] = field(default_factory=dict)
    output: Any = None
    tokens: torch.Tensor | None = None

    def overwritten(self) -> frozenset[str]:
        """Return the modules whose returned tensor the model changed in place afterwards."""
        return frozenset(
            path
            for path, calls in self.calls.items()
            for call in calls
            if call.result is not None and not _same_bits(call.result, first_tensor(call.output))
        )

    def only(self, path: str) -> Call | None:
        """Return the call of a module that was called exactly once, else None."""
        calls = self.calls.get(path, [])
        return calls[0] if len(calls) == 1 else None

    def below(self, path: str) -> list[Call]:
        """Return the single calls of all modules inside a module, in order of ending."""
        found = [
            calls[0]
            for name, calls in self.calls.items()
            if name.startswith(path + ".") and len(calls) == 1
        ]
        return sorted(found, key=lambda call: call.end)


def first_tensor(value: Any) -> torch.Tensor | None:
    """Return a tensor, or the first tensor of a tuple or list, or None."""
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, tuple | list):
        for item in value:
            if isinstance(item, torch.Tensor):
                return item
    return None


def _same_bits(before: torch.Tensor, after: torch.Tensor | None) -> bool:
    return after is not None and before.shape == after.shape and torch.equal(before, after)


def copied(value: torch.Tensor | None) -> torch.Tensor | None:
    """Return a detached copy of a tensor, or None."""
    return None if value is None else value.detach().clone()


def record(module: nn.Module, tokens: torch.Tensor, **kwargs: Any) -> Recording:
    """Run a model once and keep what every module received and returned.

    Args:
        module: The model.
        tokens: Token ids ``[batch, pos]``.
        **kwargs: Further arguments of the model's forward.

    Returns:
        The recording. Inputs and results are copies, so that in-place operations of the model
        do not change what was seen.
    """
    recording = Recording(tokens=tokens)
    clock = _Clock()
    handles = []
    for path, part in module.named_modules(remove_duplicate=False):
        if path:
            handles.append(
                part.register_forward_pre_hook(_before(path, recording, clock), with_kwargs=True)
            )
            handles.append(part.register_forward_hook(_after(path, recording, clock)))
    try:
        with torch.no_grad(), _attention_recorded(module, recording):
            recording.output = module(tokens, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return recording


class _Clock:
    def __init__(self) -> None:
        self.now = 0

    def tick(self) -> int:
        self.now += 1
        return self.now


def _before(path: str, recording: Recording, clock: _Clock) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        received = copied(first_tensor((*args, *kwargs.values())))
        call = Call(path, clock.tick(), args, dict(kwargs), received)
        recording.calls.setdefault(path, []).append(call)

    return hook


def _after(path: str, recording: Recording, clock: _Clock) -> Any:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        for call in reversed(recording.calls.get(path, [])):
            if call.end < 0:
                call.end, call.output = clock.tick(), output
                call.result = copied(first_tensor(output))
                return

    return hook


@contextlib.contextmanager
def _attention_recorded(module: nn.Module, recording: Recording) -> Iterator[None]:
    if not hf.can_switch(module):
        yield
        return

    def handler(
        native: str,
        part: nn.Module,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        z, weights = hf.native_function(native, part)(part, q, k, v, mask, **kwargs)
        recording.attention.setdefault(id(part), []).append(
            AttentionCall(part, q, k, v, mask, kwargs, z)
        )
        return z, weights

    with hf.attention_through(hf.attention_configs(module), handler):
        yield
