"""Batches of activations: every row once an epoch, the same stream from any cursor."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.errors import (
    ConfigError,
    DataError,
    EmptyDataError,
    ShapeError,
    UnknownNameError,
)
from microtome.sae.harvesting.order import RowOrder
from microtome.sae.harvesting.store import ActivationStore


def numbered(rows: int, width: int = 3) -> torch.Tensor:
    """Rows of which the first entry is their number."""
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(1))
    values[:, 0] = torch.arange(rows)
    return values


def read(data, count: int, batch_size: int = 4, **options) -> list[dict[str, torch.Tensor]]:
    with contextlib.closing(data.batches(batch_size, **{"seed": 0, **options})) as stream:
        return list(itertools.islice(stream, count))


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=20).filter(any),
    seed=st.integers(0, 3),
    count=st.integers(1, 9),
)
def test_every_epoch_holds_every_row_once(sizes: list[int], seed: int, count: int) -> None:
    order = RowOrder(sizes, seed, open_shards=4)
    whole = stream_of(order, 0, 3 * order.rows)
    every = sorted((s, r) for s, size in enumerate(sizes) for r in range(size))
    for epoch in range(3):
        assert sorted(whole[epoch * order.rows : (epoch + 1) * order.rows]) == every
    again = RowOrder(sizes, seed, open_shards=4)
    pieces = [stream_of(again, i, count) for i in range(0, 2 * order.rows, count)]
    assert list(itertools.chain(*pieces))[: 2 * order.rows] == whole[: 2 * order.rows]


def stream_of(order: RowOrder, first: int, count: int) -> list[tuple[int, int]]:
    """Rows of the stream as shard and row."""
    found: list[tuple[int, int] | None] = [None] * count
    for draw in order.draws(first, count):
        if isinstance(draw.places, slice):
            places = range(draw.places.start, draw.places.stop)
        else:
            assert (np.diff(draw.rows) > 0).all()
            places = draw.places
        for row, place in zip(draw.rows, places, strict=True):
            assert found[place] is None
            found[place] = (draw.shard, int(row))
    assert None not in found
    return found  # type: ignore[return-value]


def test_no_more_than_the_open_shards_are_mixed() -> None:
    order = RowOrder([10] * 20, 0, open_shards=8)
    assert max(len({s for s, _ in stream_of(order, i, 5)}) for i in range(0, 70, 5)) > 3
    assert len({s for s, _ in stream_of(order, 0, 70)}) == 7


def test_a_batch_does_not_depend_on_where_reading_began() -> None:
    data = ActivationStore.of(numbered(10))
    whole = read(data, 12)
    for start in (0, 1, 2, 5, 11):
        (batch,) = read(data, 1, start=start)
        assert torch.equal(batch["activations"], whole[start]["activations"])
    assert not torch.equal(read(data, 1, seed=1)[0]["activations"], whole[0]["activations"])


def test_the_stream_does_not_depend_on_batch_size_or_sites() -> None:
    data = ActivationStore.of({"a": numbered(10), "b": numbered(10, width=2)})
    small = torch.cat([b["a"] for b in read(data, 10, 3)])
    large = torch.cat([b["a"] for b in read(data, 3, 10, sites=["a"])])
    assert torch.equal(small, large)
    assert [set(b) for b in read(data, 1, 3, sites=["b"])] == [{"b"}]


def test_rows_of_several_sites_stay_together() -> None:
    data = ActivationStore.of({"a": numbered(50), "b": numbered(50, width=2).double()})
    for batch in read(data, 5, 16):
        assert torch.equal(batch["a"][:, 0], batch["b"][:, 0])
        assert batch["b"].dtype == torch.float32
    assert list(read(data, 1)[0]) == ["a", "b"]


def test_a_batch_may_be_larger_than_the_data() -> None:
    data = ActivationStore.of(numbered(3))
    (batch,) = read(data, 1, 7)
    assert sorted(batch["activations"][:6, 0].tolist()) == [0, 0, 1, 1, 2, 2]


def test_batches_are_the_readers_own() -> None:
    values = numbered(4)
    before = values.clone()
    data = ActivationStore.of(values)
    with contextlib.closing(data.batches(4, seed=0)) as stream:
        next(stream)["activations"].zero_()
        assert next(stream)["activations"].any()
    assert torch.equal(values, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_moments_are_those_of_the_rows(dtype: torch.dtype) -> None:
    values = numbered(1000, width=5).to(dtype)
    data = ActivationStore.of({"a": values})
    exact = values.double().clone()
    assert data.scale("a") > 0 and torch.equal(values.double(), exact)
    torch.testing.assert_close(data.mean("a"), exact.mean(0))
    scaled = exact * data.scale("a")
    assert scaled.square().sum(1).mean().item() == pytest.approx(5)
    assert data.width("a") == 5
    norms = exact.norm(dim=1)
    for share in (0.1, 0.5, 0.9):
        found = data.moments("a").norm_quantile(share)
        assert found == pytest.approx(float(norms.quantile(share)), rel=0.01)


def test_closing_a_stream_stops_its_thread() -> None:
    data = ActivationStore.of(numbered(10))
    before = threading.active_count()
    stream = data.batches(2, seed=0)
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before


def test_fingerprints_tell_data_apart() -> None:
    first = ActivationStore.of(numbered(10)).fingerprint
    assert first == ActivationStore.of(numbered(10)).fingerprint
    assert first != ActivationStore.of(numbered(10) + 1).fingerprint


def test_bad_tensors_and_numbers_are_refused() -> None:
    bad = numbered(4)
    bad[2, 1] = float("nan")
    with pytest.raises(ShapeError, match="first in row 2"):
        ActivationStore.of(bad)
    with pytest.raises(ShapeError, match="expected a floating-point tensor"):
        ActivationStore.of(torch.zeros(2, 3, 4))
    with pytest.raises(ShapeError, match="int64"):
        ActivationStore.of(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ShapeError, match="equally many"):
        ActivationStore.of({"a": numbered(3), "b": numbered(4)})
    with pytest.raises(EmptyDataError):
        ActivationStore.of(torch.zeros(0, 3))
    data = ActivationStore.of(numbered(4))
    with pytest.raises(ConfigError, match="batch_size=0"):
        data.batches(0, seed=0)
    with pytest.raises(ConfigError, match="seed is -1"):
        data.batches(2, seed=-1)
    with pytest.raises(ConfigError, match="start=-1"):
        data.batches(2, seed=0, start=-1)
    with pytest.raises(UnknownNameError, match="nearest: activations"):
        data.batches(2, seed=0, sites=["activation"])
    with pytest.raises(DataError, match="All 2 rows are zero"):
        ActivationStore.of(torch.zeros(2, 3)).scale("activations")


def test_a_stream_that_is_left_open_does_not_keep_a_program_alive() -> None:
    code = (
        "import torch; from microtome.sae import ActivationStore;"
        "stream = ActivationStore.of(torch.eye(4)).batches(2, seed=0); next(stream); print('end')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("end\n", "")
