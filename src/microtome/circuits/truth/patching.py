"""Patching edges of a compiled module in float64, computed from its weights alone.

A second implementation beside the hooks of the rest of the package, and the one the functional
truth rests on: no hook of a model. What an edge carries is replaced in the input of its target
only, and everything from that target's block on is computed anew.
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

_NOTHING = np.zeros((0, 2), dtype=int)


@dataclass(frozen=True, eq=False)
class _Run:
    """What a run left.

    Attributes:
        logits: At the prompts' ends ``[patch, example, vocab]``.
        streams: The residual stream before each block and behind the last one.
        written: What each source wrote ``[patch, example, pos, d_model]``.
    """

    logits: np.ndarray
    streams: list[np.ndarray]
    written: list[np.ndarray]


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
        first = np.array([self._first_block(p) for p in pairs])
        logits = np.zeros((len(patches), len(self.examples), len(self.weights.readout)))
        lengths = np.array([len(e.clean) for e in self.examples])
        for length in np.unique(lengths):
            places = np.flatnonzero(lengths == length)
            tokens = self._tokens(places, "clean")
            clean, corrupt = (self._forward(t) for t in (tokens, self._tokens(places, "corrupt")))
            instead = corrupt.written if self.ablation == "resample" else None
            step = max(1, ROWS // len(places))
            for block in np.unique(first):
                rows = np.flatnonzero(first == block)
                for chunk in np.split(rows, range(step, len(rows), step)):
                    chosen = [pairs[i] for i in chunk]
                    found = self._forward(tokens, chosen, clean, int(block), instead)
                    logits[np.ix_(chunk, places)] = found.logits
        return logits

    def differences(self, patches: Sequence[Patch]) -> np.ndarray:
        """Return the logit of the right answer minus that of the wrong one ``[patch, example]``."""
        logits = self.run(patches)
        rows = np.arange(len(self.examples))
        right = [e.answers[0][0] for e in self.examples]
        wrong = [e.wrongs[0][0] for e in self.examples]
        return np.asarray(logits[:, rows, right] - logits[:, rows, wrong])

    def _tokens(self, places: np.ndarray, side: str) -> np.ndarray:
        return np.array([getattr(self.examples[int(i)], side) for i in places])

    def _first_block(self, pairs: np.ndarray) -> int:
        """Return the first block that any of some edges enters; all blocks for the logits."""
        order = self.graph.target_order[pairs[:, 1]]
        return int(order.min()) // 2 if len(order) else len(self.weights.blocks)

    def _forward(
        self,
        tokens: np.ndarray,
        patches: Sequence[np.ndarray] = (_NOTHING,),
        base: _Run | None = None,
        first: int = 0,
        instead: list[np.ndarray] | None = None,
    ) -> _Run:
        """Run whole prompts, or patches from a block on, before which nothing differs.

        Args:
            tokens: Token ids ``[example, pos]``.
            patches: Source and target numbers of the edges of each patch.
            base: The unpatched run.
            first: Block to start at.
            instead: What each source writes instead, None for nothing.
        """
        if base is None:
            embedded = self.weights.token[tokens] + self.weights.position[: tokens.shape[1]]
            stream, streams, written = embedded[None], [], [embedded[None]]
        else:
            stream = np.repeat(base.streams[first], len(patches), axis=0)
            streams = base.streams[:first]
            per_block = 1 + len(self.weights.blocks[0].query)
            shape = (len(patches), *stream.shape[1:])
            written = [np.broadcast_to(w, shape) for w in base.written[: 1 + first * per_block]]
        targets = {name: n for n, name in enumerate(self.graph.targets)}

        def changes(target: str) -> list[tuple[int, np.ndarray]]:
            """Return row and change of input for every edge into a target that is replaced."""
            number = targets[target]
            found = []
            for row, pairs in enumerate(patches):
                for u in pairs[pairs[:, 1] == number, 0]:
                    new = 0.0 if instead is None else instead[u][0]
                    found.append((row, new - written[u][row]))
            return found

        for number in range(first, len(self.weights.blocks)):
            block = self.weights.blocks[number]
            streams = [*streams, stream]
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
        return _Run(last @ self.weights.readout.T, [*streams, stream], written)


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
