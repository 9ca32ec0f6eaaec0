"""What stepping gives: links ranked by their direct effect, steps, and trees of steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from microtome.core.provenance import Provenance
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd

Way = Literal["backward", "forward"]


@dataclass(frozen=True, eq=False)
class Link(Result, schema="step-link"):
    """One direct effect: a part at a position, and how much it feeds or is fed.

    Attributes:
        part: The part: ``a0.h1``, ``m0``, ``m0.n5``, ``embed.token``, ``embed.pos``, ``biases``;
            forward also a port ``a1.h0<k>`` or ``logits``.
        pos: Its position; -1 for biases, which have none.
        value: The effect, in the unit of the step or, forward, of the reader.
        share: Backward ``value`` over the sum of the absolute effects of all sources, signed.
            Forward how much of the reader it makes: for ``q`` and ``k`` the attention that moves
            at the strongest pair when the write is taken out, for ``v`` its size over that of the
            head's whole write, for neurons and logits its size over that of all they read.
        other: Another position that matters: the source position that gives a head most of its
            effect; forward the key of the strongest pair, the query, or where a value goes. None
            where there is none.
        other_value: The effect through ``other`` alone; forward the change of attention (``q``,
            ``k``) or the attention (``v``).
        detail: More in words, such as the neurons moved most or the tokens raised and lowered.
    """

    part: str
    pos: int
    value: float
    share: float
    other: int | None = None
    other_value: float = 0.0
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Step(Result, schema="step"):
    """One step: a target with what feeds it, or a source with what it feeds.

    Attributes:
        way: ``backward`` or ``forward``.
        place: The target or source: ``logits``, ``a1.h0<q>``, ``a1.h0<v>``, ``m0.n5``, ...
        pos: Its position.
        label: What the number is, in words.
        value: The number: a logit, a score, a pre-activation; forward the norm of the write.
        constant: The part of it that no source writes: biases of the reading side.
        links: The strongest effects, ranked by size (forward by share).
        hidden: How many more there are.
        hidden_value: The sum of their effects (0 forward, where units differ).
        unexplained: ``|value - constant - all effects|`` over the sum of absolute effects:
            rounding where the step is linear.
        held: What is held fixed, empty where nothing is.
        steps: Steps on from the strongest links.
        explains: The link of the step above that this step goes into, empty at the root.
    """

    way: Way
    place: str
    pos: int
    label: str
    value: float
    constant: float
    links: tuple[Link, ...]
    hidden: int
    hidden_value: float
    unexplained: float
    held: str
    steps: tuple[Step, ...] = ()
    explains: str = ""

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Step]]:
        """Yield this step and all below with their depth, in reading order."""
        yield depth, self
        for below in self.steps:
            yield from below.walk(depth + 1)


@dataclass(frozen=True, eq=False)
class Steps(Result, schema="steps"):
    """Trees of steps through one prompt: one, or one for each generated token.

    Attributes:
        tokens: Texts of the prompt's tokens and of those that were generated.
        prompt_length: How many of them are the prompt.
        roots: The trees.
        note: What a direct effect is and what it leaves out.
        provenance: Model, settings, versions.
    """

    tokens: tuple[str, ...]
    prompt_length: int
    roots: tuple[Step, ...]
    note: str
    provenance: Provenance | None = None

    @property
    def unexplained(self) -> float:
        """The largest share that any step leaves unexplained."""
        return max(step.unexplained for root in self.roots for _, step in root.walk())

    def token(self, pos: int) -> str:
        """Return the text of the token at a position, empty for -1."""
        return self.tokens[pos] if pos >= 0 else ""

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each link of each step."""
        import pandas as pd

        rows = [
            {
                "tree": number, "depth": depth, "place": step.place, "at": step.pos,
                "label": step.label, "total": step.value, "part": link.part, "pos": link.pos,
                "token": self.token(link.pos), "value": link.value, "share": link.share,
                "other": link.other, "other_value": link.other_value, "detail": link.detail,
                "unexplained": step.unexplained,
            }
            for number, root in enumerate(self.roots)
            for depth, step in root.walk()
            for link in step.links
        ]  # fmt: skip
        return pd.DataFrame(rows)
