"""A plan: what a sweep will run, what it costs, and then running it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from microtome.core.hashing import sha256_json
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.sweeps.cells import UNITS, Cell, Operation
from microtome.sweeps.certification import Certifier, simpler
from microtome.sweeps.checkpoint import Checkpoint, notes_of
from microtome.sweeps.cost import Cost
from microtome.sweeps.execution import base_values, rows_by_shape, run_wave
from microtome.sweeps.groups import Group, group_of
from microtome.sweeps.latents import Directions, codec_of_plan
from microtome.sweeps.results import Sweep
from microtome.sweeps.rows import Row, SweepMetric, combined
from microtome.sweeps.rules import Rule
from microtome.sweeps.schedule import Wave, waves
from microtome.tracing.attachments import fingerprints
from microtome.tracing.turns import turn

if TYPE_CHECKING:
    import xarray as xr

    from microtome.behaviors.examples import Examples
    from microtome.tracing.attachments import Attachment
    from microtome.tracing.model import Model


@dataclass(frozen=True, eq=False)
class Plan:
    """Many interventions with one metric value each, scheduled.

    Attributes:
        model: The model.
        examples: The examples.
        lines: What is run for them: a row for each continuation that is scored.
        site: The swept site.
        cells: The cells.
        axis: Name of the grid's last axis: ``pos``, ``role``, ``head``, ``neuron``, ``latent``
            or ``all``.
        columns: Coordinates along it.
        base: Which prompt is run and changed.
        operation: What is done.
        metric: What is measured.
        rules: Rules that are used.
        declined: Why the other rules are not used.
        tokens: Tokens of a wave at most.
        per_group: Rows that are recorded together at most.
        means: For ``mean``, the other run's mean at each layer over all examples and positions.
        seed: For the certificate's sample.
        certify: How many runs are repeated the naive way; one in a hundred, 3 to 32, if None.
        directions: What one unit of each swept latent adds where its codec writes.
    """

    model: Model
    examples: Examples
    lines: tuple[Row, ...]
    site: str
    cells: tuple[Cell, ...]
    axis: str
    columns: tuple[int | str, ...]
    base: Literal["clean", "corrupt"]
    operation: Operation
    metric: SweepMetric
    rules: tuple[Rule, ...]
    declined: Mapping[str, str]
    tokens: int
    per_group: int
    means: Mapping[int, torch.Tensor]
    seed: int = 0
    certify: int | None = None
    directions: Directions = field(default_factory=dict)

    def with_rules(self, rules: tuple[Rule, ...]) -> Plan:
        """Return the same sweep by other rules."""
        return replace(self, rules=rules)

    def cost(self) -> Cost:
        """Return what the sweep costs; the runs of one group are recorded and one pass is timed."""
        from microtome.sweeps.cost import cost_of

        return cost_of(self)

    def explain(self) -> str:
        """Return the plan in words."""
        cost = self.cost()
        lines = [
            f"{len(self.cells)} cells of {self.site} x {len(self.lines)} prompts = {cost.runs} "
            f"runs, {self.operation} into the {self.base} run, measured by {self.metric.name}",
            f"rules: {', '.join(self.rules) or 'none (one forward pass for each run)'}",
            *(f"not used: {rule}, because {why}" for rule, why in self.declined.items()),
            f"{cost.known} runs change nothing and are filled in; the rest is worth "
            f"{cost.forwards:.1f} forward passes instead of {cost.naive_forwards:.0f}; "
            f"{cost.flops / 1e9:.3g} GFLOP, {cost.memory_mb:.3g} MB, about {cost.seconds:.3g} s",
        ]
        return "\n".join(lines)

    def execute(self, progress: Progress = quiet, *, resume: str | Path | None = None) -> Sweep:
        """Run the sweep and certify it.

        Past tolerance the sweep is run again by simpler rules, and the certificate says so.

        Args:
            progress: Told after each wave.
            resume: File that keeps what is done, so that a sweep that was stopped goes on from
                there with the same result; it is removed at the end.

        Raises:
            FormatError: If the file belongs to another sweep.
            OutputError: If the file cannot be written.
        """
        chosen, history = self._start(resume)
        while True:
            began = time.perf_counter()
            certifier = Certifier(chosen)
            values = np.full((len(self.lines), len(self.cells)), np.nan)
            if resume is None:
                ends = chosen._run(progress, certifier, values, None)
            else:
                before = json.dumps(history)
                with Checkpoint.at(resume, chosen.key(), values, before) as saved:
                    values = saved.values
                    ends = chosen._run(progress, certifier, values, saved)
            certificate = certifier.certificate(values, time.perf_counter() - began)
            fewer = None if certificate["passed"] else simpler(chosen.rules)
            if fewer is None:
                break
            history.append({"rules": list(chosen.rules), "difference": certificate["difference"]})
            chosen = self.with_rules(fewer)
        if history:
            certificate["fell_back_from"] = history
        return self._result(values, ends, {**certificate, "declined": dict(self.declined)})

    def groups(self) -> Iterator[Group]:
        """Yield the rows of each length together with their recorded runs."""
        for places in rows_by_shape(self.lines, self.per_group):
            yield group_of(self, places)

    def waves(self, group: Group) -> Iterator[Wave]:
        """Yield the waves of a group."""
        yield from waves(self, group)

    def key(self) -> str:
        """Return a hash of everything that decides the result, for files to go on from."""
        return sha256_json(
            {
                "model": self.model.fingerprint,
                "cells": [(c.layer, c.unit, c.place) for c in self.cells],
                "rows": [(row.base, row.source, row.tokens, row.reads) for row in self.lines],
                "answers": [(row.example.answers, row.example.wrongs) for row in self.lines],
                "settings": [self.site, self.operation, self.metric.name, list(self.rules)],
                "sizes": [self.tokens, self.per_group],
                "codecs": fingerprints(self._codecs()),
            }
        )

    def _codecs(self) -> list[Attachment]:
        found = [codec_of_plan(self, layer) for layer in sorted({c.layer for c in self.cells})]
        return [one for one in found if one is not None]

    def _start(self, resume: str | Path | None) -> tuple[Plan, list[dict[str, Any]]]:
        """Return the rules to go on with, and what was tried before.

        They are this plan's, or the simpler ones that a stopped sweep had fallen back to.
        """
        notes = {} if resume is None else notes_of(resume)
        chosen: Plan = self
        while "sweep" in notes and notes["sweep"] != chosen.key():
            fewer = simpler(chosen.rules)
            if fewer is None:
                return self, []
            chosen = chosen.with_rules(fewer)
        return chosen, json.loads(notes.get("before", "[]"))

    def _run(
        self,
        progress: Progress,
        certifier: Certifier,
        values: np.ndarray,
        saved: Checkpoint | None,
    ) -> np.ndarray:
        """Fill in values ``[row, cell]``; return those of base and source runs ``[2, row]``."""
        ends = np.full((2, len(self.lines)), np.nan)
        module = self.model.module
        for places in rows_by_shape(self.lines, self.per_group):
            with turn(module):
                group = group_of(self, places)
            ends[:, places] = group.ends
            cells, rows = np.nonzero(~group.moved)
            values[np.array(places)[rows], cells] = group.ends[0][rows]
            for wave in waves(self, group):
                where = (np.array(places)[wave.rows], wave.cells)
                if np.isnan(values[where]).any():
                    # parts are called alone, which another thread's hooks must not see
                    with turn(module):
                        values[where] = run_wave(self, group, wave)
                runs = int((~np.isnan(values)).sum())
                progress.step(runs, values.size, f"sweep of {self.site}")
                if saved is not None:
                    saved.keep()
            certifier.check(group, values)
        return ends

    def _result(
        self, values: np.ndarray, ends: np.ndarray, certificate: Mapping[str, object]
    ) -> Sweep:
        for side in (0, 1):
            missing = np.flatnonzero(np.isnan(ends[side]))
            rows = [self.lines[p] for p in missing]
            ends[side, missing] = base_values(self, rows, source=side == 1)
        base, source = (combined(self.metric, self.lines, side) for side in ends)
        return Sweep(
            values=self._grid(combined(self.metric, self.lines, values)),
            base=base,
            source=source,
            clusters=tuple(self.examples.clusters.tolist()),
            site=self.site,
            operation=self.operation,
            metric=self.metric.name,
            certificate=certificate,
            provenance=collect(
                self.model,
                {
                    "site": self.site,
                    "operation": self.operation,
                    "base": self.base,
                    "codecs": fingerprints(self._codecs()),
                },
                seed=self.seed,
            ),
        )

    def _grid(self, values: np.ndarray) -> xr.DataArray:
        import xarray as xr

        layers = sorted({cell.layer for cell in self.cells})
        grid = np.full((len(self.examples), len(layers), len(self.columns)), np.nan)
        for number, cell in enumerate(self.cells):
            column = cell.unit if self.axis in UNITS else cell.place
            place = 0 if self.axis == "all" else self.columns.index(column)
            grid[:, layers.index(cell.layer), place] = values[:, number]
        coords = {
            "example": [e.index for e in self.examples],
            "layer": layers,
            self.axis: list(self.columns),
        }
        return xr.DataArray(
            grid, dims=("example", "layer", self.axis), coords=coords, name=self.metric.name
        )
