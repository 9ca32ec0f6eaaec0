from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.small import interruptible

from microtome.errors import ModelNotFoundError, OutputError
from microtome.store import atomic
from microtome.store.atomic import atomic_file, atomic_folder, write_bytes, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def fail_with(code: int):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return fail


def test_writes_replace_and_make_parents(tmp_path) -> None:
    target = tmp_path / "a" / "b.txt"
    assert write_text(target, "one\r\n") == target
    write_bytes(target, b"two")
    assert target.read_bytes() == b"two"
    assert names(tmp_path) == ["a", "a/b.txt"]


def test_json_is_strict_and_readable(tmp_path) -> None:
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": (1, 2), "name": "é"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"x": None, "y": [1, 2], "name": "é"}
    assert "é" in text and text.endswith("}\n")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_middle_leaves_the_old_file(tmp_path, error) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(error), atomic_file(target) as temporary:
        temporary.write_text("new, half")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "may write"),
        (errno.EROFS, "can be written"),
    ],
)
@pytest.mark.parametrize("place", ["replace", "write_bytes", "mkdir"])
def test_a_failing_disk_leaves_the_old_file(tmp_path, monkeypatch, code, words, place) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, place, fail_with(code))
        with pytest.raises(OutputError, match=words) as caught:
            write_text(target, "new")
    assert str(target) in str(caught.value)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_failing_sync_is_an_error(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(atomic.os, "fsync", fail_with(errno.EIO))
    with pytest.raises(OutputError, match="Input/output"):
        write_text(tmp_path / "a.txt", "new")
    assert names(tmp_path) == []


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        write_text(tmp_path / "file" / "a.txt", "new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="not a folder"):
        write_text(tmp_path / "folder", "new")
    assert names(tmp_path) == ["file", "folder"]


def test_errors_of_the_caller_pass_unchanged(tmp_path) -> None:
    with pytest.raises(ModelNotFoundError, match="gone"), atomic_folder(tmp_path / "out"):
        raise ModelNotFoundError("gone")
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "out"):
        (tmp_path / "elsewhere").read_text()
    assert names(tmp_path) == []


KILLED = """
import sys, time
from pathlib import Path
from microtome.store.atomic import atomic_file, atomic_folder
folder = Path(sys.argv[1])
with atomic_folder(folder / "run") as run, atomic_file(folder / "a.txt") as temporary:
    (run / "x").write_text("half")
    temporary.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_leaves_the_old_file(tmp_path, kind) -> None:
    write_text(tmp_path / "a.txt", "old")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=interruptible,
    )
    with process:
        process.stdout.readline()
        time.sleep(0.05)
        process.send_signal(kind)
    assert (tmp_path / "a.txt").read_text() == "old"
    visible = [name for name in names(tmp_path) if not name.startswith(".")]
    assert visible == ["a.txt"]
    if kind == signal.SIGINT:
        assert names(tmp_path) == ["a.txt"]


def test_a_new_folder_appears_whole(tmp_path) -> None:
    with atomic_folder(tmp_path / "new" / "run") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("1")
        assert not (tmp_path / "new" / "run").exists()
    assert names(tmp_path) == ["new", "new/run", "new/run/sub", "new/run/sub/x"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_folder_changes_nothing(tmp_path, error, exists) -> None:
    if exists:
        write_text(tmp_path / "run" / "x", "old")
    before = names(tmp_path)
    with pytest.raises(error), atomic_folder(tmp_path / "run") as folder:
        (folder / "x").write_text("new")
        raise error
    assert names(tmp_path) == before
    assert not exists or (tmp_path / "run" / "x").read_text() == "old"


def test_an_existing_folder_keeps_what_is_not_replaced(tmp_path) -> None:
    write_text(tmp_path / "run" / "mine.txt", "keep")
    write_text(tmp_path / "run" / "sub" / "x", "old")
    with atomic_folder(tmp_path / "run") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("new")
        (folder / "y").write_text("new")
    assert names(tmp_path / "run") == ["mine.txt", "sub", "sub/x", "y"]
    assert (tmp_path / "run" / "mine.txt").read_text() == "keep"
    assert (tmp_path / "run" / "sub" / "x").read_text() == "new"


def test_an_unwritable_folder_is_an_output_error(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Path, "mkdir", fail_with(errno.EACCES))
    with pytest.raises(OutputError, match="may write"), atomic_folder(tmp_path / "run"):
        pass
    (tmp_path / "file").write_text("x")
    monkeypatch.undo()
    with pytest.raises(OutputError), atomic_folder(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "x"
