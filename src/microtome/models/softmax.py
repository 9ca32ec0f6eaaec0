"""Seeing, and replacing, what enters and leaves the softmax of an attention function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from microtome.errors import HookError
from microtome.models import hf

Change = Callable[[torch.Tensor], torch.Tensor]

_SOFTMAXES = frozenset({torch.softmax, torch.nn.functional.softmax, torch.Tensor.softmax})


class SoftmaxSeam(TorchFunctionMode):
    """Passes the argument and the result of every softmax through two functions.

    Attributes:
        count: How many softmaxes ran while the mode was active.
    """

    def __init__(self, scores: Change | None = None, pattern: Change | None = None) -> None:
        super().__init__()
        self._scores = scores
        self._pattern = pattern
        self.count = 0

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a torch function; a softmax is routed through the two functions."""
        kwargs = kwargs or {}
        if func not in _SOFTMAXES:
            return func(*args, **kwargs)
        self.count += 1
        values = list(args)
        if self._scores is not None:
            if values:
                values[0] = self._scores(values[0])
            else:
                kwargs["input"] = self._scores(kwargs["input"])
        result = func(*values, **kwargs)
        return result if self._pattern is None else self._pattern(result)


def additive_mask(
    mask: torch.Tensor | None, module: nn.Module, q: torch.Tensor, k: torch.Tensor, kwargs: dict[str, Any]
) -> torch.Tensor | None:
    """Return the mask that arrived at the attention entry in the additive form eager functions take.

    Args:
        mask: None (causality is the module's), boolean (True = attend) or additive.
        module: The attention module.
        q: Queries ``[batch, head, query, d_head]``.
        k: Keys ``[batch, kv_head, key, d_head]``.
        kwargs: What else arrived, where ``is_causal`` may be set.

    Returns:
        ``[.., query, key]`` with 0 where attended and the dtype's minimum elsewhere, or None.
    """
    lowest = torch.finfo(q.dtype).min
    if mask is None:
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        queries, keys = q.shape[2], k.shape[2]
        if not causal or queries == 1:
            return None
        # the last query sees the last key, also behind a cache
        seen = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
        return torch.zeros(1, 1, queries, keys, dtype=q.dtype, device=q.device).masked_fill(~seen, lowest)
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, lowest)
    return mask


def run_eager(
    module: nn.Module,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    kwargs: dict[str, Any],
    *,
    scores: Change | None = None,
    pattern: Change | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run the family's own eager attention function with its softmax in view.

    Raises:
        HookError: If the family has no eager function or its softmax does not run exactly once.
    """
    function = hf.eager_function(module)
    if function is None:
        raise HookError(f"{type(module).__name__} has no eager attention function, so no scores or pattern.")
    seam = SoftmaxSeam(scores, pattern)
    with seam:
        result = function(module, q, k, v, additive_mask(mask, module, q, k, kwargs), **kwargs)
    if seam.count != 1:
        raise HookError(
            f"The softmax of {type(module).__name__} ran {seam.count} times in one call; expected once."
        )
    return result
