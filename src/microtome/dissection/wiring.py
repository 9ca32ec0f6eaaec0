"""Step 5, wire: the circuit of edges, and on request its judgment by the same rules as of nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from microtome.circuits.ablation import ABLATIONS
from microtome.circuits.edges.scores import EdgeScores
from microtome.circuits.finding import find
from microtome.circuits.judging.case import Case
from microtome.circuits.judging.judgment import Judgment
from microtome.circuits.judging.protocol import judge
from microtome.circuits.results import Circuit, Evaluation
from microtome.core.progress import Progress
from microtome.store.results import Result

if TYPE_CHECKING:
    from microtome.behaviors.behavior import Behavior
    from microtome.behaviors.examples import Examples
    from microtome.dissection.config import Config
    from microtome.tracing.model import Model

FINDER = "eap-ig"
"""How edges are ranked: attribution integrated over the inputs."""

ORDERS = 3
"""Orders of elimination, where the edges are judged."""


@dataclass(frozen=True, eq=False)
class Wiring(Result):
    """Which edges between the parts carry the behavior.

    Attributes:
        scores: Scores of all edges on train.
        circuit: The smallest circuit of edges that is faithful on validation.
        kinds: The circuit on test under each kind of ablation.
        ablation: The kind that it was cut under.
        judgment: The whole protocol with nulls and verdict; None where it was not asked for.
    """

    scores: EdgeScores
    circuit: Circuit
    kinds: Mapping[str, Evaluation]
    ablation: str
    judgment: Judgment | None = None

    @property
    def evaluation(self) -> Evaluation:
        """The circuit on test under the ablation that it was cut under."""
        return self.kinds[self.ablation]

    @property
    def sentence(self) -> str:
        """The outcome in one or two sentences."""
        if self.judgment is not None and self.judgment.verdict is not None:
            return self.judgment.verdict.sentence
        found = self.evaluation
        return (
            f"{len(self.circuit.parts)} of {len(self.circuit.universe)} edges keep "
            f"{found.faithfulness} of the effect under {self.ablation} ablation on unseen "
            "templates. They were not held against nulls: no verdict."
        )


def wire(
    model: Model,
    behavior: Behavior,
    splits: tuple[Examples, Examples, Examples],
    *,
    config: Config,
    progress: Progress,
) -> Wiring:
    """Rank the edges on train, cut the smallest faithful circuit, and measure it on test.

    Args:
        model: The model.
        behavior: The behavior.
        splits: Its train, validation and test split.
        config: The settings; ``edges="judged"`` adds the nulls and the verdict.
        progress: Told of the steps of judging.

    Raises:
        ModelSupportError: If what the parts write is not added to one stream as it is.
    """
    train, validation, test = splits
    metric = behavior.metric
    scores = find(model, train, method=FINDER, metric=metric, ablation=config.ablation)
    if config.edges == "judged":
        judgment = judge(
            model, behavior, scores, finder=FINDER, faithfulness=config.faithfulness,
            ablation=config.ablation, nulls=config.nulls, orders=ORDERS, gate=config.gate,
            seed=config.seed, progress=progress,
        )  # fmt: skip
        measured = {kind: found.evaluation for kind, found in judgment.kinds.items()}
        return Wiring(scores, judgment.circuit, measured, config.ablation, judgment)
    case = Case(
        model, train, validation, test, metric, config.ablation, config.faithfulness,
        seed=config.seed,
    )  # fmt: skip
    circuit = case.smallest(scores)
    kinds: dict[str, Evaluation] = {kind: case.evaluation(circuit, kind) for kind in ABLATIONS}
    return Wiring(scores, circuit, kinds, config.ablation)
