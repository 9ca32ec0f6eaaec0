"""Sparse coders in plain PyTorch, as fast as it goes: the bar to meet.

The encoder's product selects, exact float32 values of the kept entries are gathered, decoding and
all gradients are ``embedding_bag`` calls. No clipping, no dead latents, no metrics.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.coder_task import Clock, CoderTask, activations, batches, parse, report

BLOCK, GROUPS = 512, 512


def row_top(pre: Tensor, k: int) -> Tensor:
    """Return the latents ``[row, k]`` of the largest entries, through maxima of groups."""
    rows, width = pre.shape
    keys = pre.view(torch.int16) if pre.dtype == torch.bfloat16 else pre
    members = keys.view(rows, -1, GROUPS)
    group = members.amax(1).topk(k, sorted=False).indices
    candidates = members.gather(2, group[:, None, :].expand(-1, members.shape[1], -1))
    place = candidates.reshape(rows, -1).topk(k, sorted=False).indices
    return (place // k) * GROUPS + group.gather(1, place % k)


class Raw:
    """A coder and its optimizer."""

    def __init__(self, task: CoderTask, start: Tensor) -> None:
        rows = torch.randn(task.d_sae, task.d_in)
        self.decoder = rows / rows.norm(dim=1, keepdim=True)
        self.encoder = self.decoder.clone()
        self.bias, self.center = torch.zeros(task.d_sae), start.clone()
        self.parameters = [self.encoder, self.decoder, self.bias, self.center]
        self.optimizer = torch.optim.Adam(self.parameters, lr=task.lr, fused=True)
        self.task, self.threshold, self.buffer = task, 0.0, torch.empty(0)
        self.dtype = torch.bfloat16 if task.variant == "bfloat16" else torch.float32

    def select(self, centered: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows and latents of the kept entries, in the order of the rows."""
        task, rows = self.task, len(centered)
        inputs = centered.to(self.dtype)
        encoder, bias = self.encoder.to(self.dtype).T, self.bias.to(self.dtype)
        size = BLOCK if task.activation == "topk" else rows
        if len(self.buffer) != size:
            self.buffer = torch.empty(size, task.d_sae, dtype=self.dtype)
        if task.activation == "topk":
            found = []
            for part in inputs.split(BLOCK):
                pre = torch.addmm(bias, part, encoder, out=self.buffer[: len(part)])
                found.append(row_top(pre, task.k))
            return torch.arange(rows).repeat_interleave(task.k), torch.cat(found).flatten()
        flat = torch.addmm(bias, inputs, encoder, out=self.buffer).view(-1)
        wanted = task.k * rows
        candidates = (flat > 0.9 * self.threshold).nonzero().squeeze(1) if self.threshold else None
        if candidates is None or len(candidates) < wanted:
            values, chosen = flat.topk(wanted, sorted=False)
        else:
            values, order = flat[candidates].topk(wanted, sorted=False)
            chosen = candidates[order]
        least = values.min().item()
        self.threshold = 0.8 * self.threshold + 0.2 * least if self.threshold else least
        chosen = chosen.sort().values
        return chosen // task.d_sae, chosen % task.d_sae

    def dot(self, left: Tensor, rows: Tensor, right: Tensor, latents: Tensor, at: Tensor) -> Tensor:
        """Return the product of each entry's rows of two matrices."""
        kernel = torch.ops.aten._embedding_bag_per_sample_weights_backward
        return kernel(left, right, latents, at, rows, 0)

    @torch.no_grad()
    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Return what the backward needs, the reconstruction last."""
        centered = batch - self.center
        rows, latents = self.select(centered)
        at = torch.searchsorted(rows, torch.arange(len(batch)))
        values = self.dot(centered, rows, self.encoder, latents, at)
        values = values.add_(self.bias[latents]).relu_()
        output = F.embedding_bag(latents, self.decoder, at, per_sample_weights=values, mode="sum")
        return centered, rows, latents, values, at, output + self.center

    @torch.no_grad()
    def step(self, batch: Tensor, lr: float) -> None:
        """Take one step."""
        centered, rows, latents, values, at, output = self.forward(batch)
        error = (output - batch) * (2.0 / len(batch))
        to_values = self.dot(error, rows, self.decoder, latents, at) * (values > 0)
        order = latents.argsort()
        rows, weights = rows[order], to_values[order]
        starts = torch.searchsorted(latents[order], torch.arange(self.task.d_sae))
        bag = F.embedding_bag
        decoder = bag(rows, error, starts, per_sample_weights=values[order], mode="sum")
        encoder = bag(rows, centered, starts, per_sample_weights=weights, mode="sum")
        bias = torch.zeros(self.task.d_sae).index_add_(0, latents, to_values)
        back = bag(latents, self.encoder, at, per_sample_weights=to_values, mode="sum")
        decoder -= (decoder * self.decoder).sum(1, keepdim=True) * self.decoder
        gradients = (encoder, decoder, bias, error.sum(0) - back.sum(0))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.decoder /= self.decoder.norm(dim=1, keepdim=True)

    def reconstruct(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return reconstructions and latents, selected as in training."""
        _, rows, latents, values, _, output = self.forward(batch)
        dense = torch.zeros(len(batch), self.task.d_sae)
        dense[rows, latents] = values
        return output, dense


def main() -> None:
    """Train and report."""
    task = parse()
    values, truths = activations(task)
    coder = Raw(task, values[: task.batch].mean(0))
    clock, stream = Clock(task), batches(values, task.batch)
    for step in range(task.steps):
        coder.step(next(stream), task.lr * min(1.0, (step + 1) / task.warm_up))
        clock.tick()
    report(task, clock, values, truths, coder.decoder, coder.reconstruct)


if __name__ == "__main__":
    main()
