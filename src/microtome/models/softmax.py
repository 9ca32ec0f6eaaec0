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

_FUSED = torch.nn.functional.scaled_dot_product_attention

_SOFTMAXES = frozenset({torch.softmax, torch.nn.functional.softmax, torch.Tensor.softmax})


class SoftmaxSeam(TorchFunctionMode):
    """Passes the argument and the result of every softmax through two functions.

    Args:
        scores: Receives what enters a softmax, returns what enters instead.
        pattern: Receives what leaves it, returns what leaves instead.
        fused_output: Where a fused attention kernel runs, go on with what the two functions
            returned instead of the kernel's output.

    Attributes:
        count: How many softmaxes ran while the mode was active.
    """

    def __init__(
        self,
        scores: Change | None = None,
        pattern: Change | None = None,
        *,
        fused_output: bool = False,
    ) -> None:
        super().__init__()
        self._scores = scores
        self._pattern = pattern
        self._fused_output = fused_output
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
        if func is _FUSED:
            return self._fused(*args, **kwargs)
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

    def _fused(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any, **named: Any
    ) -> torch.Tensor:
        """Run a fused kernel; scores and pattern are computed beside it from the same arguments."""
        self.count += 1
        result: torch.Tensor = _FUSED(q, k, v, *rest, **named)
        if self._scores is None and self._pattern is None:
            return result
        options = {
            **dict(zip(("attn_mask", "dropout_p", "is_causal", "scale"), rest, strict=False)),
            **named,
        }
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._fused_output):
            repeats = q.shape[1] // k.shape[1]
            keys, values = (x.repeat_interleave(repeats, 1) if repeats > 1 else x for x in (k, v))
            scale = options.get("scale") or q.shape[-1] ** -0.5
            rows = q @ keys.transpose(-1, -2) * scale
            mask = additive_mask(
                options.get("attn_mask"),
                nn.Module(),
                q,
                k,
                {"is_causal": bool(options.get("is_causal"))},
            )
            rows = rows if mask is None else rows + mask
            rows = rows if self._scores is None else self._scores(rows)
            pattern = torch.softmax(rows, dim=-1)
            pattern = pattern if self._pattern is None else self._pattern(pattern)
            return pattern @ values if self._fused_output else result


def additive_mask(
    mask: torch.Tensor | None,
    module: nn.Module,
    q: torch.Tensor,
    k: torch.Tensor,
    kwargs: dict[str, Any],
) -> torch.Tensor | None:
    """Return the mask that arrived at the entry in the additive form eager functions take.

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
        return torch.zeros(1, 1, queries, keys, dtype=q.dtype, device=q.device).masked_fill(
            ~seen, lowest
        )
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
        raise HookError(
            f"{type(module).__name__} has no eager attention function, so no scores or pattern."
        )
    seam = SoftmaxSeam(scores, pattern)
    with seam:
        result = function(module, q, k, v, additive_mask(mask, module, q, k, kwargs), **kwargs)
    if seam.count != 1:
        raise HookError(
            f"The softmax of {type(module).__name__} ran {seam.count} times in one call; expected "
            "once."
        )
    return result


def count_softmaxes(
    module: nn.Module, paths: tuple[str, ...], run: Callable[[], Any]
) -> dict[str, int]:
    """Return how many softmaxes run inside each of some modules in one forward pass.

    Args:
        module: The model.
        paths: Modules to watch; none of them inside another.
        run: Runs the model.
    """
    counts = dict.fromkeys(paths, 0)
    modes: list[SoftmaxSeam] = []

    def enter(_module: nn.Module, _args: Any) -> None:
        modes.append(SoftmaxSeam())
        modes[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave(path: str) -> Any:
        def hook(_module: nn.Module, _args: Any, _output: Any) -> None:
            mode = modes.pop()
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            counts[path] += mode.count

        return hook

    handles = []
    for path in paths:
        part = module.get_submodule(path)
        handles.append(part.register_forward_pre_hook(enter))
        handles.append(part.register_forward_hook(leave(path), always_call=True))
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return counts
