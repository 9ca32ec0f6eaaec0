"""One forward pass under observation, from prompts to a trace."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from microtome.errors import ConfigError
from microtome.tracing.attachments import fingerprints
from microtome.tracing.call import Call
from microtome.tracing.condition import training_part
from microtome.tracing.forward import forward_arguments, is_text_batch, kept_logits, plain_batch
from microtome.tracing.instrument import Instrument
from microtome.tracing.interventions import Intervention
from microtome.tracing.positions import of_batch
from microtome.tracing.prompts import Prompts
from microtome.tracing.sites import sites_of
from microtome.tracing.trace import Trace
from microtome.tracing.turns import turn

if TYPE_CHECKING:
    from microtome.tracing.model import Capture, Logits, Model


BEHIND = ("logits", "module:")
"""Sites that see how many positions the unembedding is computed at."""


class _Enough(Exception):
    """Ends a forward pass that has nothing more to give."""


def require_eval(module: nn.Module, name: str) -> None:
    """Refuse a module of which any part is in training mode.

    Raises:
        ConfigError: If one is.
    """
    part = training_part(module)
    if part is not None:
        which = name if module.training else f"A {part} of {name}"
        raise ConfigError(
            f"{which} is in training mode, where dropout changes every pass. Call "
            "module.eval() first."
        )


def one_pass(
    model: Model,
    prompts: Prompts,
    *,
    capture: Capture,
    interventions: Sequence[Intervention],
    logits: Logits,
    to: torch.device | str | None,
    dtype: torch.dtype | None,
    grad: bool,
    stop: bool = False,
) -> Trace:
    """Run a model once; see :meth:`microtome.tracing.model.Model.trace` for the arguments.

    With ``stop``, and where no logits are asked for, the blocks behind the last captured site are
    not run.
    """
    require_eval(model.module, model.name)
    if logits not in ("all", "last", None):
        raise ConfigError(f"logits={logits!r}; expected 'all', 'last' or None.")
    instrument = Instrument(
        model.module,
        model.catalog,
        captures=sites_of(capture),
        interventions=interventions,
        grad=grad,
    )
    text = is_text_batch(model.module, model.anatomy)
    batch = model.batch(prompts) if text else plain_batch(prompts, model.device)
    call = Call(
        of_batch(batch.lengths, batch.tokens.shape[1] if batch.tokens.ndim > 1 else 1),
        to=None if to is None else torch.device(to),
        dtype=dtype,
        grad=grad,
    )
    behind = any(site.startswith(BEHIND) for site in instrument.points)
    kept = "last" if logits is None and not behind else logits
    arguments = forward_arguments(model.module, model.anatomy, batch, kept, model.readout)
    last = _last_block(model, instrument) if stop and logits is None else None
    with turn(model.module), contextlib.ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(grad))
        stack.enter_context(instrument.active(call))
        output = _until(last, model.module, batch.tokens, arguments)
    instrument.check(call)
    return Trace(
        batch.tokens,
        torch.tensor(batch.lengths),
        kept_logits(output, batch, logits, model.readout),
        call.captured,
        {
            "model": model.name,
            "bos": model.bos,
            "codecs": fingerprints(model.codecs),
            "interventions": [str(i) for i in interventions],
        },
    )


def _last_block(model: Model, instrument: Instrument) -> nn.Module | None:
    """Return the block behind which nothing is wanted, None where the whole model is."""
    layers = [point.layer for point in instrument.points.values()]
    # hooks of others on the model expect to see its output
    watched = model.module._forward_hooks or model.module._forward_pre_hooks
    if model.anatomy is None or not layers or None in layers or watched:
        return None
    last = max(layer for layer in layers if layer is not None)
    return model.module.get_submodule(model.anatomy.blocks[last].path)


def _until(
    last: nn.Module | None, module: nn.Module, tokens: torch.Tensor, arguments: dict[str, Any]
) -> Any:
    """Call a module; behind the last block that is wanted, return None instead of its output."""
    if last is None:
        return module(tokens, **arguments)

    def enough(_module: nn.Module, _args: Any, _output: Any) -> None:
        raise _Enough

    # put on after the hooks that capture, so it runs after them
    handle = last.register_forward_hook(enough)
    try:
        return module(tokens, **arguments)
    except _Enough:
        return None
    finally:
        handle.remove()
