"""The sparse products: against dense ones, by finite differences, on every path."""

from __future__ import annotations

import pytest
import torch

from microtome.sae import kernels
from microtome.sae.kernels import Entries, dots, sums


def entries() -> Entries:
    """Entries of five bags, the third without any, and of latents of which one has none."""
    return Entries(torch.tensor([0, 0, 1, 3, 3, 3, 4]), torch.tensor([2, 0, 2, 5, 1, 2, 0]), 5, 6)


def matrices() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows, directions, values = (
        torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
        for shape in ((5, 3), (6, 3), (7,))
    )
    return rows, directions, values


def test_dots_and_sums_are_the_dense_products() -> None:
    rows, directions, values = matrices()
    kept = entries()
    dense = rows @ directions.T
    torch.testing.assert_close(dots(rows, directions, kept), dense[kept.bags, kept.latents])
    latents = torch.zeros(5, 6, dtype=torch.float64)
    latents[kept.bags, kept.latents] = values.detach()
    torch.testing.assert_close(sums(values, directions, kept).detach(), latents @ directions)


def test_gradients_by_finite_differences() -> None:
    rows, directions, values = matrices()
    kept = entries()
    assert torch.autograd.gradcheck(lambda a, b: dots(a, b, kept), (rows, directions))
    assert torch.autograd.gradcheck(lambda v, b: sums(v, b, kept), (values, directions))


def test_known_products_change_no_gradient() -> None:
    rows, directions, _ = matrices()
    kept = entries()
    weight = torch.arange(7.0, dtype=torch.float64)
    found = []
    for known in (None, dots(rows, directions, kept).detach()):
        loss = (dots(rows, directions, kept, known) * weight).sum()
        found.append(torch.autograd.grad(loss, (rows, directions)))
    for left, right in zip(*found, strict=True):
        assert torch.equal(left, right)


def test_the_public_way_gives_the_same_products(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, directions, _ = matrices()
    kept = entries()
    direct = dots(rows, directions, kept)
    assert kernels._direct_dot() is not None
    torch.testing.assert_close(kernels.public_dot(rows.detach(), directions, kept), direct.detach())
    monkeypatch.setattr(kernels, "_direct_dot", lambda: None)
    assert torch.autograd.gradcheck(lambda a, b: dots(a, b, kept), (rows, directions))
    torch.testing.assert_close(dots(rows, directions, kept), direct)


def test_without_entries_everything_is_zero() -> None:
    rows, directions, _ = matrices()
    none = Entries(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 5, 6)
    values = dots(rows, directions, none)
    assert values.shape == (0,)
    output = sums(values, directions, none)
    assert torch.equal(output, torch.zeros(5, 3, dtype=torch.float64))
    output.sum().backward()
    assert directions.grad is not None and not directions.grad.any()
