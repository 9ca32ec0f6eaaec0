"""Learned masks: which edges to keep, trained to change the model's output as little as possible.

Every edge has a random gate whose distribution is learned; the weights are not. A Lagrangian brings
the expected number of edges to a target in one run, the target sinking from all edges during the
first part of it, so that the score (the probability that the edge is kept) ranks all edges. Edge
pruning is that of Bhaskar et al. (2024, arXiv 2406.16778) on hard-concrete gates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.behaviors.evaluate import batches
from microtome.circuits.edges.ablation import EdgeAblator
from microtome.circuits.edges.port_gradients import batch_size
from microtome.circuits.edges.reading import Reading
from microtome.circuits.edges.writing import write_sites
from microtome.circuits.references import References
from microtome.circuits.search.gates import Gates, HardConcrete, UniformSampling
from microtome.circuits.search.masked_pass import MaskedPass
from microtome.circuits.search.objectives import DIVERGENCE, objective
from microtome.circuits.search.set_scores import set_scores
from microtome.core.progress import Progress, quiet
from microtome.core.seeds import rng, torch_generator
from microtome.errors import ConfigError, MetricError
from microtome.tracing.gradients import frozen
from microtome.tracing.turns import turn

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.behaviors.metrics import LastTokenMetric, Metric
    from microtome.circuits.edges.scores import EdgeScores
    from microtome.circuits.references import Ablation
    from microtome.tracing.model import Model

ROWS = 32
"""Examples of a step at most."""

SINKING = 0.6
"""Share of the steps during which the target sinks from all edges to its final value."""

START = 2.0
"""Logit that the gates start from: most edges are kept."""

PRESSURE = 0.5
"""Learning rate of the Lagrange multipliers."""

MEANING = "Probability that a learned mask keeps the edge: about {edges} edges, trained for {goal}."


def edge_pruning(
    model: Model,
    examples: Examples,
    *,
    edges: int | None = None,
    metric: str | Metric = DIVERGENCE,
    ablation: Ablation = "resample",
    reference: Examples | None = None,
    steps: int = 200,
    rate: float = 0.2,
    seed: int = 0,
    progress: Progress = quiet,
) -> EdgeScores:
    """Score every edge by the probability that a learned hard-concrete mask keeps it.

    Args:
        model: A transformer whose parts write to one residual stream.
        examples: What the mask is trained on.
        edges: Edges that the mask is to keep; a tenth of all by default.
        metric: ``kl_to_unchanged`` is kept small; any other metric near its unchanged value.
        ablation: What an edge carries as far as it is not kept.
        reference: Examples over which means are taken.
        steps: Steps of Adam.
        rate: Its learning rate.
        seed: For the gates and the order of the examples.
        progress: Told after each step. An interruption leaves the model as it was.

    Raises:
        ConfigError: If a number is out of range.
    """
    options = _Options(edges, steps, rate, seed, "edge-pruning")
    return _learned(model, examples, HardConcrete, options, metric, ablation, reference, progress)


def uniform_gradients(
    model: Model,
    examples: Examples,
    *,
    edges: int | None = None,
    metric: str | Metric = DIVERGENCE,
    ablation: Ablation = "resample",
    reference: Examples | None = None,
    steps: int = 200,
    rate: float = 0.2,
    seed: int = 0,
    progress: Progress = quiet,
) -> EdgeScores:
    """Score every edge by the keep probability that uniform gradient sampling learns.

    Ablated edges carry what ``ablation`` says; the ablation values themselves are not learned.

    Args:
        model: A transformer whose parts write to one residual stream.
        examples: What the mask is trained on.
        edges: Edges that the mask is to keep; a tenth of all by default.
        metric: ``kl_to_unchanged`` is kept small; any other metric near its unchanged value.
        ablation: What an edge carries as far as it is not kept.
        reference: Examples over which means are taken.
        steps: Steps of Adam.
        rate: Its learning rate.
        seed: For the gates and the order of the examples.
        progress: Told after each step. An interruption leaves the model as it was.

    Raises:
        ConfigError: If a number is out of range.
    """
    options = _Options(edges, steps, rate, seed, "ugs")
    return _learned(
        model, examples, UniformSampling, options, metric, ablation, reference, progress
    )


@dataclass(frozen=True)
class _Options:
    edges: int | None
    steps: int
    rate: float
    seed: int
    name: str

    def target(self, count: int) -> int:
        """Return the number of edges to keep, checked with the rest."""
        wanted = max(1, round(count / 10)) if self.edges is None else self.edges
        if not 0 < wanted < count:
            raise ConfigError(f"edges={wanted}; expected 1 to {count - 1}.")
        if self.steps < 1 or not 0 < self.rate < float("inf"):
            raise ConfigError(f"steps={self.steps}, rate={self.rate}; expected positive numbers.")
        return wanted


def _learned(
    model: Model,
    examples: Examples,
    kind: type[Gates],
    options: _Options,
    metric: str | Metric,
    ablation: Ablation,
    reference: Examples | None,
    progress: Progress,
) -> EdgeScores:
    reading = Reading.of(model)
    count = reading.graph.n_edges
    target = options.target(count)
    chosen = objective(model, examples, metric, "A learned mask")
    ablator = EdgeAblator(model, examples, ablation=ablation, reference=reference)
    whole, empty = ablator.run_cuts([np.arange(0), np.arange(count)], [chosen])[chosen.name]
    references = References(
        model, examples, write_sites(reading), ablation=ablation, reference=reference
    )
    gates = kind(count, START, model.device)
    training = _Training(reading, references, examples, chosen, whole, empty, gates, options.seed)
    training.run(target / count, options, progress)
    kept = gates.kept().detach().double().cpu().numpy()
    goal = f"a small {chosen.name}" if chosen.name == DIVERGENCE else f"an unchanged {chosen.name}"
    return set_scores(
        model,
        reading.graph,
        kept,
        n=len(examples),
        method=f"{options.name}, {target} edges, {options.steps} steps",
        metric=chosen.name,
        ablation=ablation,
        meaning=MEANING.format(edges=target, goal=goal),
        seed=options.seed,
        config={"edges": target, "steps": options.steps, "rate": options.rate},
        passes={"forward": 2 * options.steps, "backward": options.steps},
    )


@dataclass(eq=False)
class _Training:
    reading: Reading
    references: References
    examples: Examples
    metric: LastTokenMetric
    whole: np.ndarray
    empty: np.ndarray
    gates: Gates
    seed: int

    def run(self, share: float, options: _Options, progress: Progress) -> None:
        """Train the gates towards keeping a share of the edges."""
        device = self.gates.logits.device
        pressure = torch.zeros(2, device=device, requires_grad=True)
        learner = torch.optim.Adam([self.gates.logits], lr=options.rate)
        multipliers = torch.optim.Adam([pressure], lr=PRESSURE, maximize=True)
        generator = torch_generator(self.seed, options.name)
        places = self._places()
        for step in range(options.steps):
            sunk = min(1.0, (step + 1) / (SINKING * options.steps))
            over = self.gates.kept().mean() - (1.0 + sunk * (share - 1.0))
            loss = self._loss(next(places), generator)
            loss = loss + pressure[0] * over + pressure[1] * over**2
            learner.zero_grad()
            multipliers.zero_grad()
            # only masks and multipliers are leaves: the weights are frozen in the pass
            loss.backward()
            learner.step()
            multipliers.step()
            progress.step(step + 1, options.steps, options.name)

    def _places(self) -> Iterator[list[int]]:
        """Yield the examples of each step, all of them in turn, in a new order each time."""
        size = min(ROWS, batch_size(self.reading, self.examples))
        every = list(batches(self.examples, size, model=self.reading.model))
        random = rng(self.seed, "order of batches")
        while True:
            for number in random.permutation(len(every)):
                yield every[number]

    def _loss(self, places: list[int], generator: torch.Generator) -> torch.Tensor:
        """Return the mean loss of some examples; 1 is that of the empty circuit."""
        model, graph = self.reading.model, self.reading.graph
        chunk = self.examples.take(places)
        instead = self.references.of(chunk)
        gates = self.gates.drawn(len(chunk), generator)
        missing = gates.new_zeros(len(chunk), *graph.possible.shape)
        rows, columns = (torch.as_tensor(c.copy(), device=gates.device) for c in graph.pairs.T)
        missing[:, rows, columns] = 1.0 - gates
        changes = MaskedPass(self.reading, missing, instead).interventions()
        with turn(model.module), frozen(model.module), torch.enable_grad():
            trace = model.trace(chunk.clean, interventions=changes, logits="last", grad=True)
            if trace.logits is None:
                raise MetricError("The model returned no logits.")
            found = self.metric(trace.logits, trace.lengths, chunk)
            return self._distance(found, places)

    def _distance(self, found: torch.Tensor, places: list[int]) -> torch.Tensor:
        """Return how far a metric is from its unchanged value, where the empty circuit is 1."""
        if self.metric.name == DIVERGENCE:
            return found.mean() / max(float(self.empty.mean()), 1e-12)
        wanted = torch.as_tensor(self.whole[places], device=found.device, dtype=found.dtype)
        off = float(((self.empty - self.whole) ** 2).mean())
        return ((found - wanted) ** 2).mean() / max(off, 1e-12)
