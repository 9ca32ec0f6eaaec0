"""The forward pass in training: latents and reconstructions, from the kept entries where few are.

Latents come in one of two forms with the same few operations, so that activations and losses are
written once: ``Kept`` holds the entries that the selection kept, ``Full`` a whole matrix. The full
form is for coders with no fixed number of latents while most of them are active; the definitions
that the sparse form is tested against are those of :mod:`microtome.sae.encoding`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional

from microtome.sae.architecture import Architecture
from microtome.sae.encoding import Weights, pre_activations
from microtome.sae.kernels import Entries, dots, sums
from microtome.sae.selecting.selection import Selection, Selector


class Form(Protocol):
    """How the latents of a batch are laid out."""

    def spread(self, vector: Tensor) -> Tensor:
        """Return one number for each latent ``[d_sae]`` at every place where it may be active."""

    def decode(self, values: Tensor, directions: Tensor) -> Tensor:
        """Return the weighted sums of directions ``[row, d_out]``."""

    def decode_prefixes(
        self, values: Tensor, directions: Tensor, prefixes: tuple[int, ...]
    ) -> Tensor:
        """Return the same for each number of first latents ``[prefix, row, d_out]``."""

    def fired(self, values: Tensor) -> Tensor:
        """Return which latents are not 0 in some row ``[d_sae]``, bool."""


@dataclass(frozen=True, eq=False)
class Kept:
    """Only the kept entries."""

    entries: Entries

    def spread(self, vector: Tensor) -> Tensor:
        """Return the number of each entry's latent."""
        return vector.index_select(0, self.entries.latents)

    def decode(self, values: Tensor, directions: Tensor) -> Tensor:
        """Return the weighted sums of the kept directions."""
        return sums(values, directions, self.entries)

    def decode_prefixes(
        self, values: Tensor, directions: Tensor, prefixes: tuple[int, ...]
    ) -> Tensor:
        """Return the sums of each prefix: those of its latents since the last one, added up."""
        kept = self.entries
        ends = torch.tensor(prefixes[:-1], device=kept.latents.device)
        part = torch.bucketize(kept.latents, ends, right=True)
        count = len(prefixes)
        finer = Entries(kept.bags * count + part, kept.latents, kept.n_bags * count, kept.n_latents)
        parts = sums(values, directions, finer).view(kept.n_bags, count, -1)
        return parts.cumsum(1).transpose(0, 1)

    def fired(self, values: Tensor) -> Tensor:
        """Return which latents have an entry that is not 0."""
        found = torch.zeros(self.entries.n_latents, dtype=torch.bool, device=values.device)
        found[self.entries.latents[values != 0]] = True
        return found


@dataclass(frozen=True, eq=False)
class Full:
    """The whole matrix ``[row, d_sae]``."""

    def spread(self, vector: Tensor) -> Tensor:
        """Return the vector itself: it is the same in every row."""
        return vector

    def decode(self, values: Tensor, directions: Tensor) -> Tensor:
        """Return the product with all directions."""
        return values @ directions

    def decode_prefixes(
        self, values: Tensor, directions: Tensor, prefixes: tuple[int, ...]
    ) -> Tensor:
        """Return the products with the first directions."""
        ends = zip((0, *prefixes), prefixes, strict=False)
        parts = [values[:, a:b] @ directions[a:b] for a, b in ends]
        return torch.stack(parts).cumsum(0)

    def fired(self, values: Tensor) -> Tensor:
        """Return which columns are not all 0."""
        return (values != 0).any(0)


@dataclass(frozen=True, eq=False)
class Passed:
    """What one forward pass gives.

    Attributes:
        form: How the latents are laid out.
        values: Activations, ``[entry]`` or ``[row, d_sae]``, differentiable like the rest.
        pre: Pre-activations likewise; a gated coder's carry no bias.
        outputs: Reconstructions ``[prefix, row, d_out]``; the last is by all latents.
        gate: What a gated coder's gate sees, None for others.
    """

    form: Form
    values: Tensor
    pre: Tensor
    outputs: Tensor
    gate: Tensor | None = None


def forward(
    make: Architecture,
    weights: Weights,
    inputs: Tensor,
    selector: Selector,
    *,
    bandwidth: float = 0.05,
) -> Passed:
    """Return latents and reconstructions of a batch as in training, differentiable.

    BatchTopK keeps the largest of the batch. JumpReLU's threshold gets the straight-through
    gradient of Rajamanoharan et al. (2024b).

    Args:
        make: The coder's make.
        weights: Its weights.
        inputs: ``[row, d_in]``.
        selector: Chooses the latents; remembers from batch to batch.
        bandwidth: Of the straight-through gradient.
    """
    found = selector.select(make, weights, inputs, reach=bandwidth / 2)
    if found is None:
        form: Form = Full()
        pre = pre_activations(make, weights, inputs)
    else:
        form = Kept(found.entries)
        pre = kept_pre_activations(make, weights, inputs, found)
    gate = None
    if make.activation == "abstopk":
        values = pre
    elif make.activation == "gated":
        gate = pre + form.spread(weights["b_gate"])
        strength = pre * form.spread(weights["r_mag"].exp()) + form.spread(weights["b_mag"])
        values = strength.relu() * (gate > 0)
    elif make.activation == "jumprelu":
        values = jump(pre.relu(), form.spread(weights["threshold"]), bandwidth)
    else:
        values = pre.relu()
    outputs = decoded(make, weights, form, values, inputs)
    return Passed(form, values, pre, outputs, gate)


