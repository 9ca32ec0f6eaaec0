from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from microtome.core.plain import plain
from microtome.core.provenance import Provenance, collect
from microtome.core.stats import Interval
from microtome.errors import DataError


@dataclass(frozen=True)
class Setting:
    size: int
    where: Path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.float64("nan"), None),
        (float("inf"), None),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1, 2]]), [[1, 2]]),
        (torch.ones(2), [1.0, 1.0]),
        ({1: (2, None)}, {"1": [2, None]}),
        (frozenset({"b", "a"}), ["a", "b"]),
        (Setting(2, Path("a/b")), {"size": 2, "where": "a/b"}),
        (range(3), [0, 1, 2]),
        (pd.DataFrame({"x": [1, 2], "y": ["a", None]}), [{"x": 1, "y": "a"}, {"x": 2, "y": None}]),
    ],
)
def test_plain_forms(value, expected) -> None:
    found = plain(value)
    assert found == expected
    json.dumps(found, allow_nan=False)


def test_labelled_arrays_keep_their_labels() -> None:
    array = xr.DataArray([1.0, 2.0], dims=["pos"], coords={"token": ("pos", ["a", "b"])})
    found = plain(array)
    assert found == {"dims": ["pos"], "coords": {"token": ["a", "b"]}, "values": [1.0, 2.0]}


def test_values_without_a_plain_form_are_refused() -> None:
    with pytest.raises(DataError, match="object"):
        plain(object())


def test_interval_and_provenance_are_plain() -> None:
    assert plain(Interval(1.0, 0.5, 1.5, n=4))["n"] == 4
    assert plain(Provenance(seed=3))["seed"] == 3


def test_collect_takes_what_the_model_says() -> None:
    class Fake:
        name = "tiny"
        fingerprint = "ab12"
        dtype = torch.float32
        device = torch.device("cpu")

    found = collect(Fake(), Setting(2, Path("a")), seed=5, command="microtome dissect")
    assert (found.model, found.fingerprint, found.dtype, found.device) == (
        "tiny",
        "ab12",
        "float32",
        "cpu",
    )
    assert found.config == {"size": 2, "where": "a"}
    assert found.seed == 5 and found.command == "microtome dissect"
    assert found.threads == torch.get_num_threads()
    assert found.versions["torch"].startswith("2.") and "python" in found.versions
    assert found.created.endswith("+00:00")
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_running_command_line_is_the_default(monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["/some/bin/microtome", "dissect", "two words"])
    assert collect().command == "microtome dissect 'two words'"
