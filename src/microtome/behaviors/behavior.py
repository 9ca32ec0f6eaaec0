"""A Behavior: clean/corrupt prompt pairs in clusters and splits, with the metric that scores it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from microtome.behaviors.items import SPLITS, Item, Split, check_item
from microtome.behaviors.preparation import prepare
from microtome.core.seeds import rng
from microtome.errors import EmptyDataError, PairError

if TYPE_CHECKING:
    from microtome.behaviors.check import Check
    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model

Misfits = Literal["drop", "refuse"]

HEADER = "microtome behavior"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Behavior:
    """Something a model may do, as pairs of prompts with right and wrong continuations.

    Attributes:
        name: Its name, ``"quote-closing"``.
        title: A short title.
        description: What the model has to do, and the task's own rule, in a sentence or two.
        items: Pool of items; generated behaviors hold more than are kept, because not all of them
            fit every tokenizer.
        n: How many examples are kept over all splits, None for all.
        metric: Name of the default metric.
        chance: Accuracy of guessing.
        seed: Seed it was generated with.
        misfits: What to do with items that do not fit a tokenizer: ``drop`` and count them, or
            ``refuse`` them with an error that names the first.
    """

    name: str
    title: str
    description: str
    items: tuple[Item, ...]
    n: int | None = None
    metric: str = "logit_difference"
    chance: float = 0.5
    seed: int = 0
    misfits: Misfits = "drop"

    def __post_init__(self) -> None:
        if not self.items:
            raise EmptyDataError(f"{self.name} holds no items.")
        seen: dict[tuple[str, str], str] = {}
        for number, item in enumerate(self.items):
            place = item.source or f"{self.name}, item {number}"
            check_item(item, place)
            key = (item.clean, item.corrupt)
            if self.n is None and key in seen:
                raise PairError(f"{place}: the same pair as {seen[key]}: {item.clean[:60]!r}.")
            seen[key] = place

    def split(self, name: Split) -> tuple[Item, ...]:
        """Return the items of one split."""
        return tuple(item for item in self.items if item.split == name)

    def prepare(self, model: Model | Any, *, max_length: int | None = None) -> Examples:
        """Return the behavior as token ids for a model, or for a tokenizer.

        Args:
            model: A model, or a Hugging Face tokenizer (then without a beginning-of-sequence
                token).
            max_length: Longest prompt in tokens; the model's context by default.

        Raises:
            EmptyDataError: If no item fits the tokenizer; the message says why.
            PairError: If an item does not fit and misfits are refused.
            TokenizerError: If there is no tokenizer.
        """
        tokenizer = getattr(model, "tokenizer", model)
        anatomy = getattr(model, "anatomy", None)
        context = None if anatomy is None else anatomy.context
        readout = getattr(model, "readout", None)
        return prepare(
            self.items,
            tokenizer,
            bos=bool(getattr(model, "bos", False)),
            wanted=self.n,
            longest=max_length or context,
            behavior=self.name,
            strict=self.misfits == "refuse",
            labels=() if readout is None else readout.labels,
        )

    def check(self, model: Model, *, seed: int = 0) -> Check:
        """Apply the gate: does the model do this at all, beyond chance and simple baselines?"""
        from microtome.behaviors.check import check

        return check(model, self, seed=seed)

    def invert(self) -> Behavior:
        """Return the behavior with right and wrong answers exchanged."""
        return replace(
            self, name=f"{self.name}-inverted", items=tuple(i.inverted() for i in self.items)
        )

    def shuffle(self, seed: int) -> Behavior:
        """Return the behavior with right and wrong answers exchanged in a random half."""
        order = rng(seed, "shuffle", self.name)
        swaps = order.permutation(len(self.items)) % 2 == 1
        items = tuple(
            i.inverted() if swap else i for i, swap in zip(self.items, swaps, strict=True)
        )
        return replace(self, name=f"{self.name}-shuffled", items=items)

    def extended(self, items: Sequence[Item]) -> Behavior:
        """Return the behavior with further items, for example natural ones."""
        return replace(self, items=(*self.items, *items))

    def save(self, path: str | Path) -> Path:
        """Write a JSONL file that :func:`microtome.behaviors.load` reads; return its path.

        The first row describes the behavior, each further one is an item.
        """
        from microtome.store.tables import write_jsonl

        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "items"}
        header = {"schema": HEADER, "version": VERSION, **settings}
        return write_jsonl(path, [header, *(asdict(item) for item in self.items)])

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self.split(s))} {s}" for s in SPLITS)
        return f"Behavior({self.name!r}, {len(self.items)} items: {counts})"
