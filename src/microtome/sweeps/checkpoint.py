"""What is done of a long sweep, kept in a file so that it can go on after a stop."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from microtome.errors import FormatError, OutputError
from microtome.store.arrays import load_arrays, load_metadata, save_arrays

EVERY = 5.0
"""Seconds between writes."""


@dataclass
class Checkpoint:
    """The values of a sweep so far.

    Attributes:
        path: The file.
        key: Hash of the sweep it belongs to.
        values: ``[row, cell]``, NaN where a run is still to be done.
        before: What was tried before, as JSON.

    As a context, the file is written once more on an error or Ctrl-C, and removed at a good end.
    """

    path: Path
    key: str
    values: np.ndarray
    before: str = "[]"
    _written: float = field(default_factory=time.monotonic)

    @staticmethod
    def at(path: str | Path, key: str, empty: np.ndarray, before: str = "[]") -> Checkpoint:
        """Return the checkpoint of a file, or a new one, written at once, where there is none.

        Raises:
            FormatError: If the file is no checkpoint, or that of another sweep.
            OutputError: If the file cannot be written.
        """
        place = Path(path)
        if not place.exists():
            made = Checkpoint(place, key, empty, before)
            made.write()
            return made
        if notes_of(place).get("sweep") != key:
            raise FormatError(
                f"{place} keeps another sweep (other model, prompts, cells or rules). Remove it or "
                "name another file."
            )
        values = load_arrays(place).get("values", np.zeros(0))
        if values.shape != empty.shape or values.dtype != empty.dtype:
            raise FormatError(
                f"{place} is damaged: it keeps values {values.shape} of type {values.dtype} where "
                f"the sweep has {empty.shape} of type {empty.dtype}. Remove it to start anew."
            )
        return Checkpoint(place, key, np.array(values), before)

    def keep(self) -> None:
        """Write the file if the last write is long enough ago."""
        if time.monotonic() - self._written >= EVERY:
            self.write()

    def write(self) -> None:
        """Write the file."""
        notes = {"sweep": self.key, "before": self.before}
        save_arrays(self.path, {"values": self.values}, metadata=notes)
        self._written = time.monotonic()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        if kind is None:
            self.path.unlink(missing_ok=True)
            return
        with contextlib.suppress(OutputError):
            self.write()


def notes_of(path: str | Path) -> dict[str, str]:
    """Return what a file of a stopped sweep says of it; nothing where there is no file.

    Raises:
        FormatError: If the file is no such file.
    """
    if not Path(path).exists():
        return {}
    try:
        return load_metadata(path)
    except FormatError as error:
        raise FormatError(
            f"{path} keeps no sweep that could go on ({error}). Name another file, or "
            "remove this one to start anew."
        ) from error
