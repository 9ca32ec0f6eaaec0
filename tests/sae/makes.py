"""Coders of every make, small, with weights of which none is special."""

from __future__ import annotations

import torch

from microtome.sae import SAE, Architecture, Origin

MAKES = {
    "relu": Architecture(6, 12, activation="relu"),
    "topk": Architecture(6, 12, activation="topk", k=3),
    "batchtopk": Architecture(6, 12, activation="batchtopk", k=3),
    "abstopk": Architecture(6, 12, activation="abstopk", k=3),
    "jumprelu": Architecture(6, 12, activation="jumprelu"),
    "gated": Architecture(6, 12, activation="gated"),
    "tied": Architecture(6, 12, activation="topk", k=3, encoder="tied"),
    "kronecker": Architecture(
        6, 12, activation="topk", k=3, encoder="kronecker", kronecker=(2, 3, 2)
    ),
    "transcoder": Architecture(6, 12, d_out=4, activation="relu", center=False, skip=True),
    "crosscoder": Architecture(6, 12, activation="relu", sources=(2, 4), targets=(2, 4)),
    "cross-layer": Architecture(
        6, 12, activation="relu", sources=(2, 4), targets=(2, 4), reach="later", center=False
    ),
}


def made(name: str) -> SAE:
    """Return the coder of a make; the same name gives the same weights."""
    make = MAKES[name]
    sites = tuple(f"blocks.{number}.resid_post" for number in range(len(make.sources)))
    coder = SAE(make, seed=3, origin=Origin(sites, sites, "small", "abc", {"steps": 5}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in coder.weights.items():
            noise = torch.randn(value.shape, generator=generator) * 0.3
            if key == "threshold":
                one = name == "batchtopk"
                value.copy_(noise.abs().mean().expand_as(value) if one else noise.abs())
            else:
                value.add_(noise)
    return coder
