from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from microtome.core.provenance import Provenance, collect
from microtome.core.stats import Interval
from microtome.errors import ConfigError, DataError, FormatError
from microtome.store import results
from microtome.store.results import Result


@dataclass(frozen=True, eq=False)
class Inner(Result, schema="test-inner"):
    score: float
    names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Everything(Result, schema="test-everything", version=2):
    scalar: float
    text: str
    flag: bool | None
    pairs: tuple[tuple[int, str], ...]
    nodes: frozenset[str]
    mapping: dict[Any, Any]
    array: np.ndarray
    tokens: np.ndarray
    frame: pd.DataFrame
    grid: xr.DataArray
    interval: Interval
    inner: Inner
    many: tuple[Inner, ...]
    provenance: Provenance = field(default_factory=Provenance)


def everything() -> Everything:
    grid = xr.DataArray(
        np.arange(6, dtype=np.float32).reshape(2, 3),
        dims=["layer", "pos"],
        coords={"layer": [0, 1], "token": ("pos", ["a", "b", "é"]), "base": 1.5},
        name="effect",
        attrs={"unit": "logits", "clusters": (1, 2)},
    )
    frame = pd.DataFrame(
        {"n": [1, 2], "x": [0.5, math.nan], "t": ["a", None], "b": [True, False]},
        index=pd.Index(["p", "q"], name="part"),
    )
    return Everything(
        scalar=math.inf,
        text="é",
        flag=None,
        pairs=((1, "a"), (2, "b")),
        nodes=frozenset({"a0.h1", "m0"}),
        mapping={"plain": 1, "deep": {(0, 1): [1, 2]}, "$": "dollar"},
        array=np.array([[1.0, math.nan]], dtype=np.float16),
        tokens=np.array([[" the", "é"]]),
        frame=frame,
        grid=grid,
        interval=Interval(0.9, 0.8, math.inf, n=3, clusters=2, method="m"),
        inner=Inner(0.1 + 0.2, ("x",)),
        many=(Inner(1.0), Inner(2.0)),
        provenance=collect(seed=3, config={"k": (1, 2)}),
    )


def test_every_kind_of_field_comes_back(tmp_path) -> None:
    first = everything()
    path = first.save(tmp_path / "r.json")
    found = Everything.load(path)
    for name in ("scalar", "text", "flag", "pairs", "nodes", "mapping", "interval", "provenance"):
        assert getattr(found, name) == getattr(first, name), name
        assert type(getattr(found, name)) is type(getattr(first, name)), name
    assert found.array.dtype == np.float16
    np.testing.assert_array_equal(found.array, first.array)
    np.testing.assert_array_equal(found.tokens, first.tokens)
    pd.testing.assert_frame_equal(found.frame, first.frame)
    xr.testing.assert_identical(found.grid, first.grid)
    assert list(found.grid.indexes) == ["layer"]
    assert found.inner.score == 0.1 + 0.2 and found.inner.names == ("x",)
    assert [inner.score for inner in found.many] == [1.0, 2.0]


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame(),
        pd.DataFrame({"a": []}),
        pd.DataFrame({"a": np.arange(3, dtype=np.int8)}, index=[5, 3, 1]),
        pd.DataFrame({1: [1.0], "b": ["x"]}),
        pd.DataFrame({"c": pd.Categorical(["x", "y", "x"]), "o": [1, "a", None]}),
        pd.DataFrame({"v": [1.0, 2.0]}, index=pd.MultiIndex.from_tuples([("a", 0), ("b", 1)])),
        pd.DataFrame([[1, 2]], columns=["same", "same"]),
    ],
)
def test_tables_of_all_shapes_come_back(tmp_path, frame) -> None:
    @dataclass(frozen=True, eq=False)
    class Table(Result, schema="test-table"):
        frame: pd.DataFrame

    found = Table.load(Table(frame).save(tmp_path / "t.json")).frame
    pd.testing.assert_frame_equal(found, frame, check_column_type=False)


def test_a_zero_dimensional_grid_comes_back(tmp_path) -> None:
    @dataclass(frozen=True, eq=False)
    class Grid(Result, schema="test-grid"):
        grid: xr.DataArray

    found = Grid.load(Grid(xr.DataArray(2.5)).save(tmp_path / "g.json")).grid
    xr.testing.assert_identical(found, xr.DataArray(2.5))


def test_to_dict_is_strict_json() -> None:
    found = everything().to_dict()
    json.dumps(found, allow_nan=False)
    assert found["schema"] == "test-everything" and found["version"] == 2
    assert found["array"] == [[1.0, None]] and found["inner"]["score"] == 0.1 + 0.2


