"""The size report: it holds for the package, and it can fail."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def sizes():
    spec = importlib.util.spec_from_file_location("sizes", ROOT / "scripts" / "sizes.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["sizes"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["sizes"]


def test_the_package_keeps_to_the_caps(sizes) -> None:
    assert sizes.failures(sizes.count(ROOT / "src")) == []


def test_what_breaks_a_rule_is_listed(sizes, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sizes, "ROOT", tmp_path)
    long_function = "def long(a: int) -> None:\n    '''Doc.'''\n" + "    a += 1\n" * 80
    open_function = "def bare(a, *rest: int) -> None:\n    '''Doc.'''\n"
    nested = "class Thing:\n    '''Doc.'''\n    def shown(self) -> None: ...\n"
    nested += "    def _hidden(self) -> None: ...\n    def __len__(self) -> int: ...\n"
    inner = "def outer() -> None:\n    '''Doc.'''\n    def inner() -> None: ...\n"
    text = "'''Doc.'''\n" + long_function + open_function + nested + inner
    (tmp_path / "a.py").write_text(text)
    (tmp_path / "b.py").write_text("x = 1\n" * 601)
    found = sizes.failures(sizes.count(tmp_path))
    assert sorted(found) == [
        "file of 601 lines (cap 600): b.py",
        "function of 82 lines (cap 80): a.py:2 long",
        "no docstring: a.py:88 shown",
        "no docstring: b.py:1",
        "not fully annotated: a.py:84 bare",
    ]


def test_the_table_names_the_longest(sizes, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sizes, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text("'''Doc.'''\n")
    (tmp_path / "b.py").write_text("'''Doc.'''\nx = 1\n")
    assert sizes.report("src", sizes.count(tmp_path)) == 3
    assert "      2      1.5      2      2  b.py" in capsys.readouterr().out
