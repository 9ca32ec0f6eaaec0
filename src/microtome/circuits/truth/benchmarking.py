"""Scoring the finders: every method on every compiled program, against both truths."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.circuits.finding import FINDERS
from microtome.circuits.graph import ComponentGraph, nodes_on
from microtome.circuits.truth.compiling import Compiled, compile_program
from microtome.circuits.truth.known_edges import GroundTruth, Truth, ground_truth
from microtome.circuits.truth.patching import TRUTH_ABLATIONS
from microtome.circuits.truth.planting import planted_behavior
from microtome.circuits.truth.programs import PROGRAMS, program
from microtome.circuits.truth.realism import Copies, Realism
from microtome.circuits.truth.scoring import separation
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import Provenance, collect
from microtome.core.seeds import rng
from microtome.core.stats import Interval, cluster_bootstrap
from microtome.errors import ConfigError, UnknownNameError, nearest
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from microtome.behaviors.examples import Examples

RANDOM = "random"
"""The method that draws its scores."""

SHOWN = 10
"""Random draws that the random rows are means over."""

TRUTHS: tuple[Truth, ...] = ("functional", "structural")

REDUNDANT: tuple[tuple[str, Copies], ...] = (
    ("previous-token", "either"),
    ("previous-token", "vote"),
    ("previous-token", "backup"),
    ("induction", "vote"),
)
"""Programs that are also planted in several copies."""


@dataclass(frozen=True)
class Case:
    """One planted circuit of the benchmark.

    Attributes:
        program: Name of the program.
        copies: How it is made redundant, ``none`` for not at all.
        seed: For decoys, rotations and pairs.
    """

    program: str
    copies: Copies
    seed: int

    @property
    def name(self) -> str:
        """The program, with its copies."""
        return self.program if self.copies == "none" else f"{self.program}, {self.copies}"


@dataclass(frozen=True, eq=False)
class FinderBenchmark(Result):
    """Scores of every method on every program.

    Attributes:
        rows: One mapping for each program, method, ablation and truth, with the four scores, the
            numbers of true and of all parts, and the seconds that the method took.
        draws: Mean AUC over the programs of each random draw ``[draw]``, against the functional
            truth under the first ablation.
        n: Pairs that the finders saw.
        seconds: Of the whole benchmark, truths included.
        provenance: Seed, settings, versions.
    """

    rows: tuple[Mapping[str, Any], ...]
    draws: np.ndarray
    n: int
    seconds: float
    provenance: Provenance | None = None

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each program, method, ablation and truth."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def summary(
        self, *, truth: Truth = "functional", ablation: str = "resample", redundant: bool = False
    ) -> pd.DataFrame:
        """Return one row for each method: means over programs with 95 % bootstrap intervals.

        Args:
            truth: Which truth.
            ablation: Under which ablation.
            redundant: Whether of the programs with redundant copies, or of those without.
        """
        import pandas as pd

        chosen = self.to_frame()
        same = (chosen["truth"] == truth) & (chosen["ablation"] == ablation)
        chosen = chosen[same & ((chosen["copies"] != "none") == redundant)]
        found = []
        for (level, method), group in chosen.groupby(["level", "method"], sort=False):
            programs = group["program"].to_numpy().astype(str)
            found.append(
                {
                    "method": method,
                    "level": level,
                    "auc": _mean(group["auc"], programs),
                    "average_precision": _mean(group["average_precision"], programs),
                    "best_f1": _mean(group["best_f1"], programs),
                    "last_rank": float(group["last_rank"].mean()),
                    "true": float(group["true"].mean()),
                    "parts": float(group["parts"].mean()),
                    "programs": len(set(programs)),
                    "seconds": float(group["seconds"].sum()),
                }
            )
        return pd.DataFrame(found)

    def by_program(
        self,
        score: str = "average_precision",
        *,
        truth: Truth = "functional",
        ablation: str = "resample",
    ) -> pd.DataFrame:
        """Return one score with a row for each program, with its copies, and a column per method.

        Args:
            score: ``auc``, ``average_precision``, ``best_f1`` or ``last_rank``.
            truth: Which truth.
            ablation: Under which ablation.
        """
        chosen = self.to_frame()
        chosen = chosen[(chosen["truth"] == truth) & (chosen["ablation"] == ablation)]
        return chosen.pivot_table(index="case", columns="method", values=score, sort=False)


def _mean(values: Any, programs: np.ndarray) -> Interval:
    return cluster_bootstrap(np.asarray(values, dtype=float), programs)


def benchmark(
    *,
    programs: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    redundant: bool = True,
    n: int = 40,
    draws: int = 100,
    seeds: Sequence[int] = (0,),
    progress: Progress = quiet,
) -> FinderBenchmark:
    """Score the finders on compiled programs whose circuit is known.

    Every program is rotated and hidden among decoys. A method that ranks edges is compared with
    the true edges, one that ranks nodes with the heads and MLPs on them; both rank by magnitude.

    Args:
        programs: Names of programs; all by default.
        methods: Names of finders; by default all but those that are trained or restricted. Random
            scores are always added.
        redundant: Also plant some of the programs in several copies.
        n: Clean/corrupt pairs that the finders see; the truth is computed from other pairs.
        draws: Random draws.
        seeds: Seeds of decoys, rotations and pairs; every program is planted once for each.
        progress: Told after each program.

    Raises:
        UnknownNameError: If a program or method does not exist.
        ConfigError: If there is no draw or no seed.
    """
    if draws < 1 or not seeds:
        raise ConfigError(f"draws={draws}, seeds={tuple(seeds)}; expected at least one of each.")
    chosen = [program(name).name for name in (programs or PROGRAMS)]
    finders = list(methods or (name for name, finder in FINDERS.items() if finder.unasked))
    for method in finders:
        if method not in FINDERS:
            raise UnknownNameError(f"No method {method!r}{nearest(method, FINDERS)}.")
    began = time.perf_counter()
    cases = [Case(name, "none", seed) for seed in seeds for name in chosen]
    if redundant:
        cases += [Case(p, c, seed) for seed in seeds for p, c in REDUNDANT if p in chosen]
    rows: list[Mapping[str, Any]] = []
    random: list[np.ndarray] = []
    for number, case in enumerate(cases):
        compiled = compile_program(
            program(case.program), realism=Realism(copies=case.copies), seed=case.seed
        )
        truth = ground_truth(compiled, n=n, seed=case.seed)
        rows += _scored(case, compiled, truth, finders, n)
        drawn, values = _random(case, truth, draws)
        rows += drawn
        random.append(values)
        progress.step(number + 1, len(cases), "programs")
    return FinderBenchmark(
        rows=tuple(rows),
        draws=np.mean(random, axis=0),
        n=n,
        seconds=round(time.perf_counter() - began, 2),
        provenance=collect(None, {"programs": chosen, "methods": finders, "n": n}, seed=seeds[0]),
    )


def _scored(
    case: Case, compiled: Compiled, truth: GroundTruth, finders: Sequence[str], n: int
) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of all finders on one planted circuit."""
    # other pairs than those that the truth was computed from
    behavior = planted_behavior(compiled, n=n, seed=case.seed + 1)
    examples = behavior.prepare(compiled.model)
    graph = ComponentGraph.of(compiled.model)
    for method in finders:
        for ablation in TRUTH_ABLATIONS:
            began = time.perf_counter()
            names, strength = _strength(compiled, examples, method, ablation)
            seconds = round(time.perf_counter() - began, 3)
            level = FINDERS[method].level
            for kind in TRUTHS:
                edges = truth.edges(kind, ablation)
                true = edges if level == "edge" else nodes_on(edges, graph)
                yield {
                    **_labels(case, method, level, ablation, kind),
                    **asdict(separation(names, strength, true)),
                    "seconds": seconds,
                }