def test_shown_as_a_table_with_text_escaped() -> None:
    shown = Inner(0.5, ("<b>",))._repr_html_()
    assert "<table>" in shown and "&lt;b&gt;" in shown and "<b>" not in shown
    assert "float16 array [1, 2]" in everything()._repr_html_()
    assert everything().to_frame().shape == (14, 2)


def test_the_ending_is_added_and_small_results_are_one_file(tmp_path) -> None:
    assert Inner(1.0).save(tmp_path / "v1.5") == tmp_path / "v1.5.json"
    assert [p.name for p in tmp_path.iterdir()] == ["v1.5.json"]


def test_saving_again_leaves_no_stale_arrays(tmp_path) -> None:
    @dataclass(frozen=True, eq=False)
    class One(Result, schema="test-one"):
        values: np.ndarray

    (tmp_path / "r-notes.safetensors").write_bytes(b"mine")
    One(np.zeros(3)).save(tmp_path / "r.json")
    One(np.ones(3)).save(tmp_path / "r.json")
    assert len(list(tmp_path.iterdir())) == 3
    np.testing.assert_array_equal(One.load(tmp_path / "r.json").values, np.ones(3))


def test_a_failure_between_the_two_files_leaves_the_old_result(tmp_path, monkeypatch) -> None:
    first = everything()
    first.save(tmp_path / "r.json")
    monkeypatch.setattr(results, "write_text", lambda *a: (_ for _ in ()).throw(RuntimeError))
    changed = Everything(**{**vars(first), "array": np.zeros(4)})
    with pytest.raises(RuntimeError):
        changed.save(tmp_path / "r.json")
    np.testing.assert_array_equal(Everything.load(tmp_path / "r.json").array, first.array)


def edit(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 99}, "version 99.*update microtome"),
        ({"version": "x"}, "update microtome"),
        ({"schema": "test-iner"}, "nearest: test-inner"),
        ({"format": "other"}, "no result of microtome"),
        ({"fields": {"score": 1.0, "extra": 2}}, "unknown fields .'extra'"),
        ({"fields": {}}, "lacks fields"),
        ({"fields": {"score": {"$": "hologram"}}}, "unknown kind 'hologram'"),
        ({"fields": {"score": {"$": "array", "name": "array7"}}}, "damaged"),
        ({"arrays": {"file": "r-0.safetensors", "sha256": "0"}}, "beside it"),
        ({"arrays": 3}, "unknown way"),
    ],
)
def test_files_it_cannot_read_are_refused_with_the_reason(tmp_path, changes, words) -> None:
    path = Inner(1.0).save(tmp_path / "r.json")
    edit(path, **changes)
    with pytest.raises(FormatError, match=words):
        Inner.load(path)


def test_truncated_missing_and_foreign_files(tmp_path) -> None:
    path = everything().save(tmp_path / "r.json")
    (tmp_path / "cut.json").write_bytes(path.read_bytes()[:100])
    (tmp_path / "bin.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "list.json").write_text("[]")
    for name in ("cut", "bin", "list", "nowhere"):
        with pytest.raises(FormatError, match=name):
            Everything.load(tmp_path / f"{name}.json")
    with pytest.raises(FormatError, match="Everything.load"):
        Inner.load(path)
    assert isinstance(Result.load(path), Everything)


def test_arrays_of_another_save_are_noticed(tmp_path) -> None:
    path = everything().save(tmp_path / "r.json")
    (arrays,) = tmp_path.glob("*.safetensors")
    data = bytearray(arrays.read_bytes())
    data[-1] ^= 1
    arrays.write_bytes(bytes(data))
    with pytest.raises(FormatError, match="does not hold the arrays"):
        Everything.load(path)


def test_what_cannot_be_stored_is_refused(tmp_path) -> None:
    bad_values = [object(), {1, 2}, np.array(["2020"], dtype="datetime64[D]")]
    bad_values.append(pd.DataFrame({"d": pd.to_datetime(["2020-01-01"])}))
    for bad in bad_values:
        with pytest.raises(DataError):
            Inner(bad).save(tmp_path / "r.json")
    assert not list(tmp_path.iterdir())


def test_schemas_are_unique_and_named_after_the_class() -> None:
    class LogitThing(Result):
        pass

    assert LogitThing.schema == "logit-thing"
    with pytest.raises(ConfigError, match="taken by"):

        class Other(Result, schema="test-inner"):
            pass
