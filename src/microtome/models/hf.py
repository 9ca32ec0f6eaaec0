"""Every private name of transformers that microtome relies on, in this one file.

Attention is reached through transformers' own dispatch: an implementation name registered in both
the attention and the mask registry. ``tests/models/test_hf_canary.py`` fails when a name here has
moved.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

AttentionFunction = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]

_PREFIX = "microtome_"


class AttentionHandler(Protocol):
    """What runs in place of a model's attention function during a traced call."""

    def __call__(
        self,
        native: str,
        module: nn.Module,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        kwargs: dict[str, Any],
        /,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return z ``[batch, pos, head, d_head]`` and the attention weights, if any."""


_handler: ContextVar[AttentionHandler | None] = ContextVar("attention_handler", default=None)


def _make_entry(native: str) -> AttentionFunction:
    def entry(
        module: nn.Module,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *args: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        mask = args[0] if args else kwargs.pop("attention_mask", None)
        handler = _handler.get()
        if handler is None:
            return native_function(native, module)(module, q, k, v, mask, **kwargs)
        return handler(native, module, q, k, v, mask, kwargs)

    return entry


def _register(native: str) -> str:
    """Register the entry for a native implementation in both registries; return its name.

    A name missing from the mask registry builds no mask at all, and a causal model would see the
    future; the entry is therefore always registered in both.
    """
    name = _PREFIX + native
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _make_entry(native))
    if native in ALL_MASK_ATTENTION_FUNCTIONS and name not in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[native])
    return name


@contextlib.contextmanager
def attention_through(configs: tuple[Any, ...], handler: AttentionHandler) -> Iterator[None]:
    """Route the attention of the models with these configs through a handler.

    The former implementation is restored on leaving, also after an error.

    Args:
        configs: From :func:`attention_configs`.
        handler: Called instead of the attention function; it receives the native name.
    """
    before = [config._attn_implementation_internal for config in configs]
    token = _handler.set(handler)
    try:
        for config, native in zip(configs, before, strict=True):
            if not str(native).startswith(_PREFIX):
                config._attn_implementation_internal = _register(native or "eager")
        yield
    finally:
        _handler.reset(token)
        for config, native in zip(configs, before, strict=True):
            config._attn_implementation_internal = native


def current_handler() -> AttentionHandler | None:
    """Return the handler that attention is routed through now, None outside a scope."""
    return _handler.get()


def eager_function(module: nn.Module) -> AttentionFunction | None:
    """Return the family's own eager attention function for an attention module, if it has one."""
    for cls in type(module).__mro__:
        owner = sys.modules.get(cls.__module__)
        function = getattr(owner, "eager_attention_forward", None)
        if function is not None:
            return function  # type: ignore[no-any-return]
    return None


def native_function(native: str, module: nn.Module) -> AttentionFunction:
    """Return the function that a native implementation name stands for at this module."""
    if native == "eager":
        function = eager_function(module)
        if function is None:
            raise KeyError(f"{type(module).__name__} has no eager_attention_forward")
        return function
    return ALL_ATTENTION_FUNCTIONS[native]  # type: ignore[no-any-return]


def attention_configs(module: nn.Module) -> tuple[Any, ...]:
    """Return the distinct configs below a module that name an attention implementation."""
    found: dict[int, Any] = {}
    for part in module.modules():
        config = getattr(part, "config", None)
        if config is not None and hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
    return tuple(found.values())


def implementation(config: Any) -> str:
    """Return the native attention implementation of a config (``"eager"`` if it names none)."""
    return str(config._attn_implementation_internal or "eager").removeprefix(_PREFIX)


def attention_of(module: nn.Module) -> str:
    """Return the native attention implementation that a model's own config names, or none."""
    config = getattr(module, "config", None)
    return implementation(config) if hasattr(config, "_attn_implementation_internal") else ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and advice off the terminal while a model loads."""
    logging = transformers_logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def can_switch(module: nn.Module) -> bool:
    """Return whether the model dispatches attention through the registry at all."""
    return isinstance(module, PreTrainedModel) and bool(module._can_set_attn_implementation())


def recorded_classes(module: nn.Module) -> dict[str, set[str]]:
    """Return what Hugging Face models say of their own parts.

    Returns:
        ``{"hidden_states": {block class names}, "attentions": {...}, "router_logits": {...}}``,
        gathered over all parts of the model; empty for other modules.
    """
    found: dict[str, set[str]] = {}
    for part in module.modules():
        if not isinstance(part, PreTrainedModel):
            continue
        for kind, entries in (getattr(part, "_can_record_outputs", None) or {}).items():
            for entry in entries if isinstance(entries, list | tuple) else [entries]:
                target = getattr(entry, "target_class", entry)
                name = target if isinstance(target, str) else getattr(target, "__name__", None)
                if name:
                    found.setdefault(kind, set()).add(name)
    return found


def is_projection(module: nn.Module) -> bool:
    """Return whether a module is a matrix product with an optional bias."""
    return isinstance(module, nn.Linear | Conv1D)


def projection_weight(module: nn.Module) -> torch.Tensor:
    """Return the weight of a projection as ``[d_in, d_out]``, a view without copying."""
    weight = module.weight
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"{type(module).__name__} has no weight tensor")
    return weight if isinstance(module, Conv1D) else weight.T


def is_cache(value: Any) -> bool:
    """Return whether a value is a key/value cache."""
    return value is not None and callable(getattr(value, "get_seq_length", None))


def cache_length(cache: Any) -> int:
    """Return how many positions a key/value cache already holds (0 for none)."""
    if cache is None:
        return 0
    length = getattr(cache, "get_seq_length", None)
    return int(length()) if callable(length) else 0


def is_encoder_decoder(module: nn.Module) -> bool:
    """Return whether a module is a transformers model of an encoder and a decoder."""
    both = getattr(getattr(module, "config", None), "is_encoder_decoder", False)
    return isinstance(module, PreTrainedModel) and both and module.get_encoder() is not module
