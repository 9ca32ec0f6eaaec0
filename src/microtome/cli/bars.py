"""Progress with the time left, on standard error, silent where that is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bars:
    """Shows how far each piece of work is; used as a context manager."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def named(self, names: Mapping[str, str]) -> Renamed:
        """Return a progress that shows here under other names, label to name."""
        return Renamed(self, names)

    def step(self, done: int, total: int, label: str) -> None:
        """Show that ``done`` of ``total`` units of the work called ``label`` are finished."""
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=total)
        self._progress.update(self._tasks[label], completed=done, total=total)


@dataclass(frozen=True)
class Renamed:
    """A progress whose labels are shown under other names, so that two works do not share a bar.

    Attributes:
        bars: Where it is shown.
        names: Label to name.
    """

    bars: Bars
    names: Mapping[str, str]

    def step(self, done: int, total: int, label: str) -> None:
        """Show how far the work of a label is."""
        self.bars.step(done, total, self.names.get(label, label))
