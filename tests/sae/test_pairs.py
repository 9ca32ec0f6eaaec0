"""The selection of a Kronecker encoder's latents from its units: against all pairs."""

from __future__ import annotations

import pytest
import torch
from tests.sae import dense

from microtome.sae import SAE, Architecture
from microtome.sae.encoding import kronecker_latents, pre_activations
from microtome.sae.pairs import Units, largest_of_batch, largest_pairs, pairs_above
from microtome.sae.selection import Selector

SHAPES = [(2, 3, 2), (24, 4, 8), (1, 16, 12), (96, 1, 2), (3, 64, 1)]


def made(
    shape: tuple[int, int, int], activation: str = "topk", k: int = 5, prefixes: bool = False
) -> SAE:
    width = shape[0] * shape[1] * shape[2]
    make = Architecture(
        8, width, activation=activation, k=k, encoder="kronecker", kronecker=shape,  # type: ignore[arg-type]
        prefixes=(width // 2, width) if prefixes else (),
    )  # fmt: skip
    return dense.noisy(make)


@torch.no_grad()
def units(coder: SAE, x: torch.Tensor) -> Units:
    shape = coder.architecture.kronecker
    assert shape is not None
    return Units.of(shape, coder.weights, x - coder.weights["b_dec"])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_pairs_of_each_row_are_exact(shape: tuple[int, int, int]) -> None:
    coder = made(shape)
    x = dense.rows(coder.architecture, 40)
    whole = pre_activations(coder.architecture, coder.weights, x)
    found = largest_pairs(units(coder, x), 5)
    assert all(len(set(row)) == 5 for row in found.tolist())
    torch.testing.assert_close(
        whole.gather(1, found).sort().values, whole.topk(5).values.sort().values
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_pairs_above_a_bound_are_all_of_them_in_order(shape: tuple[int, int, int]) -> None:
    coder = made(shape)
    x = dense.rows(coder.architecture, 40)
    whole = pre_activations(coder.architecture, coder.weights, x).detach()
    for bound in (0.0, 0.7, 1e9):
        place, values = pairs_above(units(coder, x), bound)
        assert torch.equal(place, (whole.flatten() > bound).nonzero().squeeze(1))
        torch.testing.assert_close(values, whole.flatten()[place])


@pytest.mark.parametrize("threshold", [None, 0.0, 1e-6, 1.0, 1e9])
def test_the_largest_of_a_batch_are_exact_whatever_the_last_threshold(
    threshold: float | None,
) -> None:
    coder = made((24, 4, 8))
    x = dense.rows(coder.architecture, 100)
    whole = pre_activations(coder.architecture, coder.weights, x).detach().flatten()
    expected = whole.topk(500)
    found, least, short = largest_of_batch(units(coder, x), 5, threshold)
    assert torch.equal(found, expected.indices.sort().values)
    assert least == pytest.approx(expected.values[-1].item())
    assert (short > 0) == (threshold == 1e9)


def test_no_more_are_kept_than_are_positive() -> None:
    coder = made((2, 3, 2), k=11)
    x = dense.rows(coder.architecture, 20)
    found, least, _ = largest_of_batch(units(coder, x), 11, None)
    whole = pre_activations(coder.architecture, coder.weights, x)
    assert torch.equal(found, (whole.flatten() > 0).nonzero().squeeze(1)) and least == 0


@pytest.mark.parametrize("activation", ["topk", "batchtopk", "abstopk"])
@pytest.mark.parametrize("prefixes", [False, True])
def test_a_batch_is_that_of_the_definition(activation: str, prefixes: bool) -> None:
    coder = made((24, 4, 8), activation, prefixes=prefixes)
    x = dense.rows(coder.architecture, 60)
    whole = pre_activations(coder.architecture, coder.weights, x)
    selector = Selector("int8")
    for _ in range(2):
        found = selector.select(coder.architecture, coder.weights, x)
        assert found is not None and found.units is not None
        flat = found.entries.bags * 768 + found.entries.latents
        torch.testing.assert_close(found.known, whole.flatten()[flat])
        best = whole.topk(5).values if activation != "batchtopk" else whole.flatten().topk(300)[0]
        torch.testing.assert_close(found.known.sort().values, best.flatten().sort().values)
        if prefixes or activation == "batchtopk":
            assert bool((flat.diff() > 0).all())


def test_a_coder_starts_with_directions_between_its_units() -> None:
    coder = SAE(
        Architecture(8, 12, activation="topk", k=2, encoder="kronecker", kronecker=(2, 3, 2))
    )
    left, right = coder.weights["W_left"], coder.weights["W_right"]
    direction = left[3 + 2] + right[2 + 1]  # head 1, left unit 2, right unit 1
    expected = torch.nn.functional.normalize(direction, dim=0)
    torch.testing.assert_close(coder.weights["W_dec"][6 + 2 * 2 + 1], expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_some_latents_are_those_of_all(shape: tuple[int, int, int]) -> None:
    coder = made(shape)
    x = dense.rows(coder.architecture, 20)
    some = torch.tensor([3, 0, 7, coder.d_sae - 1])
    whole = pre_activations(coder.architecture, coder.weights, x)
    found = kronecker_latents(shape, coder.weights, x - coder.weights["b_dec"], some)
    torch.testing.assert_close(found, whole[:, some])
