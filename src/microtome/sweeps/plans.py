"""A plan: what a sweep will run, what it costs, and then running it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from microtome.behaviors.metrics import LastTokenMetric
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.sweeps.cells import Cell, Operation
from microtome.sweeps.certification import certify
from microtome.sweeps.execution import Group, base_values, group_of, run_cells
from microtome.sweeps.results import Sweep

if TYPE_CHECKING:
    import xarray as xr

    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model

Rule = Literal["batch", "restart"]


@dataclass(frozen=True)
class Cost:
    """What a sweep costs.

    Attributes:
        runs: Patched runs, cells times examples.
        forwards: Whole forward passes of one example that this is worth.
        naive_forwards: What one forward pass for each run would be.
        flops: Floating-point operations, from the parameter counts.
        memory_mb: Activations of the largest batch.
        seconds: Expected time, from one timed pass.
    """

    runs: int
    forwards: float
    naive_forwards: float
    flops: float
    memory_mb: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Plan:
    """Many interventions with one metric value each, scheduled.

    Attributes:
        model: The model.
        examples: The examples.
        site: The swept site.
        cells: The cells.
        axis: Name of the grid's last axis: ``pos``, ``role``, ``head``, ``neuron`` or ``all``.
        columns: Coordinates along it.
        base: Which prompt is run and changed.
        operation: What is done.
        metric: What is measured.
        rules: Rules that are used.
        declined: Why the other rules are not used.
        rows: Rows of a forward pass at most.
        means: For ``mean``, the other run's mean at each layer over all examples and positions.
        seed: For the certificate's sample.
    """

    model: Model
    examples: Examples
    site: str
    cells: tuple[Cell, ...]
    axis: str
    columns: tuple[int | str, ...]
    base: Literal["clean", "corrupt"]
    operation: Operation
    metric: LastTokenMetric
    rules: tuple[Rule, ...]
    declined: Mapping[str, str]
    rows: int
    means: Mapping[int, torch.Tensor]
    seed: int = 0

    def cost(self) -> Cost:
        """Return what the sweep costs; one base pass is timed."""
        from microtome.sweeps.cost import cost_of

        return cost_of(self)

    def explain(self) -> str:
        """Return the plan in words."""
        cost = self.cost()
        lines = [
            f"{len(self.cells)} cells of {self.site} x {len(self.examples)} examples = {cost.runs} "
            f"runs, {self.operation} into the {self.base} run, measured by {self.metric.name}",
            f"rules: {', '.join(self.rules) or 'none (one forward pass for each run)'}",
            *(f"not used: {rule}, because {why}" for rule, why in self.declined.items()),
            f"worth {cost.forwards:.1f} forward passes instead of {cost.naive_forwards:.0f}; "
            f"{cost.flops / 1e9:.3g} GFLOP, {cost.memory_mb:.3g} MB, about {cost.seconds:.3g} s",
        ]
        return "\n".join(lines)

    def execute(self, progress: Progress = quiet) -> Sweep:
        """Run the sweep and certify it.

        Past tolerance the sweep is run again by the next simpler rule, and the certificate says so.

        Args:
            progress: Told after each batch.
        """
        values = self._run(self.rules, progress)
        certificate = certify(self, values, self.rules)
        if not certificate["passed"] and self.rules:
            simpler: tuple[Rule, ...] = ("batch",) if "restart" in self.rules else ()
            values = self._run(simpler, progress)
            again = certify(self, values, simpler)
            certificate = {
                **again,
                "fell_back_from": list(self.rules),
                "difference_before": certificate["difference"],
            }
        return self._result(values, {**certificate, "declined": dict(self.declined)})

    def groups(self) -> Iterator[Group]:
        """Yield the examples of each length together with their recorded runs."""
        by_length: dict[int, list[int]] = {}
        for place, example in enumerate(self.examples):
            by_length.setdefault(len(example.clean), []).append(place)
        for places in by_length.values():
            size = max(1, self.rows)
            for start in range(0, len(places), size):
                yield group_of(self, places[start : start + size])

    def _run(self, rules: tuple[Rule, ...], progress: Progress) -> np.ndarray:
        """Return the values ``[example, cell]``."""
        values = np.full((len(self.examples), len(self.cells)), np.nan)
        done, total = 0, len(self.cells) * len(self.examples)
        for group in self.groups():
            for cells in self._batches(group, rules):
                found = run_cells(self, group, [self.cells[c] for c in cells], rules)
                for number, cell in enumerate(cells):
                    values[group.places, cell] = found[number]
                done += len(cells) * len(group.places)
                progress.step(done, total, f"sweep of {self.site}")
        return values

    def _batches(self, group: Group, rules: tuple[Rule, ...]) -> Iterator[list[int]]:
        """Yield cells that share a forward pass: of one entry layer, as many as fit."""
        fits = max(1, self.rows // len(group.places)) if rules else 1
        by_start: dict[int, list[int]] = {}
        for number, cell in enumerate(self.cells):
            by_start.setdefault(cell.start(self.site), []).append(number)
        for cells in by_start.values():
            for start in range(0, len(cells), fits):
                yield cells[start : start + fits]

    def _result(self, values: np.ndarray, certificate: Mapping[str, object]) -> Sweep:
        base, source = base_values(self)
        return Sweep(
            values=self._grid(values),
            base=base,
            source=source,
            clusters=tuple(self.examples.clusters.tolist()),
            site=self.site,
            operation=self.operation,
            metric=self.metric.name,
            certificate=certificate,
            provenance=collect(
                self.model,
                {"site": self.site, "operation": self.operation, "base": self.base},
                seed=self.seed,
            ),
        )

    def _grid(self, values: np.ndarray) -> xr.DataArray:
        import xarray as xr

        layers = sorted({cell.layer for cell in self.cells})
        grid = np.full((len(self.examples), len(layers), len(self.columns)), np.nan)
        for number, cell in enumerate(self.cells):
            column = cell.unit if self.axis in ("head", "neuron") else cell.place
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


def dtype_tolerance(dtype: torch.dtype) -> float:
    """Return the share of the metric's range that rounding may move in a dtype."""
    return 1e-5 if dtype in (torch.float32, torch.float64) else 0.0
