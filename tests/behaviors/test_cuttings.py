"""Natural items: cut where they should be, with the right answer behind them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from microtome.behaviors import natural
from microtome.behaviors.cuttings import LOOK_BACK
from microtome.behaviors.registry import CODE
from microtome.errors import DataError, EmptyDataError, UnknownNameError

SOURCE = '''"""A module of \\q escapes and déjà vu."""
\x0c
class Store:

    def __init__(self, size, name, start=None, stop=None):
        self.size = size
        self.name = name
        self.table = {'key': [size, name], "other": (size, [name])}

    def find(self, key, first=None, last=None):
        text = 'é' + "plain words" + 'with "quotes"' + f"{key}" + 'x'
        return (self.table[key], [text, (first, last)])
'''


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "store.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def cuts(name: str, source: Path) -> set[tuple[str, str, str]]:
    """Last six characters of the prompt, the answer, and the first wrong answer."""
    return {
        (i.clean[-6:], i.answers[0], i.wrongs[0])
        for seed in range(12)
        for i in natural(name, paths=[source], n=50, seed=seed)
    }


def test_quotes_are_cut_before_the_closing_one(source: Path) -> None:
    assert cuts("quote-closing", source) == {
        (" {'key", "'", '"'),
        ('"other', '"', "'"),
        ("t = 'é", "'", '"'),
        (" words", '"', "'"),
        ("\" + 'x", "'", '"'),
    }


def test_brackets_are_cut_where_the_outer_one_differs(source: Path) -> None:
    assert cuts("bracket-closing", source) == {
        (", name", "]", "}"),
        (" [name", "]", ")"),
        ("[name]", ")", "}"),
        ("le[key", "]", ")"),
        (", last", ")", "]"),
        (" last)", "]", ")"),
    }


@pytest.mark.parametrize("name", CODE)
def test_every_cut_is_followed_by_its_answer_in_the_file(name: str, source: Path) -> None:
    for item in natural(name, paths=[source], n=50):
        assert item.natural and item.split == "test" and item.source == "store.py"
        assert item.cluster == "natural/store.py"
        assert any(item.clean + answer in SOURCE for answer in item.answers)
        assert item.clean != item.corrupt
        assert SOURCE.index(item.clean) == 0 or SOURCE[SOURCE.index(item.clean) - 1] == "\n"
        (role,) = item.roles
        (a, b), (c, d) = item.roles[role]
        assert item.clean[:a] == item.corrupt[:c] and item.clean[b:] == item.corrupt[d:]
        assert item.clean[a:b] != item.corrupt[c:d]


def test_a_swapped_attribute_is_another_parameter(source: Path) -> None:
    found = natural("self-assignment", paths=[source], n=50)
    assert {(i.clean[-11:], i.answers[0], i.wrongs[0]) for i in found} == {
        ("self.size =", " size", " name"),
        ("self.name =", " name", " size"),
    }


def test_a_default_is_taken_away(source: Path) -> None:
    found = natural("default-or-close", paths=[source], n=50)
    assert {(i.clean[-14:], i.corrupt[-15:]) for i in found} == {
        ("art=None, stop", "art, name, stop"),
        ("rst=None, last", "rst, name, last"),
    }
    assert all(i.answers == ("=",) and i.wrongs == (")", ",") for i in found)


def test_long_lines_still_hold_the_cue(tmp_path: Path) -> None:
    text = "x = [" + "1, " * 200 + "'key']\n"
    (tmp_path / "long.py").write_text(text)
    (item,) = natural("quote-closing", paths=[tmp_path], n=5)
    assert item.clean.endswith("'key") and len(item.clean) == LOOK_BACK + len("'key")
    assert item.clean[slice(*item.roles["opening quote"][0])] == "'"


def test_seeds_limits_and_broken_files(source: Path) -> None:
    (source.parent / "broken.py").write_text("def (")
    (source.parent / "binary.py").write_bytes(b"\xff\xfe")
    assert len(natural("quote_closing", paths=[source.parent], n=3)) == 3
    assert len(natural("quote-closing", paths=[source], n=50)) == 4
    with pytest.raises(DataError, match=r"no file .*missing\.py"):
        natural("quote-closing", paths=["missing.py"])
    with pytest.raises(EmptyDataError, match="1 files hold no natural items"):
        natural("quote-closing", paths=[source.parent / "broken.py"])
    with pytest.raises(UnknownNameError, match="no natural items"):
        natural("induction")


@pytest.mark.parametrize("name", CODE)
def test_the_standard_library_is_the_default(name: str) -> None:
    items = natural(name, n=12, seed=1)
    assert len(items) == 12 and len({i.cluster for i in items}) >= 3
    for item in items:
        assert item.clean.isascii() or name != "self-assignment"
        assert max(len(i.clean) for i in items) < LOOK_BACK + 200
    assert items == natural(name, n=12, seed=1)
    if name == "quote-closing":
        for item in items:
            a, _ = item.roles["opening quote"][0]
            assert isinstance(ast.literal_eval(item.clean[a:] + item.answers[0]), str)
