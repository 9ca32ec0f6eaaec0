"""What is done of a long sweep, kept in a file so that it can go on after a stop."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from microtome.errors import FormatError
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
    """

    path: Path
    key: str
    values: np.ndarray
    _written: float = field(default_factory=time.monotonic)

    @staticmethod
    def at(path: str | Path, key: str, empty: np.ndarray) -> Checkpoint:
        """Return the checkpoint of a file, or a new one where there is none.

        Raises:
            FormatError: If the file is no checkpoint, or that of another sweep.
        """
        place = Path(path)
        if not place.exists():
            return Checkpoint(place, key, empty)
        arrays = load_arrays(place)
        if load_metadata(place).get("sweep") != key or "values" not in arrays:
            raise FormatError(
                f"{place} keeps another sweep (other model, prompts, cells or rules). Remove it or "
                "name another file."
            )
        return Checkpoint(place, key, np.array(arrays["values"]))

    def keep(self) -> None:
        """Write the file if the last write is long enough ago."""
        if time.monotonic() - self._written >= EVERY:
            save_arrays(self.path, {"values": self.values}, metadata={"sweep": self.key})
            self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the file: the sweep is done."""
        self.path.unlink(missing_ok=True)
