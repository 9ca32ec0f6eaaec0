"""Stability across seeds: copies, strangers, planted shares, dead latents, and training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from microtome.errors import ConfigError, EmptyDataError, ShapeError
from microtome.sae import SAE, Architecture, Config, Stability, stability, train

WIDTH, LATENTS = 40, 60


def coder(directions: Tensor) -> SAE:
    make = Architecture(directions.shape[1], len(directions), activation="relu", center=False)
    weights = {
        "W_enc": directions.clone(),
        "W_dec": directions.clone(),
        "b_enc": torch.zeros(len(directions)),
        "b_dec": torch.zeros(directions.shape[1]),
    }
    return SAE(make, weights=weights)


def directions(seed: int, count: int = LATENTS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, WIDTH, generator=generator), dim=1)


def test_copies_agree_and_strangers_do_as_random_dictionaries_do() -> None:
    rows = directions(0)
    order = torch.randperm(LATENTS, generator=torch.Generator().manual_seed(5))
    found = stability([coder(rows), coder(3 * rows[order]), coder(directions(1))])
    assert found.mmcs[0, 1] == pytest.approx(1) and found.recall[0, 1] == found.mutual[1, 0] == 1
    assert found.mmcs[0, 2] == pytest.approx(found.null_mmcs[0, 2], abs=0.03)
    assert found.recall[0, 2] == 0 and found.in_all == found.null_in_all == (0, 0, 0)
    assert (found.found == 1).all()
    pair = stability([coder(rows), coder(rows[order])])
    assert pair.in_all == (1, 1) and (pair.found == 1).all()
    assert list(pair.to_frame().columns) == ["mmcs", "mmcs_random", "recall", "mutual"]


def test_the_planted_share_is_found_in_all() -> None:
    shared = directions(0, 15)
    coders = [coder(torch.cat([directions(seed, 45), shared])) for seed in (1, 2, 3)]
    found = stability(coders, names=["a", "b", "c"])
    assert found.in_all == (0.25, 0.25, 0.25)
    assert found.found.tolist() == [0] * 45 + [2] * 15
    assert found.mutual[0, 1] == 0.25
    assert found.to_frame().loc[("a", "b"), "recall"] == 0.25


def test_a_latent_that_was_split_is_found_twice_and_matched_once() -> None:
    rows = directions(0)
    split = torch.cat([rows, rows[:1] + 0.3 * rows[1:2]])
    found = stability([coder(split), coder(rows)])
    assert found.recall[0, 1] == 1
    assert found.mutual[0, 1] == pytest.approx(60 / 61) and found.mutual[1, 0] == 1


def test_dead_latents_are_left_out(tmp_path: object) -> None:
    rows = directions(0)
    sample = rows[:30] * 2
    dead = rows.clone()
    dead[30:] = directions(9, 30)
    left, right = coder(rows), coder(dead)
    with torch.no_grad():
        for one in (left, right):
            one.weights["b_enc"][30:] = -100
    both = stability([left, right])
    assert both.in_all == (0.5, 0.5)
    alive = stability([left, right], sample=sample)
    assert alive.in_all == (1, 1) and alive.n_latents == (30, 30)
    assert (alive.found[:30] == 1).all() and (alive.found[30:] == -1).all()


def test_seeds_that_see_the_truth_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(24, 24, generator=generator), dim=1)
    on = torch.rand(3000, 24, generator=generator) < 0.08
    x = (on * (1 + torch.rand(3000, 24, generator=generator))) @ truth
    config = {"activation": "topk", "k": 2, "d_sae": 24, "batch_size": 128, "eval_rows": 128}
    found = {
        steps: stability(
            [train(x, Config(steps=steps, seed=seed, **config)) for seed in (0, 1)]  # type: ignore[arg-type]
        )
        for steps in (2, 250)
    }
    assert found[250].mmcs[0, 1] > 0.8 > 0.6 > found[2].mmcs[0, 1]
    assert found[250].in_all[0] > found[2].in_all[0] + 0.4
    assert found[250].null_mmcs[0, 1] < 0.6


def test_it_is_kept_on_disk_and_refuses_what_does_not_fit(tmp_path: object) -> None:
    found = stability([coder(directions(0)), coder(directions(1))])
    again = Stability.load(found.save(f"{tmp_path}/s.json"))
    np.testing.assert_array_equal(again.mmcs, found.mmcs)
    with pytest.raises(ConfigError, match="at least two"):
        stability([coder(directions(0))])
    with pytest.raises(ConfigError, match="a name of its own"):
        stability([coder(directions(0))] * 2, names=["a", "a"])
    with pytest.raises(ShapeError, match="one site"):
        stability([coder(directions(0)), coder(torch.eye(3))])
    with pytest.raises(EmptyDataError, match="no latent of coder '0'"):
        stability([coder(directions(0))] * 2, sample=torch.zeros(3, WIDTH))
