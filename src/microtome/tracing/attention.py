"""The attention of a traced call: q, k, v, scores, pattern and z, read or changed at one entry.

Reading scores or pattern runs the family's eager function beside the native one and discards its
output, so that nothing changes. Only a change of scores or pattern, or a gradient there, makes the
eager output the block's output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from microtome.models import hf
from microtome.models.softmax import SoftmaxSeam, run_eager
from microtome.tracing.layouts import HeadsSecond, Layout, Plain, Rows

Pass = Callable[[str, torch.Tensor, Layout], torch.Tensor]
"""Passes a raw tensor of a site (``"attn.q"``) through the interventions and captures of a call."""


@dataclass
class AttentionTap:
    """What is wanted at the attention of one block.

    Attributes:
        through: Passes a value through what is wanted at a site.
        names: Sites with an intervention or a capture.
        eager_output: Whether scores or pattern are changed or differentiated.
        d_head_v: Size of a value head, to lay out z.
    """

    through: Pass
    names: frozenset[str]
    eager_output: bool

    def run(
        self,
        native: str,
        module: nn.Module,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute attention with everything that is wanted seen or changed on the way."""
        heads = HeadsSecond()
        q, k, v = (
            self.through(name, value, heads) if name in self.names else value
            for name, value in (("attn.q", q), ("attn.k", k), ("attn.v", v))
        )
        wants_rows = bool({"attn.scores", "attn.pattern", "attn.sink"} & self.names)
        if wants_rows and (self.eager_output or native == "eager"):
            z, weights = self._eager(module, q, k, v, mask, kwargs)
        else:
            z, weights = hf.native_function(native, module)(module, q, k, v, mask, **kwargs)
            if wants_rows:
                with torch.no_grad():
                    self._eager(module, q, k, v, mask, kwargs)
        if "attn.z" in self.names:
            z = self.through("attn.z", z, Plain(4))
        return z, weights

    def after(self, outer: AttentionTap) -> AttentionTap:
        """Return one tap that does what an enclosing scope wants first, then what this one does."""

        def both(name: str, raw: torch.Tensor, layout: Layout) -> torch.Tensor:
            for tap in (outer, self):
                if name in tap.names:
                    raw = tap.through(name, raw, layout)
            return raw

        return AttentionTap(both, outer.names | self.names, outer.eager_output or self.eager_output)

    def _eager(
        self,
        module: nn.Module,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        keys = k.shape[2]
        return run_eager(
            module,
            q,
            k,
            v,
            mask,
            kwargs,
            scores=lambda rows: self.scores(rows, keys),
            pattern=lambda rows: self.pattern(rows, keys),
        )

    def scores(self, rows: torch.Tensor, keys: int) -> torch.Tensor:
        """Pass what enters the softmax through."""
        return (
            self.through("attn.scores", rows, Rows(keys)) if "attn.scores" in self.names else rows
        )

    def pattern(self, rows: torch.Tensor, keys: int) -> torch.Tensor:
        """Pass what leaves the softmax through, its sink columns separately."""
        if "attn.pattern" in self.names:
            rows = self.through("attn.pattern", rows, Rows(keys))
        if "attn.sink" in self.names:
            rows = self.through("attn.sink", rows, Rows(keys, sink=True))
        return rows


@dataclass
class AttentionRouter:
    """Sends each attention module of a traced call to its tap, or to the native function.

    Attributes:
        taps: Tap by ``id`` of the attention module.
    """

    taps: dict[int, AttentionTap] = field(default_factory=dict)

    def join(self, outer: object) -> None:
        """Take over what the handler of an enclosing scope wants, to be done before one's own."""
        if not isinstance(outer, AttentionRouter):
            return
        for key, tap in outer.taps.items():
            inner = self.taps.get(key)
            self.taps[key] = tap if inner is None else inner.after(tap)

    def __call__(
        self,
        native: str,
        module: nn.Module,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute attention for one module."""
        tap = self.taps.get(id(module))
        if tap is None:
            return hf.native_function(native, module)(module, q, k, v, mask, **kwargs)
        return tap.run(native, module, q, k, v, mask, kwargs)


class ModuleSoftmax:
    """Scores and pattern of an attention module that does not dispatch through the registry.

    A function mode is entered in the module's pre-hook and left in its forward hook, which also
    runs when the module raises.
    """

    def __init__(self, tap: AttentionTap) -> None:
        self._tap = tap
        self._modes: list[SoftmaxSeam] = []

    def enter(self, _module: nn.Module, _args: tuple[Any, ...]) -> None:
        """Pre-hook: start watching for the softmax."""
        mode = SoftmaxSeam(self._scores, self._pattern, fused_output=self._tap.eager_output)
        mode.__enter__()  # type: ignore[no-untyped-call]
        self._modes.append(mode)

    def leave(self, _module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        """Forward hook (``always_call``): stop watching."""
        if self._modes:
            mode = self._modes.pop()
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _scores(self, rows: torch.Tensor) -> torch.Tensor:
        return self._tap.scores(rows, rows.shape[-1])

    def _pattern(self, rows: torch.Tensor) -> torch.Tensor:
        return self._tap.pattern(rows, rows.shape[-1])
