"""The engine beside a training loop written from the papers: losses, gradients, whole runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.sae import dense, reference

from microtome.sae import SAE, ActivationStore, Config, selection, train
from microtome.sae.architecture import COUNTED
from microtome.sae.coder import reach_mask
from microtome.sae.config import PENALTIES
from microtome.sae.losses import loss
from microtome.sae.passing import forward
from microtome.sae.selection import Selector

MAKES = dense.makes()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize("densest", [1.0, 0.0])
def test_losses_and_gradients(name: str, densest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    make = MAKES[name]
    monkeypatch.setattr(selection, "DENSEST", densest)
    monkeypatch.setattr(selection, "BLOCK_ROWS", 4)
    coder = dense.noisy(make)
    weights = coder.weights
    x = dense.rows(make)
    y = x if make.d_in == make.d_out else x[:, : make.d_out].flip(0)
    dead = torch.tensor([1, 4, 5, 10])
    names = [n for n in weights if not (n == "threshold" and make.activation == "batchtopk")]
    mask = reach_mask(make)
    for penalty in PENALTIES.get(make.activation, (None,)):
        for unit in (True, False):
            config = Config(
                activation=make.activation, penalty=penalty, unit_norm=unit, target_l0=2.0,
                bandwidth=0.3, aux_k=2,
            )  # fmt: skip
            wanted, _ = reference.total_loss(make, config, weights, x, y, 0.7, dead)
            passed = forward(make, weights, x, Selector(), bandwidth=0.3)
            got = loss(make, config, weights, passed, x, y, sparsity=0.7, dead=dead)
            torch.testing.assert_close(got.total, wanted, rtol=1e-7, atol=1e-8)
            expected = torch.autograd.grad(
                wanted, [weights[n] for n in names], allow_unused=True, materialize_grads=True
            )
            for weight in weights.values():
                weight.grad = None
            got.backward(weights)
            gradients = (weights[n].grad for n in names)
            found = [torch.zeros_like(e) if g is None else g
                     for g, e in zip(gradients, expected, strict=True)]  # fmt: skip
            for key, left, right in zip(names, found, expected, strict=True):
                left = left * mask if mask is not None and key == "W_dec" else left
                torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7, msg=f"{key} {config}")


ONE, TWO, ACROSS = ("activations",), ("a", "b"), (("a",), ("b",))
RUNS: dict[str, tuple[dict[str, Any], tuple[tuple[str, ...], tuple[str, ...]]]] = {
    **{name: ({}, (ONE, ONE)) for name in (*COUNTED, *PENALTIES)},
    **{f"{name} tied": ({"encoder": "tied"}, (ONE, ONE)) for name in ("topk", "relu")},
    "topk kronecker": ({"encoder": "kronecker", "kronecker": (2, 4, 5)}, (ONE, ONE)),
    "batchtopk prefixes": ({"prefixes": (5, 17, 40), "skip": True}, (ONE, ONE)),
    "gated across": ({"skip": True, "unit_norm": False}, ACROSS),
    "batchtopk across": ({"skip": True}, ACROSS),
    "topk crosscoder": ({}, (TWO, TWO)),
    "relu tied crosscoder": ({"encoder": "tied"}, (TWO, TWO)),
    **{
        f"{name} later": ({"reach": "later", "center": False}, (TWO, TWO))
        for name in ("topk", "batchtopk", "relu", "jumprelu", "gated")
    },
    "abstopk own": ({"reach": "own", "skip": True}, (("b", "a"), ("b", "a"))),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_whole_run(name: str) -> None:
    changes, (sources, targets) = RUNS[name]
    activation: Any = name.split()[0]
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(24, 8, generator=generator)
    on = torch.rand(500, 24, generator=generator) < 0.1
    rows = on * torch.rand(500, 24, generator=generator) @ directions + 0.3
    sites = {"a": rows[:, :3] * 5, "b": rows[:, 3:] * 0.1 + 1} if sources != ONE else {ONE[0]: rows}
    data = ActivationStore.of(sites)
    config = Config(
        activation=activation, k=3 if activation in COUNTED else 0, d_sae=40, steps=12,
        batch_size=32, dead_after=64, aux_k=3, sparsity_warm_up=0.4, seed=3, precision="float32",
        bandwidth=0.2, **changes,
    )  # fmt: skip
    coder = train(data, config, sources=sources, targets=targets)
    wanted = reference.Trained(data, config, sources, targets)
    with torch.no_grad():
        latents, made = wanted(sites, coder.weights.get("threshold", torch.zeros(())))
        x = torch.cat([sites[s] for s in sources], 1)
        got, outputs = coder.encode(x).double(), coder(x).double()
    assert float((got - latents).norm() / latents.norm()) < 1e-4
    assert float((outputs - made).norm() / made.norm()) < 1e-4
    assert bool(latents.any())


@pytest.mark.parametrize("name", MAKES)
def test_weights_lie_in_memory_of_their_own_without_gaps(name: str) -> None:
    # fused Adam steps along the memory: with gaps it would change other numbers than it means to
    weights = SAE(MAKES[name]).weights
    assert all(weight.is_contiguous() for weight in weights.values())
    assert len({weight.untyped_storage().data_ptr() for weight in weights.values()}) == len(weights)
