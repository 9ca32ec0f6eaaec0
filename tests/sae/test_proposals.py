"""Candidates from bytes: against slow definitions, and with data that bytes measure badly."""

from __future__ import annotations

import pytest
import torch

from microtome.sae import SAE, Architecture
from microtome.sae.kernels import Entries
from microtome.sae.passing import forward
from microtome.sae.selecting import products, selection
from microtome.sae.selecting.estimation import BYTE_ROWS, ByteProduct
from microtome.sae.selecting.proposals import (
    batch_level,
    grouping,
    largest_of_bags,
    reaching,
    row_levels,
    spared,
)
from microtome.sae.selecting.selection import Selector

MAKE = Architecture(64, 2048, activation="topk", k=8)


def codes(rows: int = 7, width: int = 512) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    size = torch.randn(rows, width, generator=generator).mul(60).clamp(0, 255)
    return size.to(torch.uint8)


def inputs(count: int = 900) -> torch.Tensor:
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def small_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "ESTIMATED_WEIGHTS", 1)


def test_what_reaches_a_level_is_found_in_order() -> None:
    found = codes()
    flags = torch.full_like(found, 9)
    for level in (1, 40, 255):
        expected = (found >= level).view(-1).nonzero().squeeze(1)
        assert torch.equal(reaching(found, level, flags), expected)
    each = torch.tensor([1, 40, 90, 255, 3, 200, 17], dtype=torch.uint8)[:, None]
    expected = (found >= each).view(-1).nonzero().squeeze(1)
    assert torch.equal(reaching(found, each, flags), expected)
    assert len(reaching(torch.zeros_like(found), 1, flags)) == 0


@pytest.mark.parametrize("groups,rank", [(16, 5), (128, 40), (128, 128)])
def test_enough_entries_of_a_row_reach_its_level(groups: int, rank: int) -> None:
    found = codes()
    level = row_levels(found, groups, rank)
    reached = (found >= level).sum(1)
    assert level.shape == (7, 1) and bool((reached >= rank).all())
    maxima = found.view(7, -1, groups).amax(1).sort(descending=True).values
    assert torch.equal(level.squeeze(1), maxima[:, rank - 1])


def test_the_level_of_a_batch_is_the_highest_that_enough_reach() -> None:
    found = codes()
    for count in (1, 50, 900):
        level = batch_level(found, count)
        assert int((found >= level).sum()) >= count > int((found >= level + 1).sum())
    assert batch_level(found, found.numel()) == 1
    assert batch_level(torch.full_like(found, 255), 3) == 255


@pytest.mark.parametrize("width,k", [(8192, 32), (2048, 8), (1024, 64), (65536, 100)])
def test_groups_give_about_the_candidates_that_are_wanted(width: int, k: int) -> None:
    cut = grouping(width, k)
    assert cut is not None
    groups, rank = cut
    assert width % groups == 0 and k <= rank <= groups
    keys = torch.rand(200, width, generator=torch.Generator().manual_seed(1))
    level = keys.view(200, -1, groups).amax(1).sort(descending=True).values[:, rank - 1 : rank]
    mean = (keys >= level).sum(1).double().mean().item()
    assert mean == pytest.approx(spared(k), rel=0.06)


def test_widths_that_cannot_be_cut_are_left_alone() -> None:
    assert grouping(1000, 8) is None and grouping(64, 8) is None and grouping(8192, 2000) is None


def test_the_largest_of_each_bag() -> None:
    counts = [4, 9, 4, 6]
    bags = torch.arange(4).repeat_interleave(torch.tensor(counts))
    entries = Entries(bags, torch.arange(len(bags)), 4, 99)
    keys = torch.randn(len(bags), generator=torch.Generator().manual_seed(2))
    found = largest_of_bags(entries, keys, 4).view(4, 4)
    for bag, numbers in enumerate(found):
        own = (bags == bag).nonzero().squeeze(1)
        assert set(numbers.tolist()) == set(own[keys[own].topk(4).indices].tolist())
    even = Entries(torch.arange(3).repeat_interleave(4), torch.arange(12), 3, 99)
    assert largest_of_bags(even, keys[:12], 4).tolist() == list(range(12))


