"""One step of the optimizer: gradients brought in shape, Adam, decoder rows back to norm 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from microtome.sae.coder import SAE, reach_mask

if TYPE_CHECKING:
    from microtome.sae.config import Config

LARGEST = 1e18
"""Gradients of a larger norm would overflow Adam's averages; they count as not finite."""


class Optimizer:
    """Adam with the constraints of a sparse coder.

    Args:
        coder: What is trained, in place.
        config: Settings of the run.
    """

    def __init__(self, coder: SAE, config: Config) -> None:
        self.config = config
        self.weights = trained_weights(coder)
        mask = reach_mask(coder.architecture)
        self._mask = None if mask is None else mask.to(coder.weights["W_dec"].device)
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
        decoder = self.weights["W_dec"]
        if decoder.grad is not None:
            if self._mask is not None:
                decoder.grad.mul_(self._mask)
            if self.config.unit_norm:
                along = torch.linalg.vecdot(decoder.grad, decoder)
                decoder.grad.addcmul_(along[:, None], decoder, value=-1)
        norm = float(torch.nn.utils.get_total_norm(self._gradients()))
        if norm <= LARGEST:  # false for NaN, too
            if self.config.clip and norm > self.config.clip:
                for gradient in self._gradients():
                    gradient.mul_(self.config.clip / norm)
            self._adam.param_groups[0]["lr"] = lr
            self._adam.step()
            self._constrain()
        self._adam.zero_grad()
        return norm if norm <= LARGEST else float("nan")

    def _gradients(self) -> list[Tensor]:
        return [w.grad for w in self.weights.values() if w.grad is not None]

    def _constrain(self) -> None:
        if self.config.unit_norm:
            decoder = self.weights["W_dec"]
            decoder.div_(decoder.norm(dim=1, keepdim=True).clamp_min_(1e-12))
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
