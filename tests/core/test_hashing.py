from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch

from microtome.core.hashing import sha256_arrays, sha256_file, sha256_json, sha256_text
from microtome.errors import DataError


def test_text_and_file_have_the_standard_hash(tmp_path) -> None:
    expected = hashlib.sha256(b"abc").hexdigest()
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_text("abc") == expected == sha256_file(tmp_path / "f")
    with pytest.raises(DataError, match="nowhere"):
        sha256_file(tmp_path / "nowhere")


def test_json_hash_ignores_the_order_of_keys_only() -> None:
    assert sha256_json({"a": 1, "b": [1, 2]}) == sha256_json({"b": [1, 2], "a": 1})
    assert sha256_json({"a": [1, 2]}) != sha256_json({"a": [2, 1]})
    for bad in (math.nan, object()):
        with pytest.raises(DataError):
            sha256_json({"a": bad})


def test_array_hash_depends_on_name_dtype_shape_and_bytes() -> None:
    base = np.arange(6, dtype=np.float32)
    variants = [
        {"a": base},
        {"b": base},
        {"a": base.astype(np.float64)},
        {"a": base.reshape(2, 3)},
        {"a": base + 1},
        {"a": base, "b": base},
    ]
    assert len({sha256_arrays(v) for v in variants}) == len(variants)
    assert sha256_arrays({"a": base, "b": base + 1}) == sha256_arrays({"b": base + 1, "a": base})
    assert sha256_arrays({"a": base.reshape(2, 3).T}) == sha256_arrays(
        {"a": base.reshape(2, 3).T.copy()}
    )


def test_a_tensor_has_the_hash_of_its_array() -> None:
    base = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert sha256_arrays({"a": torch.from_numpy(base)}) == sha256_arrays({"a": base})
    assert sha256_arrays({"a": torch.tensor(1.0)}) == sha256_arrays({"a": np.float32(1.0)})
    assert sha256_arrays({"a": torch.ones(2, dtype=torch.bfloat16)})
    with pytest.raises(DataError, match="objects"):
        sha256_arrays({"a": np.array([None])})
