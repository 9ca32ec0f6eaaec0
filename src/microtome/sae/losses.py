"""What training minimizes: squared error, a penalty for active latents, and AuxK.

Errors are divided by the output's width. As every target is scaled to a mean squared norm of its
width, a loss of 1 is about what predicting zero gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from microtome.sae.architecture import Architecture
from microtome.sae.config import Config
from microtome.sae.encoding import Weights, kronecker_latents, pre_activations
from microtome.sae.passing import Passed, step

TANH_SLOPE = 4.0
"""How fast ``penalty="tanh"`` saturates."""

AUX_ENTRIES = 2**17
"""Entries (row, dead latent) that AuxK looks at in a batch; with more dead latents, fewer rows."""


@dataclass(frozen=True, eq=False)
class Loss:
    """The loss of a batch.

    Attributes:
        total: What is minimized, differentiable.
        parts: Its parts by name, as they enter it.
        errors: Targets minus the whole reconstruction ``[row, d_out]``, without a graph.
        dead: Numbers of the dead latents that AuxK revives.
        revived: Their weights by name, leaves of the graph: a gradient for whole matrices would
            cost more than all the rest of AuxK.
    """

    total: Tensor
    parts: dict[str, Tensor]
    errors: Tensor
    dead: Tensor | None = None
    revived: Mapping[str, Tensor] = field(default_factory=dict)

    def backward(self, weights: Weights) -> None:
        """Add the gradient of the total to that of each weight."""
        self.total.backward()
        for name, rows in self.revived.items():
            weight = weights[name]
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            if self.dead is not None and rows.grad is not None:
                weight.grad.index_add_(0, self.dead, rows.grad)


def loss(
    make: Architecture,
    config: Config,
    weights: Weights,
    passed: Passed,
    inputs: Tensor,
    targets: Tensor,
    *,
    sparsity: float,
    dead: Tensor | None = None,
) -> Loss:
    """Return the loss of a batch.

    Args:
        make: The coder's make.
        config: The run's settings.
        weights: The coder's weights.
        passed: Its forward pass.
        inputs: ``[row, d_in]``.
        targets: ``[row, d_out]``.
        sparsity: Weight of the penalty now.
        dead: Numbers of the dead latents, None to leave AuxK out.
    """
    size, outputs = targets.numel(), passed.outputs
    off = functional.mse_loss(outputs, targets.expand_as(outputs), reduction="sum")
    parts = {"error": off / size}  # over all prefixes (Matryoshka)
    if config.penalized:
        weight = sparsity if config.penalized == "target" else sparsity / make.d_out
        parts["penalty"] = weight * penalty(config, weights, passed, len(inputs))
    if passed.gate is not None:
        parts["gate"] = _gate_error(weights, passed, inputs, targets, make) / size
    errors = targets - outputs[-1].detach()
    revived: dict[str, Tensor] = {}
    if dead is not None and len(dead) and config.aux:
        own, numbers = weights, dead
        alone = ("W_enc", "W_dec", "b_enc", "b_gate") if _separable(make) else ("W_dec",)
        revived = {n: weights[n].detach()[dead].requires_grad_() for n in alone if n in weights}
        if _separable(make):
            own, numbers = {**weights, **revived}, torch.arange(len(dead), device=dead.device)
        aux_k = config.aux_k or max(1, make.d_out // 2)
        found = aux_loss(make, own, inputs, errors, numbers, aux_k, revived["W_dec"])
        parts["aux"] = config.aux * found
    total = torch.stack(list(parts.values())).sum()
    kept = {name: value.detach() for name, value in parts.items()}
    return Loss(total, kept, errors, dead, revived)


def penalty(config: Config, weights: Weights, passed: Passed, rows: int) -> Tensor:
    """Return the mean penalty of a row for active latents; see :class:`Config`.

    Decoder norms weigh in where they are not kept at 1.
    """
    form, kind = passed.form, config.penalized
    if kind in ("l0", "target"):
        threshold = form.spread(weights["threshold"])
        active = step(passed.pre.relu(), threshold, config.bandwidth).sum() / rows
        return (active / config.target_l0 - 1).square() if kind == "target" else active
    values = passed.values if passed.gate is None else passed.gate.relu()
    if not config.unit_norm:
        values = values * form.spread(weights["W_dec"].norm(dim=1))
    return (torch.tanh(TANH_SLOPE * values) if kind == "tanh" else values).sum() / rows


def _gate_error(
    weights: Weights, passed: Passed, inputs: Tensor, targets: Tensor, make: Architecture
) -> Tensor:
    """Return the squared error of reconstructing from the gate, by the decoder as it is.

    It is what trains the gate of Rajamanoharan et al. (2024a).
    """
    if passed.gate is None:
        raise AssertionError("only gated coders have a gate")
    values = passed.gate.relu()
    output = passed.form.decode(values, weights["W_dec"].detach()) + weights["b_dec"].detach()
    if make.skip:
        output = output + inputs @ weights["W_skip"].detach().T
    return (targets - output).square().sum()


def aux_loss(
    make: Architecture,
    weights: Weights,
    inputs: Tensor,
    errors: Tensor,
    dead: Tensor,
    aux_k: int,
    directions: Tensor | None = None,
) -> Tensor:
    """Return the share of the error's variance that dead latents leave (AuxK, Gao et al., 2024).

    The ``aux_k`` largest of them in each row reconstruct the error; the gradient reaches encoder
    and decoder of dead latents alone. The work grows with their number up to a limit, from where
    fewer rows are taken.

    Args:
        make: The coder's make.
        weights: Its weights.
        inputs: ``[row, d_in]``.
        errors: ``[row, d_out]``, a constant.
        dead: Numbers of the dead latents.
        aux_k: Latents of a row that take part.
        directions: The decoder's rows of the dead latents, taken from it unless given.
    """
    count = max(16, AUX_ENTRIES // len(dead))
    inputs, errors = inputs[:count], errors[:count]
    centered = inputs - weights["b_dec"].detach() if make.center else inputs
    if _separable(make):
        encoder = weights["W_dec"] if make.encoder == "tied" else weights["W_enc"]
        pre = centered @ encoder[dead].T
        pre = pre + weights["b_gate" if make.activation == "gated" else "b_enc"][dead]
    elif make.kronecker is not None:
        pre = kronecker_latents(make.kronecker, weights, centered, dead)
    else:
        fixed = {n: w.detach() if n == "b_dec" else w for n, w in weights.items()}
        pre = pre_activations(make, fixed, inputs)[:, dead]
        pre = pre + weights["b_gate"][dead] if make.activation == "gated" else pre
    values = pre.relu()
    if aux_k < len(dead):
        top = values.topk(aux_k, dim=1, sorted=False).indices
        values = values * torch.zeros_like(values).scatter(1, top, 1.0)
    guess = values @ (weights["W_dec"][dead] if directions is None else directions)
    spread = (errors - errors.mean(0)).square().sum()
    return (errors - guess).square().sum() / spread.clamp_min(1e-12)


def _separable(make: Architecture) -> bool:
    """Return whether a latent's weights are rows of its own, which see the whole input."""
    return make.reach == "all" and make.encoder != "kronecker"
