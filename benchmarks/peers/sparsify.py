"""Sparse coders by sparsify: its coder and the body of its trainer's step.

The trainer itself wants a language model and tokenized text. There is no BatchTopK.
"""

from __future__ import annotations

from importlib.metadata import version

import torch
from sparsify.config import SparseCoderConfig
from sparsify.sparse_coder import SparseCoder

from benchmarks.peers.coder_task import Clock, activations, batches, parse, report


def main() -> None:
    """Train and report."""
    task = parse()
    if task.activation != "topk":
        raise SystemExit("sparsify has no BatchTopK")
    values, truths = activations(task)
    settings = SparseCoderConfig(num_latents=task.d_sae, k=task.k, activation="topk")
    coder = SparseCoder(task.d_in, settings)
    coder.b_dec.data = values[: task.batch].mean(0)  # what its trainer starts from
    optimizer = torch.optim.Adam(coder.parameters(), lr=task.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / task.warm_up)
    )
    clock, stream = Clock(task), batches(values, task.batch)
    silent = torch.zeros(task.d_sae, dtype=torch.long)
    for _ in range(task.steps):
        found = coder(next(stream), dead_mask=None)  # its default: auxk_alpha = 0
        found.fvu.backward()
        silent += task.batch
        silent[found.latent_indices.flatten().unique()] = 0
        coder.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        coder.set_decoder_norm_to_unit_norm()
        clock.tick()

    def reconstruct(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = coder(rows)
        latents = torch.zeros(len(rows), task.d_sae)
        return found.sae_out, latents.scatter_(1, found.latent_indices, found.latent_acts)

    report(task, clock, values, truths, coder.W_dec, reconstruct, version=version("eai-sparsify"))


if __name__ == "__main__":
    main()
