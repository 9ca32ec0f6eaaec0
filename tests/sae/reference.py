"""A sparse coder's training written from the papers alone: dense, float64, plain autograd and Adam.

Nothing of the engine is used but the make, the settings, the initial weights and the rows' order.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from microtome.sae import SAE, Architecture, Config
from microtome.sae.activations import Activations

Weights = dict[str, Tensor]


class Step(torch.autograd.Function):
    """1 above the threshold; its slope there is a rectangle of positive values."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor, None]:
        z, threshold = ctx.saved_tensors
        near = ((z - threshold).abs() < ctx.bandwidth / 2) & (z > 0)
        return None, -(near * gradients[0] / ctx.bandwidth).sum(0), None


def pre_activations(make: Architecture, w: Weights, x: Tensor) -> Tensor:
    """What enters the activation, latent by latent where that is plainest."""
    x = x - w["b_dec"] if make.center else x
    if make.kronecker is not None:
        heads, left, right = make.kronecker
        p, q = x @ w["W_left"].T + w["b_left"], x @ w["W_right"].T + w["b_right"]
        return torch.stack(
            [
                _mean(p[:, h * left + i], q[:, h * right + j])
                for h in range(heads)
                for i in range(left)
                for j in range(right)
            ],
            dim=1,
        )
    if make.encoder == "tied":
        pre = x @ w["W_dec"].T
    elif make.reach == "all":
        pre = x @ w["W_enc"].T
    else:
        each, parts, first = make.d_sae // len(make.sources), [], 0
        for number, width in enumerate(make.sources):
            encoder = w["W_enc"][number * each : (number + 1) * each, :width]
            parts.append(x[:, first : first + width] @ encoder.T)
            first += width
        pre = torch.cat(parts, 1)
    return pre if make.activation == "gated" else pre + w["b_enc"]


def _mean(p: Tensor, q: Tensor) -> Tensor:
    on = (p > 0) & (q > 0)
    return torch.where(on, torch.where(on, p * q, 1.0).sqrt(), 0.0)


def latents(make: Architecture, w: Weights, pre: Tensor, bandwidth: float) -> Tensor:
    """The latents of a training batch."""
    if make.activation == "gated":
        return (pre * w["r_mag"].exp() + w["b_mag"]).relu() * (pre + w["b_gate"] > 0)
    if make.activation == "jumprelu":
        above = Step.apply(pre.relu(), w["threshold"], bandwidth)
        # the slope at the threshold is that of its own value: -threshold / bandwidth
        at = w["threshold"].detach() * (above - above.detach())
        return pre.relu() * above.detach() + at
    if make.activation == "abstopk":
        least = pre.detach().abs().sort(1, descending=True).values[:, make.k - 1 : make.k]
        return torch.where(pre.abs() >= least, pre, 0.0)
    if make.activation == "topk":
        least = pre.detach().sort(1, descending=True).values[:, make.k - 1 : make.k]
        return torch.where(pre >= least, pre, 0.0).relu()
    if make.activation == "batchtopk":
        least = pre.detach().flatten().sort(descending=True).values[make.k * len(pre) - 1]
        return torch.where(pre >= least, pre, 0.0).relu()
    return pre.relu()


def decoder(make: Architecture, w: Weights) -> Tensor:
    """The decoder, zero where a latent does not write."""
    if make.reach == "all":
        return w["W_dec"]
    mask = torch.zeros_like(w["W_dec"])
    each, ends = make.d_sae // len(make.sources), [0]
    for width in make.targets:
        ends.append(ends[-1] + width)
    for source in range(len(make.sources)):
        for target in range(len(make.targets)):
            if target == source or (make.reach == "later" and target > source):
                mask[source * each : (source + 1) * each, ends[target] : ends[target + 1]] = 1
    return w["W_dec"] * mask


