"""Learned masks: which latents to exchange, found by gradients through the model.

A mask over latents is relaxed to values between 0 and 1, moved to make the exchanged prompts give
the wanted answers, of both kinds, and sharpened to 0 or 1 as it learns (differential binary
masking, Huang et al., 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from microtome.errors import TrainingError
from microtome.sae.evaluation.interchange import Interchange, Pair

RATE = 0.1
"""Learning rate of Adam."""

COOLEST = 0.05
"""Temperature at the end, from 1 at the beginning."""

SPARSITY = 1e-3
"""Cost in nats of each exchanged latent, so that latents without effect are left out."""


def learned_mask(
    run: Interchange, pairs: Sequence[Pair], *, steps: int, batch_size: int
) -> tuple[int, ...]:
    """Return the latents that a learned mask exchanges, the surest first.

    Batches take the pairs of both kinds in turn. Latents that are active at no entity of the pairs
    are never chosen.

    Args:
        run: What runs the pairs.
        pairs: Pairs to learn from, of both kinds.
        steps: Batches.
        batch_size: Pairs of a batch.

    Raises:
        TrainingError: The loss is not finite.
    """
    used = sorted({number for pair in pairs for number in (pair.base, pair.source)})
    active = (run.latents[used] != 0).any(0)
    scores = torch.zeros(len(active), device=active.device, requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=RATE)
    kinds = [[p for p in pairs if p.kind == kind] for kind in ("cause", "isolation")]
    half = max(1, batch_size // 2)
    for step in range(steps):
        batch = [own[(step * half + i) % len(own)] for own in kinds for i in range(half)]
        temperature = COOLEST ** (step / max(1, steps - 1))
        mask = torch.sigmoid(scores / temperature) * active
        logits = run.exchanged(batch, mask, grad=True).float()
        wanted = torch.tensor([pair.wanted for pair in batch], device=logits.device)
        loss = torch.nn.functional.cross_entropy(logits, wanted) + SPARSITY * mask.sum()
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"the loss of a mask of latents is {float(loss):.3g} in step {step + 1}; the model "
                "gives no finite logits for these prompts"
            )
        (scores.grad,) = torch.autograd.grad(loss, [scores])
        optimizer.step()
    order = scores.detach().argsort(descending=True, stable=True)
    return tuple(int(i) for i in order if scores[i] > 0 and active[i])
