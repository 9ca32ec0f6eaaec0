"""Generators, preparation, loaders: what every kept item obeys, and every error by its row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.small import code_tokenizer

from microtome import behaviors
from microtome.behaviors.items import Item, unmark
from microtome.errors import (
    ConfigError,
    DataError,
    EmptyDataError,
    PairError,
    TokenizerError,
    UnknownNameError,
)

TOKENIZER = code_tokenizer()
NAMES = behaviors.names()


@pytest.mark.parametrize("name", NAMES)
def test_generators_are_deterministic_and_split_by_template_and_word(name: str) -> None:
    first, again = behaviors.get(name, n=60, seed=3), behaviors.get(name, n=60, seed=3)
    assert first.items == again.items
    assert first.items != behaviors.get(name, n=60, seed=4).items
    templates = {s: {i.template for i in first.split(s)} for s in ("train", "validation", "test")}
    assert len(templates["train"] | templates["test"]) >= 6
    assert not templates["train"] & templates["test"]
    clusters = {s: {i.cluster for i in first.split(s)} for s in ("train", "validation", "test")}
    assert not clusters["train"] & clusters["validation"]


@pytest.mark.parametrize(
    "name", ["quote-closing", "bracket-closing", "default-or-close", "self-assignment"]
)
def test_prepared_pairs_can_be_compared(name: str) -> None:
    examples = behaviors.get(name, n=60).prepare(TOKENIZER)
    assert len(examples) == 60
    for example in examples:
        assert len(example.clean) == len(example.corrupt) and example.clean != example.corrupt
        assert not {a[0] for a in example.answers} & {w[0] for w in example.wrongs}
        for start, stop in example.roles.values():
            assert 0 <= start < stop <= len(example.clean)


def test_roles_cover_their_text() -> None:
    for example in behaviors.quote_closing(40).prepare(TOKENIZER):
        start, stop = example.roles["opening quote"]
        assert TOKENIZER.decode(example.clean[start:stop]) in "'\""
        assert TOKENIZER.decode(example.clean[start:stop]) == TOKENIZER.decode(example.answers[0])


def test_brackets_hold_the_same_tokens_on_both_sides() -> None:
    for example in behaviors.bracket_closing(40).prepare(TOKENIZER):
        assert sorted(example.clean) == sorted(example.corrupt)


def test_marks_give_ranges() -> None:
    assert unmark("The ⟦subject:dog⟧ barks") == ("The dog barks", {"subject": (4, 7)})


def test_drops_are_counted_with_an_instance() -> None:
    items = (
        Item("12", "123", ("x",), ("y",), "c", "t"),
        Item("12", "13", ("x",), ("y",), "c", "t"),
    )
    found = behaviors.Behavior("b", "b", "", items).prepare(TOKENIZER)
    assert len(found) == 1
    assert [(d.count, d.instance) for d in found.drops] == [(1, "12")]
    assert "different numbers of tokens" in found.drops[0].reason


def test_invert_exchanges_and_shuffle_exchanges_half() -> None:
    behavior = behaviors.quote_closing(40)
    assert behavior.invert().items[0].answers == behavior.items[0].wrongs
    changed = sum(
        a.answers != b.answers
        for a, b in zip(behavior.items, behavior.shuffle(1).items, strict=True)
    )
    assert changed == len(behavior.items) // 2


def test_errors_of_behaviors() -> None:
    with pytest.raises(UnknownNameError, match="quote-closing"):
        behaviors.get("quote-clsing")
    with pytest.raises(ConfigError, match="at least 20"):
        behaviors.quote_closing(5)
    with pytest.raises(EmptyDataError):
        behaviors.Behavior("b", "b", "", ())
    with pytest.raises(PairError, match="both an answer and a wrong"):
        behaviors.pair("a", "b", answer="x", wrong="x")
    with pytest.raises(PairError, match="the same"):
        behaviors.pair("a", "a", answer="x", wrong="y")
    with pytest.raises(TokenizerError):
        behaviors.quote_closing(40).prepare(None)


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


GOOD = {"clean": "a b", "corrupt": "a c", "answer": "x", "wrong": "y"}


def test_files_round_trip(tmp_path: Path) -> None:
    behavior = behaviors.quote_closing(40)
    loaded = behaviors.load(behavior.save(tmp_path / "quotes.jsonl"))
    assert [i.clean for i in loaded.items] == [i.clean for i in behavior.items]
    assert [i.split for i in loaded.items] == [i.split for i in behavior.items]
    assert loaded.items[0].roles == behavior.items[0].roles


@pytest.mark.parametrize(
    ("rows", "error", "text"),
    [
        ([GOOD, {**GOOD, "clean": ""}], DataError, "row 2"),
        ([GOOD, {k: v for k, v in GOOD.items() if k != "wrong"}], DataError, "row 2"),
        ([GOOD, {**GOOD, "clean": "d", "wrong": "x"}], PairError, "row 2"),
        ([GOOD, GOOD], PairError, "row 2"),
        ([{**GOOD, "split": "all"}], DataError, "split"),
        ([{**GOOD, "clean": 3}], DataError, "expected text"),
    ],
)
def test_wrong_rows_are_named(
    tmp_path: Path, rows: list[dict[str, object]], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        behaviors.load(write(tmp_path / "pairs.jsonl", rows))


def test_empty_binary_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    for name in ("empty.jsonl", "binary.csv", "missing.jsonl"):
        with pytest.raises(DataError):
            behaviors.load(tmp_path / name)


def test_csv_answers_may_be_several(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("clean,corrupt,answer,wrong,feature.length\na b,a c,x|z,y,3\n")
    item = behaviors.load(tmp_path / "p.csv").items[0]
    assert item.answers == ("x", "z") and "length" in item.features


@pytest.mark.parametrize("name", ["quote-closing", "bracket-closing", "self-assignment"])
def test_natural_items_are_cut_from_files(name: str, tmp_path: Path) -> None:
    source = (
        "class A:\n    def __init__(self, size, name, start=None, stop=None):\n"
        "        self.size = size\n        self.name = name\n"
        "        self.data = {'key': [size, name], 'other': (size, [name])}\n"
    )
    (tmp_path / "a.py").write_text(source)
    for item in behaviors.natural(name, paths=[tmp_path / "a.py"], n=5):
        assert item.natural and item.split == "test"
        assert (item.clean + item.answers[0]) in source
        assert item.clean != item.corrupt
