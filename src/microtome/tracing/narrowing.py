"""Running the last block's MLP only where its output is read.

A metric reads one position of each row, mostly the last, and an MLP works on each position alone.
So what the last MLP writes elsewhere reaches nothing: its gradient is zero there, and it need not
be computed. Whether the logits stay the same is measured once per module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from microtome.tracing.condition import Remembered

if TYPE_CHECKING:
    from microtome.tracing.model import Model

AGREE = 1e-5
"""Share of the logits' size that narrowing may move (float32)."""

_known: Remembered[bool] = Remembered()


@contextlib.contextmanager
def last_mlp_narrow(model: Model, lengths: Sequence[int]) -> Iterator[None]:
    """Compute the last block's MLP only where each row's answer is read; zero elsewhere.

    For passes that read no more than ``mlp.out`` of that block, and logits where answers are read.
    Does nothing where the last MLP is not one module, or where it was found to change the logits.

    Args:
        model: The model.
        lengths: Tokens of each row of the passes that follow.
    """
    module = _last_mlp(model)
    if module is None or not _agrees(model, module):
        yield
        return
    with _hooked(module, model.readout.positions(lengths)):
        yield


def _last_mlp(model: Model) -> nn.Module | None:
    anatomy = model.anatomy
    mlp = None if anatomy is None else anatomy.blocks[-1].mlp
    if mlp is None or mlp.path is None or mlp.router is not None:
        return None
    return model.module.get_submodule(mlp.path)


@contextlib.contextmanager
def _hooked(module: nn.Module, ends: torch.Tensor) -> Iterator[None]:
    widths: list[int] = []

    def before(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        stream = args[0]
        widths.append(stream.shape[1])
        rows = torch.arange(stream.shape[0], device=stream.device)
        return (stream[rows, ends.to(stream.device)].unsqueeze(1), *args[1:])

    def after(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        full = output.new_zeros(output.shape[0], widths.pop(), *output.shape[2:])
        rows = torch.arange(output.shape[0], device=output.device)
        return full.index_put((rows, ends.to(output.device)), output[:, 0])

    handles = [
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _agrees(model: Model, module: nn.Module) -> bool:
    """Return whether the logits that are read are the same; measured once."""
    return _known.of(model.module, lambda: _measured(model, module))


def _measured(model: Model, module: nn.Module) -> bool:
    anatomy = model.anatomy
    vocab, context = (1, 1) if anatomy is None else (anatomy.vocab, anatomy.context or 5)
    ids = torch.randint(0, vocab, (2, min(5, context)), generator=torch.Generator().manual_seed(0))
    prompts = [ids[0].tolist(), ids[1, : max(1, ids.shape[1] - 2)].tolist()]
    try:
        whole = _read(model, prompts)
        with _hooked(module, model.readout.positions([len(p) for p in prompts])):
            narrow = _read(model, prompts)
    except Exception:
        # a module that takes or gives something else than one tensor is left as it is
        return False
    slack = max(AGREE, 8 * torch.finfo(model.dtype).eps)
    return bool((whole - narrow).abs().max() <= slack * whole.abs().max())


def _read(model: Model, prompts: list[list[int]]) -> torch.Tensor:
    """Return the logits where each row's answer is read."""
    logits = model.trace(prompts, logits="last").logits
    return torch.zeros(0) if logits is None else logits.float()
