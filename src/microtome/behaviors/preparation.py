"""From items to token ids: equal lengths, answers that differ, roles as token ranges.

Generated behaviors bring a pool of items larger than what is wanted. The pool is tried template by
template in turn, and only until enough items with one-token answers are found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from microtome.behaviors.examples import Drop, Example, Examples, Tokens
from microtome.behaviors.items import SPLITS, Item, Span, Split
from microtome.errors import EmptyDataError, PairError, TokenizerError

SHARES: Mapping[Split, float] = {"train": 0.5, "validation": 0.2, "test": 0.3}
"""How the examples that are kept are spread over the splits."""

UNKNOWN = "it holds text that the tokenizer does not know"


def prepare(
    items: Sequence[Item],
    tokenizer: Any,
    *,
    bos: bool,
    wanted: int | None,
    longest: int | None,
    behavior: str,
    strict: bool = False,
    labels: Sequence[str] = (),
) -> Examples:
    """Turn items into token ids and keep as many as wanted in each split.

    Items with one-token answers are preferred. An item is dropped when its prompts differ in
    length, its answers begin with the same token, it is too long, it holds unknown text, or the
    tokenizer merges a prompt with an answer. Only items that were tried are counted as dropped.

    Args:
        items: A pool of items.
        tokenizer: A Hugging Face tokenizer.
        bos: Whether prompts begin with the beginning-of-sequence token.
        wanted: How many to keep, None for all.
        longest: Longest prompt in tokens, None if not limited.
        behavior: Name, for errors.
        strict: Refuse the items instead of dropping any.
        labels: What the model's logits stand for, if not tokens: answers are looked up there,
            without blanks around them.

    Raises:
        EmptyDataError: If nothing is left.
        PairError: If ``strict`` and an item does not fit; the message names it.
        TokenizerError: If there is no tokenizer, or ``strict`` and an item holds unknown text.
    """
    if tokenizer is None:
        raise TokenizerError(
            f"{behavior} is text, but the model has no tokenizer. Pass tokenizer=... to load."
        )
    fitting = _Fitting(Encoder(tokenizer, bos), longest, tuple(labels))
    kept: list[Example] = []
    for split in SPLITS:
        pool = [i for i in items if i.split == split]
        limit = None if wanted is None else max(1, round(wanted * SHARES[split]))
        kept += _kept(pool, fitting, limit)
    if strict and fitting.misfits:
        raise fitting.refusal()
    if not kept:
        report = Examples((), fitting.drops(), behavior).drop_report()
        raise EmptyDataError(f"{behavior}: no item fits this tokenizer. {report}")
    numbered = tuple(
        replace(e, index=n, roles=fitting.roles(e.clean, e.corrupt)) for n, e in enumerate(kept)
    )
    return Examples(numbered, fitting.drops(), behavior)


def _kept(pool: Sequence[Item], fitting: _Fitting, limit: int | None) -> list[Example]:
    """Take up to a limit, template by template in turn; longer answers only fill up."""
    if limit is None:
        return [e for item in pool if (e := fitting.example(item)) is not None]
    by_template: dict[str, list[Item]] = {}
    for item in pool:
        by_template.setdefault(item.template, []).append(item)
    longer: dict[str, list[Example]] = {name: [] for name in by_template}
    single = {name: _one_token(items, fitting, longer[name]) for name, items in by_template.items()}
    taken = _in_turn(single.values(), limit)
    return taken + _in_turn((iter(found) for found in longer.values()), limit - len(taken))


def _one_token(
    items: Sequence[Item], fitting: _Fitting, longer: list[Example]
) -> Iterator[Example]:
    """Yield the examples whose answers are one token each, and put the others aside."""
    for item in items:
        example = fitting.example(item)
        if example is not None and example.single_token:
            yield example
        elif example is not None:
            longer.append(example)


def _in_turn(queues: Iterable[Iterator[Example]], limit: int) -> list[Example]:
    """Take one example of each queue in turn, up to a limit."""
    taken: list[Example] = []
    open_queues = list(queues)
    while open_queues and len(taken) < limit:
        for queue in list(open_queues):
            if len(taken) >= limit:
                break
            example = next(queue, None)
            if example is None:
                open_queues.remove(queue)
            else:
                taken.append(example)
    return taken


def apart(
    answers: tuple[Tokens, ...] | None, wrongs: tuple[Tokens, ...] | None
) -> tuple[tuple[Tokens, ...] | None, tuple[Tokens, ...] | None]:
    """Return the first tokens of two sets of answers, without those that both sets have."""
    first, other = (tuple(dict.fromkeys(t[:1] for t in s or ())) for s in (answers, wrongs))
    return (
        tuple(t for t in first if t not in other) or None,
        tuple(t for t in other if t not in first) or None,
    )


class Encoder:
    """Token ids of texts, and the tokens that cover a range of characters.

    Args:
        tokenizer: A Hugging Face tokenizer, fast or slow.
        bos: Whether texts begin with the beginning-of-sequence token.
    """

    def __init__(self, tokenizer: Any, bos: bool) -> None:
        self._tokenizer = tokenizer
        self._start = [tokenizer.bos_token_id] if bos else []
        self._fast = bool(getattr(tokenizer, "is_fast", False))
        special = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos")}
        unknown = getattr(tokenizer, "unk_token_id", None)
        # some tokenizers name their end-of-text token as the unknown one and never produce it
        self._unknown = None if unknown in special else unknown

    def ids(self, text: str) -> Tokens:
        """Return the token ids of a text."""
        encoded = self._tokenizer(text, add_special_tokens=False, verbose=False)
        return tuple(self._start + list(encoded["input_ids"]))

    def knows(self, ids: Tokens) -> bool:
        """Whether none of the tokens stands for unknown text."""
        return self._unknown is None or self._unknown not in ids

    def shown(self, ids: Tokens) -> str:
        """Return the tokens as text, with bars between them."""
        return "|".join(str(t) for t in self._tokenizer.convert_ids_to_tokens(list(ids)))

    def covering(self, text: str, ids: Tokens, span: Span) -> tuple[int, int] | None:
        """Return the range of tokens that hold the characters of a range, None for an empty one."""
        if span[1] <= span[0]:
            return None
        if self._fast:
            return self._by_offsets(text, span)
        first, _ = self._agreeing(text[: span[0]], ids)
        stop, whole = self._agreeing(text[: span[1]], ids)
        return first, stop if whole else stop + 1

    def _by_offsets(self, text: str, span: Span) -> tuple[int, int] | None:
        offsets = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        covered = [n for n, (a, b) in enumerate(offsets) if a < span[1] and b > span[0]]
        shift = len(self._start)
        return (covered[0] + shift, covered[-1] + 1 + shift) if covered else None

    def _agreeing(self, prefix: str, ids: Tokens) -> tuple[int, bool]:
        """Return how many first tokens a prefix shares with the text, and if those are all."""
        own = self.ids(prefix)
        count = 0
        while count < min(len(own), len(ids)) and own[count] == ids[count]:
            count += 1
        return count, count == len(own)


@dataclass(frozen=True)
class _Misfit:
    reason: str
    detail: str
    item: Item


@dataclass
class _Fitting:
    """Turns items into examples and remembers those that do not fit."""

    encode: Encoder
    longest: int | None
    labels: tuple[str, ...] = ()
    misfits: list[_Misfit] = field(default_factory=list)
    seen: dict[tuple[Tokens, Tokens], Item] = field(default_factory=dict)

    def example(self, item: Item) -> Example | None:
        """Return the item as token ids, still without roles, or None if it does not fit."""
        clean, corrupt = self.encode.ids(item.clean), self.encode.ids(item.corrupt)
        problem = self._of_prompts(clean, corrupt)
        if problem is None:
            answers = self._continuations(item, clean, corrupt, item.answers)
            wrongs = self._continuations(item, clean, corrupt, item.wrongs)
            if item.sets:
                whole = answers is not None and wrongs is not None
                answers, wrongs = apart(answers, wrongs)
                if whole and (answers is None or wrongs is None):
                    problem = ("every answer begins with the same token as a wrong answer, or the "
                               "reverse", self.encode.shown(clean))  # fmt: skip
            problem = problem or self._of_answers(answers, wrongs, len(clean))
            if problem is None and answers is not None and wrongs is not None:
                self.seen[clean, corrupt] = item
                return Example(
                    -1, clean, corrupt, answers, wrongs, item.cluster, item.template, item.split,
                    {}, item.features, item.clean, item.natural,
                )  # fmt: skip
        if problem is not None:
            self.misfits.append(_Misfit(*problem, item))
        return None

    def _of_prompts(self, clean: Tokens, corrupt: Tokens) -> tuple[str, str] | None:
        if len(clean) != len(corrupt):
            detail = f"{len(clean)} and {len(corrupt)}: {self._both(clean, corrupt)}"
            return "the two prompts have different numbers of tokens", detail
        if not self.encode.knows(clean) or not self.encode.knows(corrupt):
            return UNKNOWN, self._both(clean, corrupt)
        if clean == corrupt:
            return "the two prompts are the same tokens", self.encode.shown(clean)
        if (clean, corrupt) in self.seen:
            return "it repeats an earlier one", self.encode.shown(clean)
        return None

    def _of_answers(
        self,
        answers: tuple[Tokens, ...] | None,
        wrongs: tuple[Tokens, ...] | None,
        length: int,
    ) -> tuple[str, str] | None:
        if answers is None or wrongs is None:
            if self.labels:
                return "an answer is no label of the model", ", ".join(self.labels)
            return "the tokenizer merges the prompt's end with the answer", ""
        both = (*answers, *wrongs)
        if not self.labels and not all(self.encode.knows(t) for t in both):
            return UNKNOWN, " ".join(self.encode.shown(t) for t in both)
        if {a[0] for a in answers} & {w[0] for w in wrongs}:
            shown = (self.labels[t[0]] if self.labels else self.encode.shown(t) for t in both)
            detail = " and ".join(shown)
            return "an answer and a wrong answer begin with the same token", detail
        whole = length + (0 if self.labels else max(len(t) for t in both))
        if self.longest is not None and whole > self.longest:
            return "it is longer than the model's context", f"{whole} tokens, {self.longest} fit"
        return None

    def _both(self, clean: Tokens, corrupt: Tokens) -> str:
        return f"{self.encode.shown(clean)} and {self.encode.shown(corrupt)}"

    def _continuations(
        self, item: Item, clean: Tokens, corrupt: Tokens, texts: tuple[str, ...]
    ) -> tuple[Tokens, ...] | None:
        """Return the tokens that each text adds behind either prompt, None where tokens merge.

        Of sets, those that merge are left out. Where logits stand for labels, each text is one.
        """
        if self.labels:
            known = [self.labels.index(t) for t in map(str.strip, texts) if t in self.labels]
            return tuple((n,) for n in known) if len(known) == len(texts) else None
        found = []
        for text in texts:
            behind = self.encode.ids(item.clean + text)
            other = self.encode.ids(item.corrupt + text)
            added = behind[len(clean) :]
            if added and behind == (*clean, *added) and other == (*corrupt, *added):
                found.append(added)
            elif not item.sets:
                return None
        return tuple(found) or None

    def roles(self, clean: Tokens, corrupt: Tokens) -> dict[str, tuple[int, int]]:
        """Return the token range of each role in both prompts, and that of the last token."""
        item = self.seen[clean, corrupt]
        roles: dict[str, tuple[int, int]] = {}
        for name, (span, other) in item.roles.items():
            ranges = (
                self.encode.covering(item.clean, clean, span),
                self.encode.covering(item.corrupt, corrupt, other),
            )
            covered = [r for r in ranges if r is not None]
            if covered:
                roles[name] = (min(a for a, _ in covered), max(b for _, b in covered))
        roles.setdefault("end", (len(clean) - 1, len(clean)))
        return roles

    def drops(self) -> tuple[Drop, ...]:
        """Return how many items were dropped for each reason, with one of them."""
        by_reason: dict[str, list[Item]] = {}
        for misfit in self.misfits:
            by_reason.setdefault(misfit.reason, []).append(misfit.item)
        return tuple(
            Drop(reason, len(found), found[0].clean[-60:]) for reason, found in by_reason.items()
        )

    def refusal(self) -> PairError | TokenizerError:
        """Return the error that names the first misfit and where the others are."""
        first, *others = self.misfits
        detail = f" ({first.detail})" if first.detail else ""
        text = (
            f"{first.item.source} does not fit this tokenizer: {first.reason}{detail}. "
            "Change it, or leave out what does not fit with load(..., misfits='drop')."
        )
        if others:
            places = ", ".join(m.item.source for m in others[:5])
            text += f" {len(others)} more do not fit: {places}{', ...' if others[5:] else ''}."
        return (TokenizerError if first.reason == UNKNOWN else PairError)(text)
