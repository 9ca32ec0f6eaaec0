"""Patching edges of a compiled module in float64, computed from its weights alone.

A second implementation beside the hooks of the rest of the package, and the one the functional
truth rests on: no restart, no cache, no hook. What an edge carries is replaced in the input of its
target only; everything behind it is computed anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from microtome.circuits.graph import LOGITS, ComponentGraph
from microtome.circuits.truth.weights import BlockWeights, ModuleWeights
from microtome.errors import ConfigError

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples

TruthAblation = Literal["resample", "zero"]
TRUTH_ABLATIONS: tuple[TruthAblation, ...] = get_args(TruthAblation)

ROWS = 2048
"""Sequences that are computed at a time."""

Patch = Sequence[str]
"""Edges that are replaced together."""


@dataclass(frozen=True, eq=False)
class Patcher:
    """Replaces edges of a compiled module and returns the logits at the prompts' ends.

    Attributes:
        weights: The module's weights.
        graph: Its component graph.
        examples: Clean and corrupt prompts.
        ablation: What an edge carries instead: the corrupt run's value, or nothing.
    """

    weights: ModuleWeights
    graph: ComponentGraph
    examples: Examples
    ablation: TruthAblation

    def __post_init__(self) -> None:
        if self.ablation not in TRUTH_ABLATIONS:
            raise ConfigError(
                f"ablation={self.ablation!r}; expected one of {', '.join(TRUTH_ABLATIONS)}."
            )

    def run(self, patches: Sequence[Patch]) -> np.ndarray:
        """Return logits ``[patch, example, vocab]``.

        Raises:
            UnknownNameError: If an edge does not exist.
        """
        pairs = [self.graph.pairs[self.graph.numbers(p)] for p in patches]
        logits = np.zeros((len(patches), len(self.examples), len(self.weights.readout)))
        lengths = np.array([len(e.clean) for e in self.examples])
        for length in np.unique(lengths):
            places = np.flatnonzero(lengths == length)
            clean, corrupt = (
                np.array([getattr(self.examples[int(i)], side) for i in places])
                for side in ("clean", "corrupt")
            )
            instead = self._instead(corrupt)
            step = max(1, ROWS // len(places))
            for start in range(0, len(patches), step):
                chunk = pairs[start : start + step]
                found = self._forward(clean, chunk, instead)
                logits[start : start + step, places] = found
        return logits

    def differences(self, patches: Sequence[Patch]) -> np.ndarray:
        """Return the logit of the right answer minus that of the wrong one ``[patch, example]``."""
        logits = self.run(patches)
        rows = np.arange(len(self.examples))
        right = [e.answers[0][0] for e in self.examples]
        wrong = [e.wrongs[0][0] for e in self.examples]
        return np.asarray(logits[:, rows, right] - logits[:, rows, wrong])

    def _instead(self, corrupt: np.ndarray) -> list[np.ndarray] | None:
        """Return what each source writes in the corrupt run, None for nothing."""
        if self.ablation == "zero":
            return None
        sources: list[np.ndarray] = []
        self._forward(corrupt, [np.zeros((0, 2), dtype=int)], None, sources)
        return [s[0] for s in sources]

    def _forward(
        self,
        tokens: np.ndarray,
        patches: Sequence[np.ndarray],
        instead: list[np.ndarray] | None,
        sources: list[np.ndarray] | None = None,
    ) -> np.ndarray:
        """Return logits ``[patch, example, vocab]``; what sources write is left in ``sources``."""
        written: list[np.ndarray] = [] if sources is None else sources
        embedded = self.weights.token[tokens] + self.weights.position[: tokens.shape[1]]
        stream = np.repeat(embedded[None], len(patches), axis=0)
        written.append(stream)
        targets = {name: n for n, name in enumerate(self.graph.targets)}

        def changes(target: str) -> list[tuple[int, np.ndarray]]:
            """Return row and change of input for every edge into a target that is replaced."""
            number = targets[target]
            found = []
            for row, pairs in enumerate(patches):
                for u in pairs[pairs[:, 1] == number, 0]:
                    new = 0.0 if instead is None else instead[u]
                    found.append((row, new - written[u][row]))
            return found

        for number, block in enumerate(self.weights.blocks):
            heads = [
                _head(block, h, stream, {p: changes(f"a{number}.h{h}<{p}>") for p in "qkv"})
                for h in range(len(block.query))
            ]
            written.extend(heads)
            stream = stream + sum(heads)
            received = _changed(stream, changes(f"m{number}"))
            active = np.maximum(received @ block.reads.T + block.biases, 0.0)
            written.append(active @ block.writes)
            stream = stream + written[-1]
        last = _changed(stream, changes(LOGITS))[:, :, -1]
        return np.asarray(last @ self.weights.readout.T)


def _changed(stream: np.ndarray, changes: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """Return the stream as one target sees it."""
    if not changes:
        return stream
    seen = stream.copy()
    for row, change in changes:
        seen[row] += change
    return seen


def _head(
    block: BlockWeights,
    head: int,
    stream: np.ndarray,
    changes: dict[str, list[tuple[int, np.ndarray]]],
) -> np.ndarray:
    """Return what a head writes ``[patch, example, pos, d_model]``."""
    query = _changed(stream, changes["q"]) @ block.query[head] + block.query_bias[head]
    key = _changed(stream, changes["k"]) @ block.key[head]
    value = _changed(stream, changes["v"]) @ block.value[head]
    scores = query @ key.swapaxes(-1, -2)
    length = scores.shape[-1]
    scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    pattern = np.exp(scores - scores.max(-1, keepdims=True))
    pattern /= pattern.sum(-1, keepdims=True)
    return np.asarray(pattern @ value @ block.output[head])

