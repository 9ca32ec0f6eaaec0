"""Latents that have stopped firing: counted, and if asked for started again."""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.core.seeds import torch_generator
from microtome.sae.architecture import COUNTED
from microtome.sae.coder import SAE
from microtome.sae.optimization import Optimizer

RESAMPLED_NORM = 0.2
"""Norm of a resampled encoder row, as a share of the living rows' mean (Bricken et al., 2023).

Where latents compete to be counted it is 1: a smaller one would never be among the largest."""


class DeadCounter:
    """Rows since each latent last fired.

    Args:
        d_sae: Number of latents.
        after: Rows without activity from which a latent is dead.
        device: Where the counts lie.
    """

    def __init__(self, d_sae: int, after: int, device: str = "cpu") -> None:
        self.after = after
        self.silent = torch.zeros(d_sae, dtype=torch.int64, device=device)

    def add(self, fired: Tensor, rows: int) -> None:
        """Take note of a batch of rows in which these latents ``[d_sae]`` fired."""
        self.silent += rows
        self.silent[fired] = 0

    def dead(self) -> Tensor:
        """Return the numbers of the dead latents."""
        return (self.silent >= self.after).nonzero().squeeze(1)

    @property
    def share(self) -> float:
        """Share of the latents that are dead."""
        return len(self.dead()) / len(self.silent)


@torch.no_grad()
def resample(
    coder: SAE,
    optimizer: Optimizer,
    counter: DeadCounter,
    inputs: Tensor,
    errors: Tensor,
    *,
    seed: int,
    step: int,
) -> int:
    """Start dead latents again from rows that are badly reconstructed (Bricken et al., 2023).

    A row is drawn with a probability in proportion to its squared squared error. Its error becomes
    the decoder's direction, its input the encoder's; what the optimizer remembers is dropped.

    Args:
        coder: What is trained, with a dense encoder.
        optimizer: Its optimizer.
        counter: Which latents are dead; they count as living afterwards.
        inputs: ``[row, d_in]``.
        errors: ``[row, d_out]``.
        seed: The run's seed.
        step: Number of the step, part of the random stream's name.

    Returns:
        How many latents were started again.
    """
    dead = counter.dead()
    if not len(dead) or not bool(errors.any()):
        return 0
    weights = coder.weights
    weight = errors.double().square().sum(1).square().cpu()
    generator = torch_generator(seed, "sae", "resample", str(step))
    rows = weight.multinomial(len(dead), replacement=True, generator=generator).to(errors.device)
    living = torch.ones(coder.d_sae, dtype=torch.bool, device=errors.device)
    living[dead] = False
    norms = weights["W_enc"].norm(dim=1)
    size = norms[living].mean() if bool(living.any()) else norms.mean()
    centered = inputs[rows] - weights["b_dec"] if coder.architecture.center else inputs[rows]
    share = 1.0 if coder.architecture.activation in COUNTED else RESAMPLED_NORM
    weights["W_enc"][dead] = share * size * _unit(centered)
    weights["W_dec"][dead] = _unit(errors[rows])
    for name in ("b_enc", "b_gate", "b_mag", "r_mag"):
        if name in weights:
            weights[name][dead] = 0
    if coder.architecture.activation == "jumprelu":  # a high one may be why they are dead
        weights["threshold"][dead] = optimizer.config.threshold
    optimizer.forget(dead)
    counter.silent[dead] = 0
    return len(dead)


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)
