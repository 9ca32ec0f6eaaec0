"""Run folders: one executed step with its settings, inputs, outputs and hashes.

A run is a folder below ``home()/runs`` with ``run.json``, ``metrics.jsonl``, tables, arrays
and reports. ``run.json`` lists every output with its SHA-256.
"""

from __future__ import annotations

import datetime
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microtome.core.hashing import sha256_file
from microtome.core.plain import plain
from microtome.core.provenance import Provenance
from microtome.errors import FormatError, OutputError, UsageError
from microtome.store.arrays import save_arrays
from microtome.store.atomic import write_json, write_text
from microtome.store.results import Result
from microtome.store.tables import write_csv

_FORMAT = "microtome.run"
_VERSION = 1


def home() -> Path:
    """Return microtome's folder: the variable ``MICROTOME_HOME``, or ``~/.microtome``."""
    return Path(os.environ.get("MICROTOME_HOME") or Path.home() / ".microtome").expanduser()


class Run:
    """One run folder, open for adding outputs until it is finished.

    Attributes:
        path: The folder.
        record: What ``run.json`` holds: kind, status, config, provenance, outputs, times.
    """

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        """Take the folder and its record; use ``Run.create`` or ``Run.open`` instead."""
        self.path = path
        self.record = record

    @classmethod
    def create(
        cls,
        kind: str,
        *,
        config: Any = None,
        provenance: Provenance | None = None,
        root: str | Path | None = None,
    ) -> Run:
        """Make a new run folder with the status ``"running"``.

        Args:
            kind: The step, for example ``"dissect"``.
            config: The step's settings, any value with a plain form.
            provenance: Where its outputs come from.
            root: Folder that holds the runs, ``home() / "runs"`` by default.

        Raises:
            OutputError: The folder cannot be made.
        """
        now = datetime.datetime.now(datetime.UTC)
        name = f"{now:%Y%m%d-%H%M%S}-{kind}-{secrets.token_hex(3)}"
        record = {
            "format": _FORMAT,
            "version": _VERSION,
            "kind": kind,
            "status": "running",
            "started": now.isoformat(timespec="seconds"),
            "ended": None,
            "config": plain(config),
            "provenance": plain(provenance),
            "outputs": {},
        }
        run = cls(Path(root or home() / "runs") / name, record)
        run._write()
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open an existing run folder.

        Raises:
            FormatError: There is no ``run.json``, or it is damaged or newer.
        """
        file = Path(path) / "run.json"
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise FormatError(f"{path} is no run folder: {error.strerror} ({file.name})") from error
        except ValueError as error:
            raise FormatError(f"{file} is damaged ({error}); the run must be repeated") from error
        if not isinstance(record, dict) or record.get("format") != _FORMAT:
            raise FormatError(f"{file} is no record of a run; expected one that microtome wrote")
        if record.get("version", 0) > _VERSION:
            raise FormatError(f"{file} has version {record['version']}; update microtome")
        return cls(Path(path), record)

    @property
    def status(self) -> str:
        """``"running"``, ``"done"``, ``"failed"`` or ``"interrupted"``."""
        return str(self.record["status"])

    def log(self, **values: Any) -> None:
        """Append one line of metrics to ``metrics.jsonl`` and sync it.

        Raises:
            OutputError: The line could not be written.
        """
        line = json.dumps(plain(values), ensure_ascii=False, allow_nan=False) + "\n"
        file = self.path / "metrics.jsonl"
        try:
            _drop_cut_line(file)
            with file.open("a", encoding="utf-8") as handle:
                handle.write(line)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise OutputError(
                f"cannot write {file}: {error.strerror}; choose another folder or free some space"
            ) from error

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metrics logged so far; a line cut off by a crash is left out."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        lines = file.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1] if line]

    def add_table(self, name: str, rows: Any) -> Path:
        """Write rows or a DataFrame as ``NAME.csv`` and list it among the outputs."""
        return self._listed(write_csv(self._place(f"{name}.csv"), rows))

    def add_arrays(self, name: str, arrays: Mapping[str, Any]) -> Path:
        """Write arrays as ``NAME.safetensors`` and list them among the outputs."""
        return self._listed(save_arrays(self._place(f"{name}.safetensors"), arrays))

    def add_text(self, name: str, text: str) -> Path:
        """Write a text under its full name, for example ``"report.html"``, and list it."""
        return self._listed(write_text(self._place(name), text))

    def add_result(self, name: str, result: Result) -> Path:
        """Save a result as ``NAME.json``, arrays beside it, and list it."""
        return self._listed(result.save(self._place(f"{name}.json")))

    def finish(self, status: str = "done") -> None:
        """Close the run with ``"done"``, ``"failed"`` or ``"interrupted"``.

        Raises:
            UsageError: Another status.
        """
        if status not in ("done", "failed", "interrupted"):
            raise UsageError(f"status is {status!r}; expected done, failed or interrupted")
        self.record["status"] = status
        self.record["ended"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._write()

    def _place(self, name: str) -> Path:
        """Return the path of an output, refusing names that leave the folder."""
        place = self.path / name
        if not place.resolve().is_relative_to(self.path.resolve()) or name == "run.json":
            raise UsageError(
                f"{name!r} is no name for an output; expected a file in the run folder"
            )
        return place

    def _listed(self, file: Path) -> Path:
        """Record an output with its hash."""
        self.record["outputs"][file.relative_to(self.path).as_posix()] = sha256_file(file)
        self._write()
        return file

    def _write(self) -> None:
        """Write ``run.json``."""
        write_json(self.path / "run.json", self.record)


def _drop_cut_line(file: Path) -> None:
    """Remove a last line without its end, which a crash left, so that none is joined to it."""
    if not file.exists():
        return
    with file.open("rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, size - 1))
        if handle.read() in (b"", b"\n"):
            return
        handle.seek(0)
        kept = handle.read().rfind(b"\n") + 1
    os.truncate(file, kept)


def list_runs(*, root: str | Path | None = None) -> list[Run]:
    """Return the runs below a folder, oldest first; damaged ones are left out.

    Args:
        root: Folder that holds the runs, ``home() / "runs"`` by default.
    """
    found = []
    for file in sorted(Path(root or home() / "runs").glob("*/run.json")):
        try:
            found.append(Run.open(file.parent))
        except FormatError:
            continue
    return found
