"""From templates and word lists to a pool of items in splits whose words do not overlap.

A template is a function that writes one pair with the words it is given. Train and validation share
templates, test has its own. Every word belongs to one split, so that no memorized word helps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from microtome.behaviors.behavior import Behavior
from microtome.behaviors.items import SPLITS, Feature, Item, Split, paired_roles, unmark
from microtome.core.seeds import rng
from microtome.errors import ConfigError

OVERSAMPLING = 8
"""Items in the pool for each one wanted: many fit only some tokenizers."""

WORD_SHARES: Mapping[Split, float] = {"train": 0.5, "validation": 0.2, "test": 0.3}


@dataclass(frozen=True)
class Draft:
    """A pair as a template writes it, roles marked as ``⟦role:text⟧``.

    Attributes:
        clean: Marked clean prompt.
        corrupt: Marked corrupt prompt.
        answer: Right continuation of the clean prompt, or several.
        wrong: Right continuation of the corrupt prompt, or several.
        frame: What makes the lexical frame (the words that items of a cluster share).
        features: Named properties.
        sets: Whether answers and wrong answers are sets, compared by their first tokens.
    """

    clean: str
    corrupt: str
    answer: str | tuple[str, ...]
    wrong: str | tuple[str, ...]
    frame: str
    features: Mapping[str, Feature]
    sets: bool = False


class Words:
    """Draws from word lists, only the words of one split.

    Args:
        lists: Word lists by name.
        split: The split to write for.
        random: Source of chance.
    """

    def __init__(
        self, lists: Mapping[str, Sequence[str]], split: Split, random: np.random.Generator
    ) -> None:
        self.random = random
        self._lists = {
            name: [w for w in words if split_of_word(w, words) == split]
            for name, words in lists.items()
        }

    def some(self, name: str, count: int) -> list[str]:
        """Return different words of a list."""
        words = self._lists[name]
        if len(words) < count:
            raise ConfigError(
                f"The word list {name!r} has {len(words)} words in this split; {count} are needed."
            )
        return [words[int(i)] for i in self.random.choice(len(words), size=count, replace=False)]

    def one(self, name: str) -> str:
        """Return one word of a list."""
        return self.some(name, 1)[0]

    def pick(self, *options: str) -> str:
        """Return one of some options."""
        return options[int(self.random.integers(len(options)))]

    def chance(self, share: float) -> bool:
        """Return true with a probability."""
        return bool(self.random.random() < share)


Template = Callable[[Words], Draft]


def split_of_word(word: str, words: Sequence[str]) -> Split:
    """Return the split a word belongs to: by its rank in the order of the words' hashes."""
    order = sorted(words, key=lambda w: hashlib.sha256(w.encode()).hexdigest())
    place = (order.index(word) + 0.5) / len(order)
    total = 0.0
    for split in SPLITS:
        total += WORD_SHARES[split]
        if place < total:
            return split
    return "test"


def generate(
    name: str,
    *,
    title: str,
    description: str,
    train: Mapping[str, Template],
    test: Mapping[str, Template],
    lists: Mapping[str, Sequence[str]],
    n: int,
    seed: int,
    pool: int = OVERSAMPLING,
    metric: str = "logit_difference",
) -> Behavior:
    """Write a behavior's pool of items.

    Args:
        name: Name of the behavior.
        title: Title.
        description: What the model has to do.
        train: Templates of the train and validation splits, by name.
        test: Templates of the test split.
        lists: Word lists.
        n: How many examples are wanted over all splits.
        seed: Same seed, same items.
        pool: Items in the pool for each one wanted.
        metric: Name of the default metric.

    Raises:
        ConfigError: If ``n`` is below 20.
    """
    if n < 20:
        raise ConfigError(f"n={n} is too small for three splits; expected at least 20.")
    items: list[Item] = []
    for split in SPLITS:
        templates = test if split == "test" else train
        random = rng(seed, name, split)
        words = Words(lists, split, random)
        each = -(-round(n * WORD_SHARES[split] * pool) // len(templates))
        for template, write in templates.items():
            items += [_item(write(words), name, template, split) for _ in range(each)]
    unique = {(i.clean, i.corrupt): i for i in items if i.clean != i.corrupt}
    items = list(unique.values())
    return Behavior(name, title, description, tuple(items), n=n, seed=seed, metric=metric)


def _several(texts: str | tuple[str, ...]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else texts


def _item(draft: Draft, name: str, template: str, split: Split) -> Item:
    clean, roles = unmark(draft.clean)
    corrupt, other = unmark(draft.corrupt)
    return Item(
        clean=clean,
        corrupt=corrupt,
        answers=_several(draft.answer),
        wrongs=_several(draft.wrong),
        cluster=f"{template}/{draft.frame}",
        template=template,
        split=split,
        roles=paired_roles(roles, other),
        features={"template": template, **draft.features},
        source=f"{name} generator",
        sets=draft.sets,
    )
