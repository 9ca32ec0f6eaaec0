"""The condition a module is in: what others put on it, and whether it is still of the same parts.

Passes that start in the middle call the parts of a module, not the module itself. What was found
out about a module holds while its parts are the same, of one floating-point type, free of hooks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from torch import nn

from microtome.models import hf

HARMLESS = ("torch.nn.", "transformers.")
"""Modules whose own hooks only read, or belong to the part that carries them."""

Condition = tuple[object, ...]


T = TypeVar("T")


class Remembered(Generic[T]):
    """What was found out about modules, forgotten when a module's condition changes."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[nn.Module, tuple[Condition, T]] = (
            weakref.WeakKeyDictionary()
        )

    def of(self, module: nn.Module, find: Callable[[], T]) -> T:
        """Return what is known of a module; found out where nothing is known of its condition."""
        now = condition(module)
        known = self._known.get(module)
        if known is not None and known[0] == now:
            return known[1]
        found = find()
        self._known[module] = now, found
        return found


def condition(module: nn.Module) -> Condition:
    """Return what findings about a module depend on: its parts, their type, its attention."""
    kind = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    return (kind, hf.attention_of(module), *(id(part) for part in _parts(module)))


def training_part(module: nn.Module) -> str | None:
    """Return the class of a part whose training mode changes passes, None where there is none.

    The module itself counts always, a part where it drops out or takes statistics of the batch.
    """
    if module.training:
        return type(module).__name__
    return next((type(p).__name__ for p in _parts(module) if p.training and _varies(p)), None)


def _varies(part: nn.Module) -> bool:
    if isinstance(part, nn.modules.batchnorm._BatchNorm):
        return True
    shares = {k: v for k, v in vars(part).items() if "drop" in k}
    if isinstance(part, nn.modules.dropout._DropoutNd):
        shares["p"] = part.p
    return any(isinstance(share, int | float) and share > 0 for share in shares.values())


def strange_part(module: nn.Module) -> str:
    """Return what others put on a module's parts, in words; empty where there is nothing.

    Hooks of torch's own (weight norms) and of transformers (which only read) do not count.
    """
    for part in _parts(module):
        hooks = (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
        if any(not _home(hook).startswith(HARMLESS) for hook in hooks):
            return f"a {type(part).__name__} carries a forward hook"
        if "forward" in vars(part) and not hasattr(part, "_hf_hook"):
            return f"the forward of a {type(part).__name__} was replaced"
    return ""


def _home(hook: object) -> str:
    function = getattr(hook, "func", hook)
    return str(getattr(function, "__module__", ""))


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    waiting = [module]
    while waiting:
        part = waiting.pop()
        yield part
        waiting.extend(p for p in part._modules.values() if p is not None)
