"""Passes with the values of some sites replaced, begun at the first block that sees the change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from microtome.errors import ModelSupportError
from microtome.sweeps.rules import restart_reason
from microtome.tracing.call import Captured
from microtome.tracing.interventions import Intervention
from microtome.tracing.replay import BaseRun, replay, tail
from microtome.tracing.trace import Trace

if TYPE_CHECKING:
    from microtome.tracing.model import Model
    from microtome.tracing.sites import Site

ROUNDING = 16
"""Difference of logits, in units of their type's precision, up to which a restart is the same."""


class Restarting:
    """Runs batches as they are, and again with the targets' values replaced.

    A second run begins at the first target's block, from what the first one left, where the model
    can be restarted (see :func:`microtome.sweeps.rules.restart_reason`) and the first batch, with
    nothing replaced, gives its logits again. Otherwise the whole model runs.

    Args:
        model: The model.
        targets: The sites that are replaced.

    Attributes:
        late: Whether runs begin late; what the first batch shows decides.
    """

    def __init__(self, model: Model, targets: Sequence[Site]) -> None:
        self._model, self._targets = model, tuple(targets)
        blocks = [_block(site) for site in targets]
        found = [block for block in blocks if block is not None]
        self.late = len(found) == len(blocks) and not restart_reason(model)
        # The stream behind a block is what enters the next one, so that block need not run.
        self._is_stream = len(targets) == 1 and targets[0].name == "resid_post"
        self._start = min(found, default=0) + self._is_stream
        self._base: BaseRun | None = None
        self._checked = False

    def run(self, ids: list[list[int]], sites: Sequence[Site]) -> Trace:
        """Run a batch as it is; the next calls of :meth:`replaced` are about it."""
        if not self.late:
            self._base = None
            return self._model.trace(ids, capture=list(sites))
        base = self._base = self._model.record(ids, capture=list(sites))
        captured = {name: Captured(value, None, len(ids)) for name, value in base.captured.items()}
        trace = Trace(base.tokens, torch.tensor(base.lengths), base.logits, captured, {})
        if not self._checked:
            self._checked, self.late = True, self._same(trace)
            if not self.late:
                return self.run(ids, sites)
        return trace

    def replaced(self, trace: Trace, value: Tensor) -> Tensor:
        """Return the logits ``[batch, pos, vocab]`` of the batch with the targets' value replaced.

        Args:
            trace: What :meth:`run` gave.
            value: The targets' values side by side ``[batch, pos, width]``.

        Raises:
            ModelSupportError: The model gives no logits.
        """
        if self._base is None:
            # The base's own tokens, padded as they were: the same batch, position by position.
            ids = [row[m].tolist() for row, m in zip(trace.tokens, trace.mask.bool(), strict=True)]
            writes = self._writes(trace, value)
            return require_logits(self._model.trace(ids, interventions=writes).logits)
        base = self._base
        rows = torch.arange(len(base.tokens))
        stream, writes = base.streams[self._start], []
        if self._is_stream:
            stream = value.to(stream)
        else:
            writes = self._writes(trace, value)
        last = replay(self._model, base, self._start, stream, rows=rows, interventions=writes)
        places = torch.arange(stream.shape[1]).expand(len(rows), -1)
        return tail(self._model, last, places)

    def _writes(self, trace: Trace, value: Tensor) -> list[Intervention]:
        """Return what puts values in the targets' places."""
        writes, start = [], 0
        for site in self._targets:
            old = trace[site]
            width = old[0, 0].numel()
            part = value[..., start : start + width]
            writes.append(site.set(part.reshape(old.shape).to(old)))
            start += width
        return writes

    def _same(self, trace: Trace) -> bool:
        """Return whether a late run with nothing replaced gives the logits of the whole one."""
        logits = require_logits(trace.logits)
        value = torch.cat([trace[site].flatten(2) for site in self._targets], dim=-1)
        again = self.replaced(trace, value)
        apart = (again - logits)[trace.mask.bool().to(logits.device)].abs().max()
        limit = ROUNDING * torch.finfo(logits.dtype).eps * logits.abs().max()
        return bool(apart <= limit)


def require_logits(logits: Tensor | None) -> Tensor:
    """Return the logits of a pass.

    Raises:
        ModelSupportError: There are none.
    """
    if logits is None:
        raise ModelSupportError(
            "the model returned no logits, so what it loses by a reconstruction cannot be measured"
        )
    return logits


def _block(site: Site) -> int | None:
    """Return the block of a site that a model without codecs has, None for others."""
    plain = site.in_block and "/" not in site.name
    return site.layer[0] if plain and isinstance(site.layer, tuple) and site.layer else None
