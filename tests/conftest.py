"""What every test runs under: one thread, no network, an empty home, fixed warnings."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import shape_checks

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Numeric libraries read these once, when they are loaded.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

shape_checks.install("microtome")

ROOT = Path(__file__).resolve().parents[1]


def _blocked(self: socket.socket, address: object, *rest: object) -> None:
    """Stand in for ``socket.connect``: tests must not reach the network."""
    raise RuntimeError(f"a test tried to connect to {address!r}; tests run without network")


_connect, _connect_ex = socket.socket.connect, socket.socket.connect_ex


def _guarded(real):
    """Let unix sockets through and refuse all others."""

    def connect(self: socket.socket, address: object) -> object:
        return (real if self.family == socket.AF_UNIX else _blocked)(self, address)

    return connect


socket.socket.connect = _guarded(_connect)  # type: ignore[method-assign]
socket.socket.connect_ex = _guarded(_connect_ex)  # type: ignore[method-assign]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Compute with one thread: contended threads are slow, and sums depend on their number."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _empty_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test its own home folder for runs."""
    monkeypatch.setenv("MICROTOME_HOME", str(tmp_path_factory.mktemp("home")))


class SharedData:
    """The folder of shared data, which may be missing as a whole or in part."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __truediv__(self, name: str) -> Path:
        """Return the path of a file or folder, or skip the test with its name."""
        path = self.root / name
        if not path.exists():
            pytest.skip(f"shared data not found: {path} (set MICROTOME_SHARED_DATA)")
        return path


@pytest.fixture(scope="session")
def shared_data() -> Iterator[SharedData]:
    """The shared data; ``shared_data / "models/sorter"`` skips where that is missing."""
    default = ROOT.parent / "shared" / "data"
    yield SharedData(Path(os.environ.get("MICROTOME_SHARED_DATA") or default))
