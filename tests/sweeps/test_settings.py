"""Settings that a sweep refuses, and what its certificate draws and compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sweeps.test_sweeps import pairs

from microtome.errors import ConfigError, MicrotomeError, SweepError
from microtome.models.families import build
from microtome.sweeps import pair_patching, path_patching, plan, sweep
from microtome.sweeps.certification import largest
from microtome.tracing.opening import load

MODEL = load(build("llama"))


@pytest.mark.parametrize(
    "run",
    [
        lambda base: sweep(MODEL, pairs(), base=base),
        lambda base: path_patching(MODEL, pairs(), "logits", base=base),
        lambda base: pair_patching(MODEL, pairs(), base=base),
    ],
)
@pytest.mark.parametrize("base", ["Clean", "", "source"])
def test_a_base_that_is_neither_run(run: Callable[[Any], object], base: str) -> None:
    with pytest.raises(ConfigError, match=f"base={base!r}; expected clean or corrupt"):
        run(base)


@pytest.mark.parametrize(
    ("site", "over", "message"),
    [
        ("resid_pre", "head", "resid_pre has no heads"),
        ("mlp.out", "neuron", "mlp.out has no neurons"),
        ("mlp.act", "head", "mlp.act has no heads"),
        ("attn.z", "neuron", "attn.z has no neurons"),
        (
            "resid_pre",
            "layer",
            "over='layer'; expected one of pos, role, head, neuron, latent, all",
        ),
    ],
)
def test_an_axis_that_a_site_does_not_have(site: str, over: Any, message: str) -> None:
    with pytest.raises(MicrotomeError, match=message):
        plan(MODEL, pairs(), site, over=over, neurons=[1, 2])


def test_neurons_counted_from_the_end_and_blocks_without_any() -> None:
    last = MODEL.anatomy.d_mlp - 1  # type: ignore[union-attr]
    found = sweep(MODEL, pairs(), "mlp.act", neurons={0: [-1], 1: []})
    same = sweep(MODEL, pairs(), "mlp.act", neurons={0: [last]})
    np.testing.assert_array_equal(found.values, same.values)
    assert found.values["neuron"].to_numpy().tolist() == [last]
    assert not np.isnan(found.values).any()


@pytest.mark.parametrize("memory", [0.0, -1.0, float("nan")])
def test_a_budget_that_holds_nothing(memory: float) -> None:
    with pytest.raises(SweepError, match="too small"):
        plan(MODEL, pairs(), memory_mb=memory)


def test_a_budget_without_end() -> None:
    assert plan(MODEL, pairs(), memory_mb=float("inf")).tokens == plan(MODEL, pairs()).tokens


@pytest.mark.parametrize("lengths", [(4, 5, 6, 7, 8, 9, 10), (6, 6), (5,)])
@pytest.mark.parametrize("asked", [1, 3, 9])
def test_as_many_runs_are_repeated_as_were_asked_for(lengths: tuple[int, ...], asked: int) -> None:
    found = sweep(MODEL, pairs(lengths), over="role", certify=asked)
    moved = sum(int(g.moved.sum()) for g in plan(MODEL, pairs(lengths), over="role").groups())
    assert found.certificate["sample"] >= min(asked, moved)


@given(st.lists(st.floats() | st.none(), min_size=1, max_size=6))
def test_a_number_and_no_number_differ_without_end(values: list[float | None]) -> None:
    one = np.array([np.nan if v is None else v for v in values])
    assert largest(one, one) == 0.0
    numbers = np.where(np.isnan(one), 0.0, one)
    assert (largest(one, numbers) == np.inf) == bool(np.isnan(one).any())
