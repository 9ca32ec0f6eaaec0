"""Running a model with only some edges intact, many circuits of edges in one forward pass.

An excluded edge carries what its source would write ablated: in the corrupt run (``resample``), on
average over the train prompts of both kinds (``mean``), or nothing (``zero``). So every target
reads the stream minus, for each excluded source, what that source writes now beyond what it would
write ablated. The embedding is a source like the others: its edges carry the corrupt prompt's
embedding, the mean first stream, or nothing. With no edge kept, ``resample`` gives the corrupt
run's value. An edge that is told apart by place is cut at the positions of that place only. Under
``mean`` and ``zero`` even the embedding is gone then, unlike with circuits of nodes, which never
ablate it; biases of output projections belong to no source and stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.behaviors.evaluate import batches
from microtome.circuits.edges.edge_pass import EdgePass
from microtome.circuits.edges.placed_pass import PlacedPass
from microtome.circuits.edges.port_gradients import batch_size
from microtome.circuits.edges.reading import Reading
from microtome.circuits.edges.writing import differences, write_sites
from microtome.circuits.graph import LOGITS
from microtome.circuits.places import Places, edge_level
from microtome.circuits.references import ROWS, Ablation
from microtome.circuits.running import CircuitRunner, Group

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.circuits.places import Split
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model

BUDGET = 384 * 2**20
"""Bytes that the circuits of one pass may take for what targets read and sources write."""

COPIES = 6
"""Copies of the stream that a row takes anyway."""


class EdgeAblator(CircuitRunner[np.ndarray]):
    """Runs circuits of edges of one model on one set of examples under one ablation.

    A circuit in the form it is run in is the array of the numbers of its excluded edges.

    Args:
        model: A transformer whose parts write to one residual stream.
        examples: The examples whose clean prompts are run.
        ablation: What excluded edges carry.
        reference: Examples over whose clean and corrupt prompts means are taken; ``examples`` by
            default.
        split: Tell edges apart by ``role`` or ``position``: a part is an edge at one of them.

    Attributes:
        graph: The component graph; ``universe`` is its edges.
        level: ``edge``, ``role-edge`` or ``position-edge``.

    Raises:
        ConfigError: If the ablation or the split is unknown, or there are more edges than can be
            held.
        PairError: If the prompts do not share their roles, or their length.
        ModelSupportError: If edges are not defined in this model.
    """

    def __init__(
        self,
        model: Model,
        examples: Examples,
        *,
        ablation: Ablation = "resample",
        reference: Examples | None = None,
        split: Split | None = None,
    ) -> None:
        self._reading = Reading.of(model)
        self.level = edge_level(split)
        self._places = None if split is None else Places.of(examples, split)
        plain = self._reading.graph
        self.graph = plain if self._places is None else self._places.graph(model)
        # the target that is told apart, by number in the plain graph; the logits come last
        self._plain = np.arange(len(self.graph.targets)) // max(1, len(self.graph.places))
        blocks = [_block(v, len(self._stages)) for v in plain.targets]
        self._blocks = np.array(blocks)[self._plain]
        super().__init__(
            model,
            examples,
            universe=self.graph.edges,
            sites=write_sites(self._reading),
            ablation=ablation,
            reference=reference,
        )

    def run_without(
        self, excluded: Sequence[np.ndarray], metrics: Sequence[str] = ("logit_difference",)
    ) -> dict[str, np.ndarray]:
        """Return metrics of circuits that are given by what they leave out.

        Args:
            excluded: For each circuit the numbers of its excluded edges in ``universe``.
            metrics: Names of metrics that read the prompt's end.

        Returns:
            For each metric ``[circuit, example]``.
        """
        return self.run_cuts([np.asarray(e, dtype=int) for e in excluded], metrics)

    @property
    def _stages(self) -> Sequence[object]:
        return self._reading.stages

    def _cut(self, circuit: frozenset[str]) -> np.ndarray:
        missing = np.ones(self.graph.n_edges, dtype=bool)
        missing[self.graph.numbers(circuit)] = False
        return np.flatnonzero(missing)

    def _first_block(self, cuts: Sequence[np.ndarray]) -> int:
        last = len(self._stages) - 1
        firsts = [self._blocks[self.graph.pairs[cut, 1]].min() for cut in cuts if len(cut)]
        # the logits read what the last block returns, so that one always runs
        return min(last, int(min(firsts, default=last)))

    def _changes(self, group: Group, cuts: Sequence[np.ndarray], start: int) -> list[Intervention]:
        excluded = torch.zeros(len(cuts), *self.graph.possible.shape, dtype=torch.bool)
        for number, cut in enumerate(cuts):
            excluded[number, self.graph.pairs[cut, 0], self.graph.pairs[cut, 1]] = True
        if not bool(excluded.any()):
            return []
        table = self._written_before(group, start)
        zero = self.ablation == "zero"
        if self._places is None:
            run = EdgePass(self._reading, excluded, table, group.instead, start, zero=zero)
            return run.interventions()
        names, width = self._places.names, table.shape[2]
        each = excluded[:, :, :-1].unflatten(2, (-1, len(names)))
        logits = excluded[:, :, -1:, None].expand(-1, -1, -1, len(names))
        placed = PlacedPass(
            self._reading, torch.cat([each, logits], 2),
            self._places.numbers(group.examples, width, first=group.first),
            table, group.instead, start, zero=zero,
        )  # fmt: skip
        return placed.interventions()

    def _written_before(self, group: Group, start: int) -> torch.Tensor:
        """Return the differences that are the same in every circuit ``[source, b, pos, d]``."""
        if group.base is None:
            site = self._reading.stages[0].stream
            trace = self.model.trace(group.examples.clean, capture=site, logits=None)
            now = {site: trace.value(site)}
        else:
            now = {s: v[:, group.first :] for s, v in group.base.captured.items()}
        return differences(self._reading, now, group.instead, stop=start).transpose(0, 1)

    def _recorded(self) -> list[str]:
        return self.sites

    def _batches(self) -> Iterator[list[int]]:
        size = min(ROWS, batch_size(self._reading, self.examples))
        return batches(self.examples, size, model=self.model)

    def _chunks(
        self, group: Group, cuts: Sequence[np.ndarray], order: Sequence[int]
    ) -> Iterator[list[int]]:
        count = len(group.places)
        longest = max(len(e.clean) for e in group.examples) - group.first
        most = BUDGET // (4 * count * longest * self._reading.anatomy.d_model)
        some: list[int] = []
        heaviest = 0
        for number in order:
            heavy = max(heaviest, self._weight(cuts[number]))
            if some and ((len(some) + 1) * heavy > most or (len(some) + 1) * count > ROWS):
                yield some
                some, heavy = [], self._weight(cuts[number])
            some.append(number)
            heaviest = heavy
        if some:
            yield some

    def _weight(self, cut: np.ndarray) -> int:
        """Return how many copies of the stream a circuit takes at most."""
        if len(cut) == 0:
            return COPIES
        pairs = self.graph.pairs[cut]
        first = self._blocks[pairs[:, 1]].min()
        written = self._written(int(first))
        late = len(np.unique(pairs[pairs[:, 0] >= written, 0]))
        if self.ablation == "zero" and not pairs[:, 0].all():
            # without the embedding a target may be starved, and all that it keeps is added up
            late = len(self.graph.sources) - written
        reads = np.unique(self._plain[pairs[:, 1]], return_index=True)[1]
        widest = int(np.bincount(self._blocks[pairs[reads, 1]]).max())
        if self._places is not None:
            # what a target reads takes a weight for each source at each position besides
            late = len(self.graph.sources) - written if self.ablation == "zero" else late
            widest += widest * len(self.graph.sources) // self._reading.anatomy.d_model + 1
        return COPIES + late + widest

    def _written(self, block: int) -> int:
        """Return how many sources are written before a block."""
        stages = self._reading.stages
        return stages[min(block, len(stages) - 1)].seen


def _block(target: str, last: int) -> int:
    """Return the block of a target of the plain graph, ``last`` for the logits."""
    return last if target == LOGITS else int(target.split(".")[0][1:])
