from __future__ import annotations

import errno
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microtome.errors import DataError, FormatError, OutputError, UnsafeFileError
from microtome.store.arrays import check_safetensors, load_arrays, load_metadata, save_arrays


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint8", "int32", "int64", "float16", "float32", "float64"]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
def test_arrays_come_back_bit_for_bit(tmp_path, dtype, shape) -> None:
    array = (np.random.default_rng(0).normal(size=shape) * 10).astype(dtype)
    save_arrays(tmp_path / "a.safetensors", {"x": array, "y": array}, metadata={"k": "é"})
    found = load_arrays(tmp_path / "a.safetensors")
    assert sorted(found) == ["x", "y"]
    assert found["x"].dtype == array.dtype and found["x"].shape == array.shape
    assert found["x"].tobytes() == array.tobytes()
    assert load_metadata(tmp_path / "a.safetensors") == {"k": "é"}


def test_views_and_foreign_byte_orders_are_written_as_they_read(tmp_path) -> None:
    base = np.arange(12, dtype=">f4").reshape(3, 4)
    save_arrays(tmp_path / "a", {"t": base.T, "s": base[:, ::2]})
    found = load_arrays(tmp_path / "a")
    assert np.array_equal(found["t"], base.T) and np.array_equal(found["s"], base[:, ::2])


def test_tensors_are_written_too(tmp_path) -> None:
    base = torch.arange(6.0).reshape(2, 3).requires_grad_()
    arrays = {"a": base.T, "b": base, "c": np.ones(2), "d": torch.ones(3, dtype=torch.bfloat16) / 3}
    save_arrays(tmp_path / "a", arrays)
    found = load_arrays(tmp_path / "a")
    assert np.array_equal(found["a"], base.detach().numpy().T)
    assert np.array_equal(found["c"], np.ones(2))
    assert found["d"].dtype == np.float32
    assert np.array_equal(found["d"], arrays["d"].float().numpy())


def test_no_arrays_are_a_file_too(tmp_path) -> None:
    save_arrays(tmp_path / "a", {}, metadata={"k": "v"})
    assert load_arrays(tmp_path / "a") == {}
    assert load_metadata(tmp_path / "a") == {"k": "v"}


@pytest.mark.parametrize("cut", [0, 4, 8, 20, 100, -1])
def test_a_truncated_file_is_named(tmp_path, cut) -> None:
    whole = save_arrays(tmp_path / "a", {"x": np.arange(100.0)}).read_bytes()
    (tmp_path / "b").write_bytes(whole[:cut])
    with pytest.raises(FormatError, match="truncated"):
        load_arrays(tmp_path / "b")


@pytest.mark.parametrize(
    "content",
    [
        b"not an array file at all",
        b"\x00" * 64,
        b"\x10" + b"\x00" * 7 + b'{"a": {"x": "y"}' + b" " * 20,
        b"\x02" + b"\x00" * 7 + b"[]",
        b'\x08\x00\x00\x00\x00\x00\x00\x00{"a": 1}',
    ],
)
def test_a_foreign_file_is_named(tmp_path, content) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(FormatError, match="a"):
        load_arrays(tmp_path / "a")


def test_trailing_bytes_are_damage(tmp_path) -> None:
    file = save_arrays(tmp_path / "a", {"x": np.arange(3.0)})
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(FormatError, match="damaged"):
        load_arrays(file)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(FormatError, match="nowhere"):
        load_arrays(tmp_path / "nowhere")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_refused_unread(tmp_path, protocol) -> None:
    (tmp_path / "a").write_bytes(pickle.dumps({"x": [1, 2, 3]}, protocol=protocol))
    with pytest.raises(UnsafeFileError, match="pickle"):
        load_arrays(tmp_path / "a")


def test_a_torch_archive_is_refused_unread(tmp_path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(UnsafeFileError, match="PyTorch archive"):
        load_arrays(tmp_path / "a.pt")
    torch.save({"x": torch.ones(2)}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafeFileError, match="pickle"):
        load_arrays(tmp_path / "b.pt")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("notes.txt", "hello " * 20)
    with pytest.raises(FormatError):
        load_arrays(tmp_path / "c.zip")


@pytest.mark.parametrize("length", [128, 640, 896, 1152, 1280])
def test_a_header_that_starts_like_a_pickle_is_read(tmp_path, length) -> None:
    file = tmp_path / "a"
    header = save_arrays(file, {"x": np.ones(2)}, metadata={"k": ""}).read_bytes()
    missing = length - int.from_bytes(header[:8], "little")
    if missing > 0:
        save_arrays(file, {"x": np.ones(2)}, metadata={"k": "a" * missing})
    assert file.read_bytes()[:2] == length.to_bytes(2, "little")
    assert np.array_equal(load_arrays(file)["x"], np.ones(2))


@given(st.binary(max_size=200))
def test_any_bytes_give_a_header_or_a_clear_error(data) -> None:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a"
        file.write_bytes(data)
        try:
            check_safetensors(file)
        except (FormatError, UnsafeFileError) as error:
            assert str(file) in str(error)


def test_texts_and_objects_are_refused(tmp_path) -> None:
    for bad in (np.array(["a"]), np.array([None]), np.array(["2020"], dtype="datetime64[Y]")):
        with pytest.raises(DataError, match="'x'"):
            save_arrays(tmp_path / "a", {"x": bad})
    with pytest.raises(DataError, match="metadata"):
        save_arrays(tmp_path / "a", {}, metadata={"n": 1})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    file = save_arrays(tmp_path / "a", {"x": np.ones(2)})

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="free some space"):
        save_arrays(file, {"x": np.zeros(2)})
    assert np.array_equal(load_arrays(file)["x"], np.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
