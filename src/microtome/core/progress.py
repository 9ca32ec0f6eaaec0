"""How long work tells its caller how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Anything that can be told how far a piece of work is."""

    def step(self, done: int, total: int, label: str) -> None:
        """Take note that ``done`` of ``total`` units of the work called ``label`` are finished."""


class Quiet:
    """A progress that shows nothing."""

    def step(self, done: int, total: int, label: str) -> None:
        """Ignore the report."""


quiet: Progress = Quiet()
