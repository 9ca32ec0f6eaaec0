from __future__ import annotations

import numpy as np
import pytest
import torch

from microtome.core.seeds import rng, torch_generator
from microtome.errors import ConfigError


def test_streams_are_fixed_for_ever() -> None:
    # Known answers: another value here means that every stored result changes.
    assert rng(0, "test").integers(0, 1_000_000, 3).tolist() == [863825, 351718, 317670]
    drawn = torch.randint(0, 1_000_000, (2,), generator=torch_generator(0, "test"))
    assert drawn.tolist() == [332576, 810645]


def test_names_and_seeds_make_independent_streams() -> None:
    streams = [rng(0), rng(1), rng(0, "a"), rng(0, "b"), rng(0, "a", "b"), rng(0, "ab")]
    draws = np.array([stream.normal(size=500) for stream in streams])
    off_diagonal = np.corrcoef(draws) - np.eye(len(streams))
    assert np.abs(off_diagonal).max() < 0.2


def test_no_global_state_is_touched() -> None:
    before_numpy = np.random.get_state()[1].copy()  # noqa: NPY002
    before_torch = torch.get_rng_state()
    rng(3, "x").random(10)
    torch.rand(10, generator=torch_generator(3, "x"))
    assert np.array_equal(np.random.get_state()[1], before_numpy)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before_torch)


@pytest.mark.parametrize("seed", [-1, 1.5, "0", True, None])
def test_a_bad_seed_is_refused(seed) -> None:
    with pytest.raises(ConfigError, match="integer from 0"):
        rng(seed)
