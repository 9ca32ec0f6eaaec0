"""One step of the optimizer: gradients brought in shape, Adam, decoder rows back to norm 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from microtome.sae.coder import SAE, reach_mask, skip_mask

if TYPE_CHECKING:
    from microtome.sae.config import Config

LARGEST = 1e18
"""Gradients of a larger norm would overflow Adam's averages; they count as not finite."""

PASS_ROWS = 256
"""Rows of a matrix that are worked on at a time: several operations while they are in the cache."""


class Optimizer:
    """Adam with the constraints of a sparse coder.

    Args:
        coder: What is trained, in place.
        config: Settings of the run.
    """

    def __init__(self, coder: SAE, config: Config) -> None:
        self.config = config
        self.weights = trained_weights(coder)
        make, device = coder.architecture, coder.weights["W_dec"].device
        masks = {"W_dec": reach_mask(make), "W_skip": skip_mask(make)}
        self._masks = {name: mask.to(device) for name, mask in masks.items() if mask is not None}
        self._adam = torch.optim.Adam(
            list(self.weights.values()), lr=0.0, betas=config.betas, fused=True
        )

    @torch.no_grad()
    def step(self, lr: float) -> float:
        """Take one step and forget the gradients.

        Args:
            lr: Learning rate of this step.

        Returns:
            Norm of the gradient before it was cut. Where it is not finite nothing was changed.
        """
        for name, mask in self._masks.items():
            if (gradient := self.weights[name].grad) is not None:
                gradient.mul_(mask)
        decoder = self.weights["W_dec"]
        if decoder.grad is not None and self.config.unit_norm:
            _remove_along(decoder.grad, decoder)
        gradients = [w.grad for w in self.weights.values() if w.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if norm <= LARGEST:  # false for NaN, too
            clip = self.config.clip
            cut = norm / clip if clip and norm > clip else None
            # the fused step divides by it on the way, which a pass of its own would cost more for
            self._adam.grad_scale = None if cut is None else decoder.new_tensor(cut)  # type: ignore[attr-defined]
            self._adam.param_groups[0]["lr"] = lr
            self._adam.step()
            self._constrain()
        self._adam.zero_grad()
        return norm if norm <= LARGEST else float("nan")

    def _constrain(self) -> None:
        if self.config.unit_norm:
            for rows in self.weights["W_dec"].split(PASS_ROWS):
                rows.div_(rows.norm(dim=1, keepdim=True).clamp_min_(1e-12))
        if "threshold" in self.weights:
            self.weights["threshold"].clamp_min_(0)

    @torch.no_grad()
    def forget(self, latents: Tensor) -> None:
        """Set the averages of some latents' weights to zero, for latents that start again."""
        for name, weight in self.weights.items():
            if name not in ("b_dec", "W_skip"):
                for average in ("exp_avg", "exp_avg_sq"):
                    if weight in self._adam.state:
                        self._adam.state[weight][average][latents] = 0

    def state(self) -> dict[str, Tensor]:
        """Return the averages and the count by weight, for a checkpoint."""
        return {
            f"{name}.{part}": value
            for name, weight in self.weights.items()
            for part, value in self._adam.state.get(weight, {}).items()
        }

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of :meth:`state` after any step, by name."""
        return {
            f"{name}.{part}": () if part == "step" else tuple(weight.shape)
            for name, weight in self.weights.items()
            for part in ("step", "exp_avg", "exp_avg_sq")
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave."""
        for name, weight in self.weights.items():
            found: dict[str, Any] = {
                part: state[f"{name}.{part}"].to(weight.device)
                for part in ("step", "exp_avg", "exp_avg_sq")
                if f"{name}.{part}" in state
            }
            if found:
                self._adam.state[weight] = found


def trained_weights(coder: SAE) -> dict[str, Tensor]:
    """Return the weights that gradients train; BatchTopK's threshold is measured at the end."""
    measured = coder.architecture.activation == "batchtopk"
    return {n: w for n, w in coder.weights.items() if not (measured and n == "threshold")}


def _remove_along(gradient: Tensor, directions: Tensor) -> None:
    """Take the part along its direction, of norm 1, out of each row of a gradient, in place."""
    for rows, along in zip(gradient.split(PASS_ROWS), directions.split(PASS_ROWS), strict=True):
        rows.addcmul_(torch.linalg.vecdot(rows, along)[:, None], along, value=-1)
