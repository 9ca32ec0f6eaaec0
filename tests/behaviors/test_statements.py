"""``for ... in`` and ``with ... as``: what the pairs hold, and that words alone do not tell."""

from __future__ import annotations

import ast

import pytest
from tests.small import tokenizer_for

from microtome.behaviors import get
from microtome.behaviors.baselines import bag_of_words_accuracy

NAMES = ("for-in", "with-as")


@pytest.mark.parametrize("name", NAMES)
def test_pairs_differ_in_the_keyword_only(name: str) -> None:
    for item in get(name, n=40).items:
        clean, corrupt = item.roles["keyword"]
        assert item.clean[: clean[0]] == item.corrupt[: corrupt[0]]
        assert item.clean[clean[1] :] == item.corrupt[corrupt[1] :]
        words = {item.clean[slice(*clean)], item.corrupt[slice(*corrupt)]}
        assert len(words & {"for", "with"}) >= 1 and len(words) == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_bag_of_words_holds_both_keywords(name: str) -> None:
    for item in get(name, n=40).items:
        words = [item.clean[slice(*s)] for s in item.roles["keyword"][:1]]
        words.append(item.corrupt[slice(*item.roles["keyword"][1])])
        spread = item.clean.replace("[", " ").split()
        assert spread.count(words[0]) == 1 and spread.count(words[1]) == 1
    examples = get(name, n=200).prepare(tokenizer_for(name))
    found = bag_of_words_accuracy(examples.split("train"), examples.split("test")).mean()
    assert found < 0.7


@pytest.mark.parametrize("name", NAMES)
def test_right_continuations_are_python(name: str) -> None:
    endings = {" in": " xs:\n    pass", " as": " f:\n    pass", ":": "\n    pass"}
    checked = 0
    for item in get(name, n=40).items:
        last = item.clean.rsplit("\n", 1)[-1]
        if last.lstrip().startswith(("for ", "with ", "if ", "while ")):
            for answer in item.answers:
                if answer in endings:
                    body = endings[answer].replace(
                        "\n", "\n" + " " * (len(last) - len(last.lstrip()))
                    )
                    ast.parse(item.clean + answer + body)
                    checked += 1
    assert checked > 50


@pytest.mark.parametrize("name", NAMES)
def test_either_side_is_asked(name: str) -> None:
    keywords = [item.features["keyword"] for item in get(name, n=40).items]
    share = sum(k == name.split("-")[0] for k in keywords) / len(keywords)
    assert 0.35 < share < 0.65
