"""Ground truth: programs compiled into models whose circuit is known, and finders scored by it."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_NAMES = {
    "Compiled": "microtome.circuits.truth.compiling:Compiled",
    "FinderBenchmark": "microtome.circuits.truth.benchmarking:FinderBenchmark",
    "GroundTruth": "microtome.circuits.truth.known_edges:GroundTruth",
    "PROGRAMS": "microtome.circuits.truth.programs:PROGRAMS",
    "Planted": "microtome.circuits.truth.planting:Planted",
    "Program": "microtome.circuits.truth.programs:Program",
    "Realism": "microtome.circuits.truth.realism:Realism",
    "benchmark": "microtome.circuits.truth.benchmarking:benchmark",
    "compile_program": "microtome.circuits.truth.compiling:compile_program",
    "ground_truth": "microtome.circuits.truth.known_edges:ground_truth",
    "plant": "microtome.circuits.truth.planting:plant",
    "planted_behavior": "microtome.circuits.truth.planting:planted_behavior",
    "program": "microtome.circuits.truth.programs:program",
    "separation": "microtome.circuits.truth.scoring:separation",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