def test_codes_are_the_product_in_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    x, encoder = (torch.randn(n, 96, generator=generator) for n in (BYTE_ROWS + 20, 256))
    bias = torch.randn(256, generator=generator)
    product = ByteProduct.of(encoder, bias)
    assert product is not None
    found = list(product.codes(x, 0.05))
    assert [len(part) for part in found] == [BYTE_ROWS, 20]
    whole = (x @ encoder.T + bias) / 0.05
    error = torch.cat(found).float() - whole.round().clamp(0, 255)
    assert error.std() < 0.03 * 96**0.5 / 0.05
    assert bool((whole > 315).any())
    assert not error[whole < -60].any() and not error[whole > 315].any()


def test_inputs_without_a_scale_give_the_bias() -> None:
    product = ByteProduct.of(torch.ones(16, 8), torch.arange(16.0))
    assert product is not None
    for x in (torch.zeros(3, 8), torch.full((3, 8), torch.nan), torch.full((3, 8), torch.inf)):
        (found,) = product.codes(x, 1.0)
        assert found[:, 1:].float().sub(torch.arange(1.0, 16)).abs().max() <= 127 * 8


def _energy(make: Architecture, x: torch.Tensor, selector: Selector) -> float:
    """The share of the kept squares that a selector finds, of those of the exact choice."""
    coder = SAE(make)
    with torch.no_grad():
        coder.weights["W_enc"] += 0.1 * torch.randn(2048, 64, generator=torch.Generator())
    found = selector.select(make, coder.weights, x)
    exact = Selector().select(make, coder.weights, x)
    assert found is not None and exact is not None
    whole = (x @ coder.weights["W_enc"].T)[found.entries.bags, found.entries.latents]
    torch.testing.assert_close(found.known, whole)
    assert len(found.known) == make.k * len(x) == len(exact.known)
    flat = found.entries.bags * make.d_sae + found.entries.latents
    assert len(flat.unique()) == len(flat) and bool((found.entries.bags.diff() >= 0).all())
    got, best = (value.relu().double().square().sum() for value in (found.known, exact.known))
    return float(got / best)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
@pytest.mark.parametrize("threshold", [None, 1e-3, 0.3, 1e4, 0.0])
def test_any_last_threshold_gives_the_exact_choice(
    activation: str, threshold: float | None, small_estimates: None
) -> None:
    make = Architecture(64, 2048, activation=activation, k=8)  # type: ignore[arg-type]
    selector = Selector("int8", threshold=threshold)
    assert _energy(make, inputs(), selector) > 0.9999
    assert selector.precision == "int8" and selector.threshold is not None
    again = Selector("int8", threshold=selector.threshold, batches=1)
    assert _energy(make, inputs(), again) > 0.9999 and again.fallbacks == 0


def test_rows_of_very_different_size_are_chosen_exactly(small_estimates: None) -> None:
    x = inputs()
    x[::3] *= 1e-3  # in steps that suit the others these are all 0
    x[5] = 0
    selector = Selector("int8", batches=1)
    coder = SAE(MAKE)
    found = selector.select(MAKE, coder.weights, x)
    assert found is not None
    best = (x @ coder.weights["W_enc"].T).topk(8).values.sort().values
    got = found.known.view(-1, 8).sort().values
    small = torch.arange(0, 900, 3)
    torch.testing.assert_close(got[small], best[small])


def test_prefixes_have_their_entries_in_order(small_estimates: None) -> None:
    make = Architecture(64, 2048, activation="topk", k=8, prefixes=(256, 2048))
    found = Selector("int8", batches=1).select(make, SAE(make).weights, inputs())
    assert found is not None
    flat = found.entries.bags * 2048 + found.entries.latents
    assert bool((flat.diff() > 0).all())


def test_too_few_candidates_are_noticed(
    small_estimates: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Architecture(64, 2048, activation="batchtopk", k=8)
    x = inputs()
    x[:BYTE_ROWS] *= 30  # the block that the level is taken from is like no other
    selector = Selector("int8", batches=1)
    assert _energy(make, x, selector) > 0.9999
    monkeypatch.setattr(selection, "CROWD", 1)
    crowded = Selector("int8", batches=1)
    assert _energy(make, inputs(), crowded) > 0.9999 and crowded.fallbacks == 1


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_reach_the_output(
    activation: str, value: float, small_estimates: None
) -> None:
    make = Architecture(64, 2048, activation=activation, k=8)  # type: ignore[arg-type]
    x = inputs()
    x[7, 3] = value
    passed = forward(make, SAE(make).weights, x, Selector("int8", batches=1))
    assert len(passed.values) <= 8 * 900
    assert not bool((x - passed.outputs[-1]).isfinite().all())
