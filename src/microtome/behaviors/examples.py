"""Examples: items as token ids for one tokenizer, with what was dropped and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

from microtome.behaviors.items import SPLITS, Feature, Item, Span, Split
from microtome.errors import EmptyDataError, TokenizerError

Tokens = tuple[int, ...]

SHARES: Mapping[Split, float] = {"train": 0.5, "validation": 0.2, "test": 0.3}
"""How the examples that are kept are spread over the splits."""


@dataclass(frozen=True, eq=False)
class Example:
    """One pair of prompts as token ids.

    Attributes:
        index: Number among the examples.
        clean: Token ids of the clean prompt.
        corrupt: Token ids of the corrupt prompt, as many.
        answers: Token ids of each right continuation.
        wrongs: Token ids of each wrong one.
        cluster: Template and lexical frame.
        template: The template.
        split: ``train``, ``validation`` or ``test``.
        roles: Token ranges ``{name: (first, behind last)}``, the same in both prompts.
        features: Named properties.
        text: The clean prompt as text.
        natural: Whether it was cut from real text.
    """

    index: int
    clean: Tokens
    corrupt: Tokens
    answers: tuple[Tokens, ...]
    wrongs: tuple[Tokens, ...]
    cluster: str
    template: str
    split: Split
    roles: Mapping[str, tuple[int, int]]
    features: Mapping[str, Feature]
    text: str
    natural: bool = False


@dataclass(frozen=True)
class Drop:
    """Items that were dropped for one reason.

    Attributes:
        reason: Why.
        count: How many.
        instance: One of them.
    """

    reason: str
    count: int
    instance: str


@dataclass(frozen=True, eq=False)
class Examples(Sequence[Example]):
    """Examples for one tokenizer.

    Attributes:
        items: The examples.
        drops: What was dropped and why.
        behavior: Name of the behavior.
    """

    items: tuple[Example, ...]
    drops: tuple[Drop, ...] = ()
    behavior: str = ""

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Examples: ...

    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return Examples(self.items[index], self.drops, self.behavior)
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.items)

    def take(self, indices: Iterable[int]) -> Examples:
        """Return the examples at these places."""
        return Examples(tuple(self.items[int(i)] for i in indices), self.drops, self.behavior)

    def where(self, condition: Callable[[Example], bool]) -> Examples:
        """Return the examples for which a condition holds."""
        return Examples(tuple(e for e in self.items if condition(e)), self.drops, self.behavior)

    def split(self, name: Split) -> Examples:
        """Return one split.

        Raises:
            EmptyDataError: If it holds no examples.
        """
        part = self.where(lambda e: e.split == name)
        if not part.items:
            counts = ", ".join(f"{s} {sum(e.split == s for e in self.items)}" for s in SPLITS)
            raise EmptyDataError(
                f"{self.behavior}: the {name} split holds no examples ({counts}). "
                f"{self.drop_report()}"
            )
        return part

    @property
    def clusters(self) -> np.ndarray:
        """Cluster of each example, as an array of texts."""
        return np.array([e.cluster for e in self.items], dtype=object).astype(str)

    @property
    def clean(self) -> list[Tokens]:
        """Token ids of the clean prompts."""
        return [e.clean for e in self.items]

    @property
    def corrupt(self) -> list[Tokens]:
        """Token ids of the corrupt prompts."""
        return [e.corrupt for e in self.items]

    @property
    def single_token(self) -> bool:
        """Whether every answer and wrong answer is one token."""
        return all(len(t) == 1 for e in self.items for t in (*e.answers, *e.wrongs))

    def drop_report(self) -> str:
        """Return one sentence on what was dropped and why."""
        if not self.drops:
            return "Nothing was dropped."
        parts = [f"{d.count} because {d.reason} (for example {d.instance!r})" for d in self.drops]
        return "Dropped: " + "; ".join(parts) + "."


@dataclass
class _Dropped:
    found: dict[str, list[str]] = field(default_factory=dict)

    def note(self, reason: str, item: Item) -> None:
        self.found.setdefault(reason, []).append(item.clean[-60:])

    def result(self) -> tuple[Drop, ...]:
        return tuple(Drop(reason, len(texts), texts[0]) for reason, texts in self.found.items())


def prepare(
    items: Sequence[Item],
    tokenizer: Any,
    *,
    bos: bool,
    wanted: int | None,
    longest: int | None,
    behavior: str,
) -> Examples:
    """Turn items into token ids and keep as many as wanted in each split.

    Items with one-token answers are preferred. An item is dropped when its prompts differ in
    length, its answers begin with the same token, it is too long, or the tokenizer merges prompt
    and answer.

    Args:
        items: A pool of items.
        tokenizer: A Hugging Face tokenizer.
        bos: Whether prompts begin with the beginning-of-sequence token.
        wanted: How many to keep, None for all.
        longest: Longest prompt in tokens, None if not limited.
        behavior: Name, for errors.

    Raises:
        EmptyDataError: If nothing is left.
        TokenizerError: If there is no tokenizer.
    """
    if tokenizer is None:
        raise TokenizerError(
            f"{behavior} is text, but the model has no tokenizer. Pass tokenizer=... to load."
        )
    dropped = _Dropped()
    kept: list[Example] = []
    seen: set[tuple[Tokens, Tokens]] = set()
    encode = _Encoder(tokenizer, bos)
    for split in SPLITS:
        pool = [i for i in items if i.split == split]
        limit = None if wanted is None else max(1, round(wanted * SHARES[split]))
        found = [e for i in pool if (e := _example(i, encode, longest, dropped, seen)) is not None]
        single = [e for e in found if all(len(t) == 1 for t in (*e.answers, *e.wrongs))]
        several = [e for e in found if e not in single]
        kept += _spread(single, several, limit)
    if not kept:
        report = Examples((), dropped.result(), behavior).drop_report()
        raise EmptyDataError(f"{behavior}: no item fits this tokenizer. {report}")
    numbered = tuple(_numbered(e, n) for n, e in enumerate(kept))
    return Examples(numbered, dropped.result(), behavior)


def _spread(single: list[Example], several: list[Example], limit: int | None) -> list[Example]:
    """Take up to a limit, template by template in turn, one-token answers first."""
    if limit is None:
        return [*single, *several]
    taken: list[Example] = []
    for pool in (single, several):
        by_template: dict[str, list[Example]] = {}
        for example in pool:
            by_template.setdefault(example.template, []).append(example)
        queues = list(by_template.values())
        while queues and len(taken) < limit:
            for queue in list(queues):
                if len(taken) >= limit:
                    break
                taken.append(queue.pop(0))
                if not queue:
                    queues.remove(queue)
        if taken:
            break
    return taken


def _numbered(example: Example, index: int) -> Example:
    from dataclasses import replace

    return replace(example, index=index)


class _Encoder:
    """Token ids of texts, with the character range of each token."""

    def __init__(self, tokenizer: Any, bos: bool) -> None:
        self._tokenizer = tokenizer
        self._start = [tokenizer.bos_token_id] if bos else []

    def __call__(self, text: str) -> tuple[Tokens, list[Span]]:
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=self._fast, verbose=False
        )
        ids = tuple(self._start + list(encoded["input_ids"]))
        spans = list(encoded["offset_mapping"]) if self._fast else self._prefixes(text, ids)
        return ids, [(0, 0)] * len(self._start) + [tuple(s) for s in spans]

    @property
    def _fast(self) -> bool:
        return bool(getattr(self._tokenizer, "is_fast", False))

    def _prefixes(self, text: str, ids: Tokens) -> list[Span]:
        """Return character ranges from the decoded prefixes of a slow tokenizer."""
        ends = [len(self._tokenizer.decode(ids[: n + 1])) for n in range(len(ids))]
        return [(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _example(
    item: Item,
    encode: _Encoder,
    longest: int | None,
    dropped: _Dropped,
    seen: set[tuple[Tokens, Tokens]],
) -> Example | None:
    clean, spans = encode(item.clean)
    corrupt, other = encode(item.corrupt)
    answers = _continuations(item.clean, clean, item.answers, encode)
    wrongs = _continuations(item.clean, clean, item.wrongs, encode)
    reason = ""
    if len(clean) != len(corrupt):
        reason = "the two prompts have different numbers of tokens"
    elif clean == corrupt:
        reason = "the two prompts are the same tokens"
    elif answers is None or wrongs is None:
        reason = "the tokenizer merges the prompt's end with the answer"
    elif {a[0] for a in answers} & {w[0] for w in wrongs}:
        reason = "an answer and a wrong answer begin with the same token"
    elif longest is not None and len(clean) + max(len(t) for t in (*answers, *wrongs)) > longest:
        reason = "it is longer than the model's context"
    elif (clean, corrupt) in seen:
        reason = "it repeats an earlier one"
    if reason or answers is None or wrongs is None:
        dropped.note(reason, item)
        return None
    seen.add((clean, corrupt))
    roles = _token_roles(item, spans, other, len(clean))
    return Example(
        -1, clean, corrupt, answers, wrongs, item.cluster, item.template, item.split,
        roles, item.features, item.clean, item.natural,
    )  # fmt: skip


def _continuations(
    prompt: str, ids: Tokens, texts: tuple[str, ...], encode: _Encoder
) -> tuple[Tokens, ...] | None:
    """Return the tokens that each text adds behind the prompt, or None where tokens merge."""
    found = []
    for text in texts:
        whole, _ = encode(prompt + text)
        if whole[: len(ids)] != ids or len(whole) == len(ids):
            return None
        found.append(whole[len(ids) :])
    return tuple(found)


def _token_roles(
    item: Item, spans: list[Span], other: list[Span], length: int
) -> dict[str, tuple[int, int]]:
    """Return the token range of each role, covering it in both prompts, and the last token."""
    roles: dict[str, tuple[int, int]] = {}
    for name, (clean, corrupt) in item.roles.items():
        covered = _covering(clean, spans) + _covering(corrupt, other)
        if covered:
            roles[name] = (min(covered), max(covered) + 1)
    roles.setdefault("end", (length - 1, length))
    return roles


def _covering(span: Span, spans: list[Span]) -> list[int]:
    return [n for n, (start, end) in enumerate(spans) if start < span[1] and end > span[0]]