def _strength(
    compiled: Compiled, examples: Examples, method: str, ablation: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return names and magnitudes of what a finder scores."""
    finder = FINDERS[method]
    takes = inspect.signature(finder.run).parameters
    options = {"ablation": ablation} if "ablation" in takes else {}
    found: Any = finder.run(compiled.model, examples, **options)
    names = found.universe if finder.level == "edge" else found.names
    return names, np.abs(found.mean)


def _random(
    case: Case, truth: GroundTruth, draws: int
) -> tuple[list[Mapping[str, Any]], np.ndarray]:
    """Return the mean scores of random rankings of the edges, and the AUC of each draw.

    The AUCs are for the functional truth under the first ablation; the mean scores are over the
    first few draws.
    """
    from sklearn.metrics import roc_auc_score

    random = rng(case.seed, "random scores", case.name)
    scores = random.random((draws, len(truth.universe)))
    chosen = set(truth.functional(TRUTH_ABLATIONS[0]))
    labels = [edge in chosen for edge in truth.universe]
    areas = np.array([roc_auc_score(labels, row) for row in scores])
    rows: list[Mapping[str, Any]] = []
    for ablation in TRUTH_ABLATIONS:
        for kind in TRUTHS:
            true = truth.edges(kind, ablation)
            found = [asdict(separation(truth.universe, row, true)) for row in scores[:SHOWN]]
            means = {key: float(np.mean([f[key] for f in found])) for key in found[0]}
            rows.append({**_labels(case, RANDOM, "edge", ablation, kind), **means, "seconds": 0.0})
    return rows, areas


def _labels(case: Case, method: str, level: str, ablation: str, truth: str) -> dict[str, Any]:
    return {
        "case": case.name,
        "program": case.program,
        "copies": case.copies,
        "seed": case.seed,
        "method": method,
        "level": level,
        "ablation": ablation,
        "truth": truth,
    }
