"""Cases that are counted: done once, kept in a file, and turned into a rate with its interval."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""What one case gave, as plain values."""


@dataclass
class Ledger:
    """Rows by case: those that an earlier run left in a file, and those of this run.

    Attributes:
        file: Where rows are appended, one JSON object a line; None keeps them in memory.
        minutes: CPU minutes after which no further case is begun.
        rows: Rows by case.
        left: Cases that were not begun.
    """

    file: Path | None = None
    minutes: float = float("inf")
    rows: dict[str, Row] = field(default_factory=dict)
    left: int = 0

    def __post_init__(self) -> None:
        self._began = time.process_time()
        if self.file is not None and self.file.is_file():
            for line in self.file.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the line that a killed run was writing
                self.rows[row["case"]] = row

    def run(self, cases: Iterable[tuple[str, Callable[[], Row]]]) -> list[Row]:
        """Return the rows of some cases; those that are not known yet are run."""
        found = []
        for name, make in cases:
            if name not in self.rows:
                began = time.process_time()
                if (began - self._began) / 60 > self.minutes:
                    self.left += 1
                    continue
                row = {"case": name, **make()}
                row["cpu_s"] = round(time.process_time() - began, 3)
                self._keep(row)
            found.append(self.rows[name])
        return found

    def _keep(self, row: Row) -> None:
        self.rows[row["case"]] = row
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def rate(count: int, of: int) -> str:
    """Return a share with its exact interval (Clopper and Pearson 1934), 95 %."""
    from scipy.stats import binomtest

    if not of:
        return "none run"
    interval = binomtest(count, of).proportion_ci(0.95, "exact")
    return f"{count}/{of} = {count / of:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def line(label: str, text: str, seconds: float) -> str:
    """Return one line of the table."""
    return f"   {label:52s}{text:38s}{seconds:7.2f}"


def mean_seconds(rows: Iterable[Row]) -> float:
    """Return the mean CPU seconds of some rows."""
    spent = [float(row["cpu_s"]) for row in rows]
    return sum(spent) / len(spent) if spent else float("nan")
