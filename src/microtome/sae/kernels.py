"""Products with the kept entries only: what a sparse coder computes past the selection.

Of the ``rows x d_sae`` latents of a batch some dozens a row are kept. With them as a list of
entries (row, latent), both directions of a coder and all their gradients are two operations::

    dot   one number for each entry: the product of its row of one matrix with its row of another;
    sum   one row for each row (or for each latent): the weighted sum of the other's rows.

    forward    values  = dot(inputs, encoder)         output     = sum over a row of the decoder
    backward   g value = dot(g output, decoder)       g decoder  = sum over a latent of g output
                                                      g encoder  = sum over a latent of the inputs

Nothing of size ``rows x d_sae`` is formed. Both are ``embedding_bag`` kernels, on a processor as on
a GPU: the sum is its forward, the dot the gradient of its weights, or on a processor a sampled
product of sparse matrices, which is faster there.

Rows may be finer than the batch's: a coder whose latents read one of several sources has one "bag"
for each row and source, one with Matryoshka prefixes one for each row and prefix.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Entries:
    """The kept entries of a batch, in the order of their bags.

    Attributes:
        bags: Bag of each entry ``[entry]``, int64, never falling.
        latents: Latent of each entry ``[entry]``, int64.
        n_bags: Number of bags.
        n_latents: Number of latents.
    """

    bags: Tensor
    latents: Tensor
    n_bags: int
    n_latents: int

    @cached_property
    def offsets(self) -> Tensor:
        """Where each bag begins ``[bag]``."""
        return _starts(self.bags, self.n_bags)

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The order of the entries by latent, their bags in it, where each latent begins."""
        keys = self.latents
        if self.n_latents < 2**15:  # short keys sort three times faster
            keys = keys.to(torch.int16)
        order = keys.argsort(stable=True)
        return order, self.bags[order], _starts(self.latents, self.n_latents)


def _starts(numbers: Tensor, count: int) -> Tensor:
    """Return how many of the numbers lie below each of 0 to ``count`` - 1."""
    ends = torch.bincount(numbers, minlength=count).cumsum(0)
    return torch.cat([ends.new_zeros(1), ends[:-1]])


def dots(
    inputs: Tensor, directions: Tensor, entries: Entries, known: Tensor | None = None
) -> Tensor:
    """Return the product of each entry's input and direction ``[entry]``, differentiable.

    Args:
        inputs: ``[bag, width]``.
        directions: ``[latent, width]``.
        entries: Which products.
        known: The products, where the selection has computed them already.
    """
    product: Tensor = cast(Any, _Dots).apply(inputs, directions, entries, known)
    return product


def sums(values: Tensor, directions: Tensor, entries: Entries) -> Tensor:
    """Return the sum of each bag's directions times values ``[bag, width]``, differentiable.

    Args:
        values: ``[entry]``.
        directions: ``[latent, width]``.
        entries: Which directions.
    """
    total: Tensor = cast(Any, _Sums).apply(values, directions, entries)
    return total


class _Dots(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, directions: Tensor, entries: Entries, known: Tensor | None
    ) -> Tensor:
        ctx.entries = entries
        ctx.save_for_backward(inputs, directions)
        if known is not None:
            return known
        return dot(inputs, directions, entries)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inputs, directions = ctx.saved_tensors
        to_inputs = to_directions = None
        if ctx.needs_input_grad[0]:
            to_inputs = _bag_sum(directions, gradient, ctx.entries)
        if ctx.needs_input_grad[1]:
            to_directions = _latent_sum(inputs, gradient, ctx.entries)
        return to_inputs, to_directions, None, None


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, directions: Tensor, entries: Entries) -> Tensor:
        ctx.entries = entries
        ctx.save_for_backward(values, directions)
        return _bag_sum(directions, values, entries)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        gradient = gradients[0].contiguous()
        values, directions = ctx.saved_tensors
        to_values = to_directions = None
        if ctx.needs_input_grad[0]:
            to_values = dot(gradient, directions, ctx.entries)
        if ctx.needs_input_grad[1]:
            to_directions = _latent_sum(gradient, values, ctx.entries)
        return to_values, to_directions, None


def _bag_sum(directions: Tensor, values: Tensor, entries: Entries) -> Tensor:
    return functional.embedding_bag(
        entries.latents, directions, entries.offsets, per_sample_weights=values, mode="sum"
    )


def _latent_sum(rows: Tensor, values: Tensor, entries: Entries) -> Tensor:
    order, bags, starts = entries.by_latent
    return functional.embedding_bag(
        bags, rows, starts, per_sample_weights=values[order], mode="sum"
    )


def dot(rows: Tensor, directions: Tensor, entries: Entries) -> Tensor:
    """Return the product of each entry's row and direction ``[entry]``, without a graph."""
    if entries.latents.numel() == 0:
        return public_dot(rows, directions, entries)
    if rows.device.type == "cpu" and _samples():
        return _sampled(rows, directions, entries)
    kernel = _direct_dot()
    if kernel is None:
        return public_dot(rows, directions, entries)
    return kernel(rows, directions, entries.latents, entries.offsets, entries.bags, 0)


def _sampled(rows: Tensor, directions: Tensor, entries: Entries) -> Tensor:
    """Return the products as the entries of a sparse matrix, for which nothing else is formed."""
    ends = entries.offsets.new_full((1,), entries.latents.numel())
    places = torch.sparse_csr_tensor(
        torch.cat([entries.offsets, ends]),
        entries.latents,
        rows.new_zeros(entries.latents.numel()),
        (len(rows), len(directions)),
        check_invariants=False,
    )
    found = torch.sparse.sampled_addmm(places, rows.detach(), directions.detach().T, beta=0.0)
    products: Tensor = found.values()
    return products


@cache
def _samples() -> bool:
    """Return whether this torch has sampled products that come out right, columns in any order."""
    rows, directions = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])
    entries = Entries(torch.tensor([0, 0]), torch.tensor([1, 0]), 1, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # once, that sparse matrices are young in torch
            return _sampled(rows, directions, entries).tolist() == [17.0, 11.0]
    except (AttributeError, RuntimeError, TypeError):
        return False


def public_dot(rows: Tensor, directions: Tensor, entries: Entries) -> Tensor:
    """Return each entry's product by the public way: the gradient of a bag's weights.

    It computes the bags' sums to no use first, which costs about a third more.
    """
    weights = rows.new_zeros(entries.latents.numel(), requires_grad=True)
    with torch.enable_grad():
        unused = functional.embedding_bag(
            entries.latents, directions.detach(), entries.offsets, per_sample_weights=weights,
            mode="sum",
        )  # fmt: skip
    (found,) = torch.autograd.grad(unused, weights, rows)
    return found


@cache
def _direct_dot() -> Callable[..., Tensor] | None:
    """Return the kernel behind that gradient, None where this torch's differs or lacks it."""
    try:
        kernel = torch.ops.aten._embedding_bag_per_sample_weights_backward
        rows, directions = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])
        latents, bags = torch.tensor([1, 0]), torch.tensor([0, 0])
        found = kernel(rows, directions, latents, torch.tensor([0]), bags, 0)
        worked = found.tolist() == [17.0, 11.0]
    except (AttributeError, RuntimeError, TypeError):
        return None
    return cast(Callable[..., Tensor], kernel) if worked else None