def skip(make: Architecture) -> Tensor:
    """Where a skip connection leads from a source to a target that its latents write."""
    sources = range(len(make.sources))
    reach = [
        [t == s or make.reach == "all" or (make.reach == "later" and t > s) for s in sources]
        for t in range(len(make.targets))
    ]
    blocks = [
        [
            torch.full((out, wide), float(there))
            for wide, there in zip(make.sources, row, strict=True)
        ]
        for out, row in zip(make.targets, reach, strict=True)
    ]
    return torch.cat([torch.cat(row, 1) for row in blocks])


def outputs(make: Architecture, w: Weights, found: Tensor, x: Tensor) -> Tensor:
    """The reconstructions of all prefixes."""
    directions = decoder(make, w)
    past = x @ w["W_skip"].T if make.skip else 0.0
    return torch.stack(
        [
            found[:, :end] @ directions[:end] + w["b_dec"] + past
            for end in make.prefixes or (make.d_sae,)
        ]
    )


def total_loss(
    make: Architecture,
    config: Config,
    w: Weights,
    x: Tensor,
    y: Tensor,
    sparsity: float,
    dead: Tensor,
) -> tuple[Tensor, Tensor]:
    """The loss of a batch, and its latents."""
    pre = pre_activations(make, w, x)
    found = latents(make, w, pre, config.bandwidth)
    made = outputs(make, w, found, x)
    total = (y - made).square().sum() / y.numel()
    gate = pre + w["b_gate"] if make.activation == "gated" else None
    if config.penalized in ("l0", "target"):
        active = Step.apply(pre.relu(), w["threshold"], config.bandwidth).sum() / len(x)
        if config.penalized == "l0":
            total = total + sparsity / make.d_out * active
        else:
            total = total + sparsity * (active / config.target_l0 - 1) ** 2
    elif config.penalized:
        strength = found if gate is None else gate.relu()
        if not config.unit_norm:
            strength = strength * decoder(make, w).norm(dim=1)
        strength = torch.tanh(4 * strength) if config.penalized == "tanh" else strength
        total = total + sparsity / make.d_out * strength.sum() / len(x)
    if gate is not None:
        fixed = {name: value.detach() for name, value in w.items()}
        by_gate = outputs(make, fixed, gate.relu(), x)[-1]
        total = total + (y - by_gate).square().sum() / y.numel()
    if len(dead):
        error = (y - made[-1]).detach()
        held = w | {"b_dec": w["b_dec"].detach()}
        some = pre_activations(make, held, x)[:, dead]
        some = (some if gate is None else some + w["b_gate"][dead]).relu()
        count = min(config.aux_k or make.d_out // 2, len(dead))
        least = some.detach().sort(1, descending=True).values[:, count - 1 : count]
        guess = torch.where(some >= least, some, 0.0) @ decoder(make, w)[dead]
        spread = (error - error.mean(0)).square().sum()
        total = total + config.aux * (error - guess).square().sum() / spread
    return total, found


class Trained:
    """A coder trained by the definitions, with its scales outside of the weights."""

    def __init__(
        self, data: Activations, config: Config, sources: tuple[str, ...], targets: tuple[str, ...]
    ) -> None:
        self.make = make = config.architecture(
            [data.width(s) for s in sources], [data.width(s) for s in targets],
            same=sources == targets,
        )  # fmt: skip
        self.config, self.sources, self.targets = config, sources, targets
        rows = next(data.batches(data.rows, seed=0))  # every row once
        size = {s: (v.double().square().sum(1).mean() / v.shape[1]) for s, v in rows.items()}
        self.writes = [1 / math.sqrt(size[s]) for s in targets]
        self.reads = self.writes if make.center else [1 / math.sqrt(size[s]) for s in sources]
        if make.encoder == "tied":
            self.reads = self.writes = [self._gain()] * len(targets)
        initial = SAE(make, seed=config.seed).weights
        self.weights = {n: w.detach().double().clone() for n, w in initial.items()}
        self.weights["b_dec"] = self._scaled(rows, targets, self.writes).mean(0)
        if make.activation == "jumprelu":
            self.weights["threshold"].fill_(config.threshold)
        if "topk" in make.activation and make.encoder != "tied":
            for name in self.weights.keys() & {"W_enc", "W_left", "W_right"}:
                self.weights[name] *= 0.1
        self._train(data)

    def _gain(self) -> float:
        return math.exp(sum(map(math.log, self.writes)) / len(self.writes))

    @staticmethod
    def _scaled(batch: dict[str, Tensor], sites: tuple[str, ...], by: list[float]) -> Tensor:
        return torch.cat([batch[s].double() * c for s, c in zip(sites, by, strict=True)], 1)

    def _train(self, data: Activations) -> None:
        make, config, w = self.make, self.config, self.weights
        measured = make.activation == "batchtopk"
        names = [n for n in w if not (measured and n == "threshold")]
        averages = {n: (torch.zeros_like(w[n]), torch.zeros_like(w[n])) for n in names}
        silent = torch.zeros(make.d_sae, dtype=torch.int64)
        steps = config.planned_steps(data.rows)
        stream = data.batches(config.batch_size, seed=config.stream_seed("data"))
        for step in range(steps):
            batch = next(stream)
            x = self._scaled(batch, self.sources, self.reads)
            y = self._scaled(batch, self.targets, self.writes)
            dead = (silent >= config.dead_rows(steps)).nonzero().flatten()
            leaves = {n: v.clone().requires_grad_(n in names) for n, v in w.items()}
            total, found = total_loss(
                make, config, leaves, x, y, config.sparsity_at(step, steps), dead
            )
            parts = torch.autograd.grad(
                total, [leaves[n] for n in names], allow_unused=True, materialize_grads=True
            )
            gradients = dict(zip(names, parts, strict=True))
            if make.skip:
                gradients["W_skip"] = gradients["W_skip"] * skip(make)
            if config.unit_norm:
                along = (gradients["W_dec"] * w["W_dec"]).sum(1, keepdim=True)
                gradients["W_dec"] = gradients["W_dec"] - along * w["W_dec"]
            norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
            cut = min(1.0, config.clip / norm) if config.clip else 1.0
            rate = config.lr_at(step, steps, config.peak_lr(make.d_sae, steps))
            for name in names:
                self._adam(name, gradients[name] * cut, averages[name], rate, step + 1)
            if config.unit_norm:
                w["W_dec"] /= w["W_dec"].norm(dim=1, keepdim=True)
            if "threshold" in names:
                w["threshold"].clamp_(min=0)
            silent += len(x)
            silent[(found != 0).any(0)] = 0
        stream.close()

    def _adam(
        self, name: str, g: Tensor, averages: tuple[Tensor, Tensor], rate: float, step: int
    ) -> None:
        (beta, gamma), (first, second) = self.config.betas, averages
        first.mul_(beta).add_((1 - beta) * g)
        second.mul_(gamma).add_((1 - gamma) * g * g)
        root = (second / (1 - gamma**step)).sqrt() + 1e-8
        self.weights[name] -= rate * first / (1 - beta**step) / root

    def __call__(self, rows: dict[str, Tensor], threshold: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and outputs in the sites' own sizes, at inference.

        Args:
            rows: The sites.
            threshold: Of a BatchTopK coder, in the sites' own size.
        """
        gain, make = self._gain(), self.make
        x = self._scaled(rows, self.sources, self.reads)
        pre = pre_activations(make, self.weights, x)
        if make.activation == "batchtopk":
            found = torch.where(pre > threshold.double() * gain, pre, 0.0).relu()
        else:
            found = latents(make, self.weights, pre, self.config.bandwidth)
        widths = zip(make.targets, self.writes, strict=True)
        size = torch.cat([torch.full((n,), c, dtype=torch.float64) for n, c in widths])
        return found / gain, outputs(make, self.weights, found, x)[-1] / size
