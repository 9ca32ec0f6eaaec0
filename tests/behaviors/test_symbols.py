"""Brackets and letters: the answers follow the rule, the pairs differ where they should."""

from __future__ import annotations

import pytest

from microtome.behaviors import bracket_balance, letter_sorting
from microtome.behaviors.generators.symbols import is_balanced
from microtome.behaviors.items import Item


def by_removal(text: str) -> bool:
    """Balanced strings vanish when adjacent pairs are taken out; the other definition."""
    while "()" in text:
        text = text.replace("()", "")
    return not text


@pytest.mark.parametrize("text", ["", "()", "(())()", ")(", "((", "())(", "(()))(()"])
def test_balance_by_either_definition(text: str) -> None:
    assert is_balanced(text) == by_removal(text)


def test_brackets_keep_their_counts_and_change_their_answer() -> None:
    behavior = bracket_balance(60, end=" [end]")
    kinds = set()
    for item in behavior.items:
        texts = [t.removesuffix(" [end]").replace(" ", "") for t in (item.clean, item.corrupt)]
        assert item.clean.endswith(" [end]") and sorted(texts[0]) == sorted(texts[1])
        assert sum(a != b for a, b in zip(*texts, strict=True)) == 2
        assert [by_removal(t) for t in texts].count(True) == 1
        assert item.answers == ((" balanced",) if by_removal(texts[0]) else (" unbalanced",))
        assert item.features["balanced"] == by_removal(texts[0])
        kinds.add(item.answers)
    assert len(kinds) == 2


def following(text: str) -> str:
    """The next letter in order behind six letters and some that are written already."""
    letters = text.split()
    assert sorted(letters[:6])[: len(letters) - 6] == letters[6:]
    return " " + sorted(letters[:6])[len(letters) - 6]


def test_letters_follow_in_order() -> None:
    items: tuple[Item, ...] = letter_sorting(60).items
    for item in items:
        assert (following(item.clean),) == item.answers
        assert (following(item.corrupt),) == item.wrongs
        clean, corrupt = item.clean.split(), item.corrupt.split()
        changed = [n for n, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b]
        assert changed == [int(float(item.features["place"]))]
    assert {i.answers[0] for i in items} == {" a", " b", " c"}
    # no bag of letters of one split is in another
    bags = {s: {"".join(sorted(i.clean.split()[:6])) for i in items if i.split == s}
            for s in ("train", "validation", "test")}  # fmt: skip
    assert not bags["train"] & bags["test"] and not bags["train"] & bags["validation"]
