"""Years, sums, docstrings, colors and contrasts: the answers follow from the prompt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.small import tokenizer_for

from microtome import behaviors
from microtome.behaviors.items import Item
from microtome.behaviors.preparation import apart
from microtome.errors import ConfigError, DataError, EmptyDataError, PairError, UsageError


def test_later_years_and_no_others() -> None:
    for item in behaviors.greater_than(40).items:
        begun = int(item.clean[slice(*item.roles["start year"][0])])
        assert sorted(map(int, item.answers)) == list(range(begun + 1, 100))
        assert sorted(map(int, item.wrongs)) == list(range(begun + 1))
        assert item.corrupt[slice(*item.roles["start year"][1])] == "01" and item.sets


def test_sets_keep_what_a_tokenizer_tells_apart() -> None:
    assert apart(((3, 1), (4, 0), (4, 1)), ((3, 0), (2, 0))) == (((4,),), ((2,),))
    assert apart(((3, 1),), ((3, 0),)) == (None, None) and apart(None, ((1,),))[0] is None
    tokenizer = tokenizer_for("greater-than")
    for example in behaviors.greater_than(40).prepare(tokenizer):
        decade = int(example.features["start year"]) // 10
        right = {int(tokenizer.decode(t)) for t in example.answers}
        wrong = {int(tokenizer.decode(t)) for t in example.wrongs}
        assert right and wrong and min(right) > max(wrong) and example.single_token
        assert right <= set(range(decade, 10)) and wrong <= set(range(decade + 1))


def test_sums() -> None:
    for item in behaviors.two_digit_addition(40).items:
        for text, answer in ((item.clean, item.answers[0]), (item.corrupt, item.wrongs[0])):
            a, b = map(int, re.findall(r"\d+", text))
            assert a + b == int(answer)
        assert len(item.answers[0]) == len(item.wrongs[0])


def arguments(text: str) -> list[str]:
    listing = text.split("(", 1)[1].split(")", 1)[0].split(", ")
    return [name for name in listing if name != "self"]


@pytest.mark.parametrize("corruption", ["signature", "description"])
def test_the_next_argument(corruption: str) -> None:
    for item in behaviors.docstring_arguments(40, corruption=corruption).items:  # type: ignore[arg-type]
        for text, side, answer in (
            (item.clean, 0, item.answers[0]),
            (item.corrupt, 1, item.wrongs[0]),
        ):
            last = text[slice(*item.roles["described last"][side])]
            names = arguments(text)
            assert names[names.index(last) + 1] == answer.strip()
        if corruption == "signature":
            assert sorted(re.findall(r"\w+", item.clean)) == sorted(
                re.findall(r"\w+", item.corrupt)
            )


@pytest.mark.parametrize("corruption", ["color", "order"])
def test_the_letter_of_the_color(corruption: str) -> None:
    letters = []
    for item in behaviors.color_choice(40, corruption=corruption).items:  # type: ignore[arg-type]
        for text, side, answer in (
            (item.clean, 0, item.answers[0]),
            (item.corrupt, 1, item.wrongs[0]),
        ):
            color = text[slice(*item.roles["color"][side])]
            assert f"\n{answer.strip()}. {color}\n" in text
        letters.append(item.answers[0])
    assert set(letters) == {" A", " B", " C", " D"}


def test_unknown_corruptions_are_named() -> None:
    for generator in (
        behaviors.greater_than, behaviors.two_digit_addition, behaviors.docstring_arguments,
        behaviors.color_choice,
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="No corruption 'all'"):
            generator(40, corruption="all")


def files(folder: Path, first: list[str], second: list[str]) -> tuple[Path, Path]:
    paths = folder / "a.txt", folder / "b.txt"
    for path, lines in zip(paths, (first, second), strict=True):
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


def test_contrasts_by_line_and_by_length(tmp_path: Path) -> None:
    first = [f"tell me {'very ' * (n % 3)}bad {n:02d}" for n in range(20)]
    second = [f"tell me {'very ' * (n % 3)}big {n:02d}" for n in reversed(range(20))]
    a, b = files(tmp_path, first, second)
    by_line = behaviors.contrast(a, b, answers=" no", wrongs=[" yes", " ok"])
    assert [(i.clean, i.corrupt) for i in by_line.items] == list(zip(first, second, strict=True))
    assert {i.split for i in by_line.items} == {"train", "validation", "test"}
    by_length = behaviors.contrast(a, b, answers=" no", wrongs=" yes", pairing="length")
    examples = by_length.prepare(tokenizer_for("induction"))
    assert len(examples) > 10 and all(len(e.clean) == len(e.corrupt) for e in examples)
    place: dict[str, str] = {}
    for item in by_length.items:
        for text in (item.clean, item.corrupt):
            assert place.setdefault(text, item.split) == item.split
    text = f"contrast:{a},{b},answer= no|never,wrong= yes"
    named: Item = behaviors.get(text).items[0]
    assert named.answers == (" no", "never") and named.wrongs == (" yes",)


def test_contrast_errors(tmp_path: Path) -> None:
    a, b = files(tmp_path, ["one", "two"], ["three"])
    with pytest.raises(PairError, match="by length"):
        behaviors.contrast(a, b, answers=" no", wrongs=" yes")
    with pytest.raises(DataError, match="does not exist"):
        behaviors.contrast(a, tmp_path / "c.txt", answers=" no", wrongs=" yes")
    (tmp_path / "d.txt").write_text("\n\n")
    with pytest.raises(EmptyDataError, match="no prompts"):
        behaviors.contrast(a, tmp_path / "d.txt", answers=" no", wrongs=" yes")
    with pytest.raises(UsageError, match="answers to compare"):
        behaviors.get(f"contrast:{a},{b}")
