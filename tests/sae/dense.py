"""Dense versions of what training computes sparsely, for comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.sae import SAE, Architecture
from microtome.sae.encoding import activate, pre_activations
from microtome.sae.passing import jump


def makes() -> dict[str, Architecture]:
    """One small make of every kind."""
    ways = {
        name: Architecture(6, 12, activation=name, k=3) for name in ("topk", "batchtopk", "abstopk")
    }
    ways |= {name: Architecture(6, 12, activation=name) for name in ("relu", "jumprelu", "gated")}
    for name in ("topk", "batchtopk", "relu", "gated"):
        k = 3 if name in ("topk", "batchtopk") else 0
        cross = {"sources": (2, 4), "targets": (4, 2), "center": False, "activation": name, "k": k}
        ways |= {
            f"{name} later": Architecture(6, 12, reach="later", **cross),
            f"{name} own": Architecture(6, 12, reach="own", **cross),
            f"{name} prefixes": Architecture(6, 12, activation=name, k=k, prefixes=(2, 5, 12)),
        }
    for name in ("topk", "batchtopk", "abstopk"):
        ways[f"{name} tied"] = Architecture(6, 12, activation=name, k=3, encoder="tied")
    for name, k in (("topk", 3), ("batchtopk", 3), ("relu", 0)):
        ways[f"{name} kronecker"] = Architecture(
            6, 12, activation=name, k=k, encoder="kronecker", kronecker=(2, 3, 2)
        )
    ways["skip"] = Architecture(
        6, 12, d_out=4, activation="batchtopk", k=2, skip=True, center=False
    )
    ways["crosscoder"] = Architecture(
        6, 12, activation="topk", k=3, sources=(2, 4), targets=(2, 4), prefixes=(4, 12)
    )
    return ways


def noisy(make: Architecture, seed: int = 3) -> SAE:
    """A coder in float64 whose weights are all far from zero and from each other."""
    coder = SAE(make, seed=seed).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in coder.weights.items():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64) * 0.3
            if name == "threshold":
                noise = noise.abs()
            if make.reach != "all" and name in ("W_enc", "W_dec"):
                noise = noise * (value != 0)
            value.copy_(noise if name == "threshold" else value + noise)
    return coder


def rows(make: Architecture, count: int = 9) -> Tensor:
    """Inputs in float64."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, make.d_in, generator=generator, dtype=torch.float64)


def outputs(coder: SAE, inputs: Tensor, bandwidth: float = 0.05) -> tuple[Tensor, Tensor]:
    """Latents ``[row, d_sae]`` and outputs ``[prefix, row, d_out]`` by the definitions."""
    make, weights = coder.architecture, coder.weights
    pre = pre_activations(make, weights, inputs)
    if make.activation == "batchtopk":
        flat = pre.flatten()
        kept = torch.zeros_like(flat).scatter(0, flat.topk(make.k * len(pre)).indices, 1)
        latents = pre.relu() * kept.view_as(pre)
    elif make.activation == "jumprelu":
        latents = jump(pre.relu(), weights["threshold"], bandwidth)
    else:
        latents = activate(make, weights, pre)
    bypass = coder.bypass(inputs)
    found = []
    for end in make.prefixes or (make.d_sae,):
        part = latents[:, :end] @ weights["W_dec"][:end] + weights["b_dec"]
        found.append(part if bypass is None else part + bypass)
    return latents, torch.stack(found)
