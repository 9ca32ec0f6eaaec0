"""The metrics of a training run: summed in double precision, written as one row of JSON a line."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microtome.errors import OutputError
from microtome.sae.unexplained import Unexplained
from microtome.store.atomic import write_text


@dataclass
class Tally(Unexplained):
    """Sums over the batches since the last row of metrics, about the data's known mean.

    Attributes:
        active: Active latents.
        losses: Parts of the loss times rows.
        largest_gradient: Norm of the largest gradient.
    """

    active: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    largest_gradient: float = 0.0

    def add_losses(self, parts: dict[str, Tensor], rows: int, gradient: float) -> None:
        """Add the parts of a batch's loss, and the norm of its gradient."""
        for name, value in parts.items():
            self.losses[name] = self.losses.get(name, 0.0) + float(value) * rows
        self.largest_gradient = max(self.largest_gradient, gradient)

    def add_active(self, values: Tensor) -> None:
        """Add the activations of a batch, in any form."""
        self.active += float(torch.count_nonzero(values))

    @property
    def l0(self) -> float:
        """Active latents of a row."""
        return self.active / self.rows if self.rows else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return the sums, for a checkpoint."""
        return asdict(self)


class MetricsFile:
    """Rows of metrics on disk; without a folder, in memory alone.

    Args:
        folder: Where ``metrics.jsonl`` lies.
        steps: Rows of later steps, written by a run that was killed, are dropped.

    Raises:
        OutputError: The file cannot be written, then or later.
    """

    def __init__(self, folder: Path | None, steps: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self._path = None if folder is None else folder / "metrics.jsonl"
        if self._path is None:
            return
        if self._path.is_file():
            self.rows = _read(self._path, steps)
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_text(self._path, text)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row; numbers that are not finite become null."""
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        self.rows.append(clean)
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clean) + "\n")
        except OSError as error:
            raise OutputError(
                f"cannot write {self._path}: {error.strerror}; make room or restore the folder, "
                "and go on with the same call"
            ) from error


def _read(path: Path, steps: int) -> list[dict[str, Any]]:
    """Return the rows of a file up to a step, one for each, in order.

    The last may have been cut off by a kill; two processes in one folder each write theirs.
    """
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        if row["step"] <= steps:
            found[row["step"]] = row
    return [found[step] for step in sorted(found)]