def decoded(
    make: Architecture, weights: Weights, form: Form, values: Tensor, inputs: Tensor
) -> Tensor:
    """Return the reconstructions of all prefixes ``[prefix, row, d_out]``, bypass included."""
    if len(make.prefixes) > 1:
        outputs = form.decode_prefixes(values, weights["W_dec"], make.prefixes)
    else:
        outputs = form.decode(values, weights["W_dec"])[None]
    outputs = outputs + weights["b_dec"]
    return outputs + inputs @ weights["W_skip"].T if make.skip else outputs


def kept_pre_activations(
    make: Architecture, weights: Weights, inputs: Tensor, found: Selection
) -> Tensor:
    """Return the pre-activations of the kept entries ``[entry]``, differentiable."""
    kept = found.entries
    if make.kronecker is not None:
        centered = inputs - weights["b_dec"] if make.center else inputs
        return _kronecker(make.kronecker, weights, centered, found)
    encoder = weights["W_dec"] if make.encoder == "tied" else weights["W_enc"]
    bias = encoder.new_zeros(make.d_sae) if make.activation == "gated" else weights["b_enc"]
    if make.center and make.reach == "all":
        bias = _centering(bias, weights["b_dec"], encoder)
        inputs = inputs - weights["b_dec"].detach()
    elif make.center:
        inputs = inputs - weights["b_dec"]
    if make.reach != "all":
        inputs, kept = _by_source(make, inputs, kept)
    spread = bias.index_select(0, kept.latents)
    return dots(inputs, encoder, kept, found.known - spread.detach()) + spread


def _centering(bias: Tensor, center: Tensor, encoder: Tensor) -> Tensor:
    """Return the bias unchanged, with the gradient that the center has through the encoder."""
    found: Tensor = cast(Any, _Centering).apply(bias, center, encoder)
    return found


class _Centering(torch.autograd.Function):
    """The gradient of ``encoder @ (inputs - center)`` at the center is one product of a vector."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, center: Tensor, encoder: Tensor) -> Tensor:
        ctx.save_for_backward(encoder)
        return bias.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None]:
        (encoder,) = ctx.saved_tensors
        return gradients[0], -(gradients[0] @ encoder), None


def _by_source(make: Architecture, inputs: Tensor, kept: Entries) -> tuple[Tensor, Entries]:
    """Return the sources as rows of their own, and the entries at the rows their latents read."""
    count, widest = len(make.sources), max(make.sources)
    padded = [
        functional.pad(inputs[:, part], (0, widest - (part.stop - part.start)))
        for part in make.source_slices
    ]
    rows = torch.stack(padded, 1).flatten(0, 1)
    source = kept.latents // (make.d_sae // count)
    return rows, Entries(kept.bags * count + source, kept.latents, len(rows), kept.n_latents)


def _kronecker(
    shape: tuple[int, int, int], weights: Weights, inputs: Tensor, found: Selection
) -> Tensor:
    """Return the geometric means of the kept latents' units, 0 where one is not positive."""
    heads, left, right = shape
    kept, known = found.entries, found.units or (None, None)
    head, unit = kept.latents // (left * right), kept.latents % (left * right)
    sides = []
    for side, width, number, there in (
        ("left", left, unit // right, known[0]),
        ("right", right, unit % right, known[1]),
    ):
        units = Entries(kept.bags, head * width + number, kept.n_bags, heads * width)
        bias = weights[f"b_{side}"].index_select(0, units.latents)
        dotted = None if there is None else there - bias.detach()
        sides.append((dots(inputs, weights[f"W_{side}"], units, dotted) + bias).relu())
    product = sides[0] * sides[1]
    positive = product > 0
    return torch.where(positive, product.where(positive, product.new_ones(())).sqrt(), 0)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(values, threshold)
        ctx.bandwidth = bandwidth
        return values * (values > threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None]:
        values, threshold = ctx.saved_tensors
        near = _near(values, threshold, ctx.bandwidth)
        to_threshold = -(threshold / ctx.bandwidth) * near * gradients[0]
        return gradients[0] * (values > threshold), _fold(to_threshold, threshold), None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(values, threshold)
        ctx.bandwidth = bandwidth
        return (values > threshold).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor, None]:
        values, threshold = ctx.saved_tensors
        to_threshold = _near(values, threshold, ctx.bandwidth) * (-1 / ctx.bandwidth) * gradients[0]
        return None, _fold(to_threshold, threshold), None


def jump(values: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Return values above the threshold, with a pseudo-gradient for it."""
    found: Tensor = cast(Any, _Jump).apply(values, threshold, bandwidth)
    return found


def step(values: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Return 1 above the threshold and 0 below, with a pseudo-gradient for it alone."""
    found: Tensor = cast(Any, _Step).apply(values, threshold, bandwidth)
    return found


def _near(values: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Return the rectangle kernel: 1 for positive values within half a bandwidth."""
    return ((values - threshold).abs() < bandwidth / 2) & (values > 0)


def _fold(gradient: Tensor, like: Tensor) -> Tensor:
    """Return a gradient summed over the axes along which a vector was repeated."""
    return gradient if gradient.shape == like.shape else gradient.sum(0)
