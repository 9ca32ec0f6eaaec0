"""The error tree: one code each, documented, drawn as it is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from microtome import errors
from microtome.errors import MicrotomeError, nearest

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, MicrotomeError)
]
SOURCES = sorted(Path(errors.__file__).parent.rglob("*.py"))


def test_codes_are_unique_and_well_formed() -> None:
    codes = [cls.code for cls in CLASSES]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"MT\d{3}", code) for code in codes)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_says_what_it_means_and_what_to_do(cls: type[MicrotomeError]) -> None:
    for own in ("code", "meaning", "remedy"):
        assert own in vars(cls), f"{cls.__name__} inherits its {own}"
        assert vars(cls)[own].strip()
    assert cls.meaning.endswith(".") and cls.remedy.endswith(".")
    assert inspect.getdoc(cls)
    assert cls.exit_code in (1, 2)


def test_the_tree_drawn_at_the_top_is_the_tree() -> None:
    drawn: dict[str, tuple[int, str]] = {}
    for line in inspect.getdoc(errors).splitlines():
        if found := re.match(r"^([ │├└─]*)(\w+Error)\s+(MT\d{3})", line):
            drawn[found[2]] = (len(found[1]), found[3])
    assert set(drawn) == {cls.__name__ for cls in CLASSES}
    for cls in CLASSES:
        depth, code = drawn[cls.__name__]
        assert code == cls.code
        parents = [base for base in cls.__mro__[1:] if issubclass(base, MicrotomeError)]
        assert depth - drawn["MicrotomeError"][0] == 4 * len(parents)


def test_every_error_is_raised_somewhere() -> None:
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in SOURCES if path.name != "errors.py"
    )
    abstract = {"MicrotomeError"} | {c.__name__ for c in CLASSES if c.__subclasses__()}
    unused = [c.__name__ for c in CLASSES if not re.search(rf"\b{c.__name__}\b", text)]
    assert set(unused) <= abstract


def test_no_assert_or_bare_except_stands_in_for_an_error() -> None:
    pattern = re.compile(r"^\s*(assert\s|except\s*:)", re.MULTILINE)
    offenders = [p.name for p in SOURCES if pattern.search(p.read_text(encoding="utf-8"))]
    assert not offenders


@pytest.mark.parametrize(
    ("name", "candidates", "expected"),
    [
        ("indirect_objct", ["indirect_object", "xyz"], "; nearest: indirect_object"),
        ("zzz", ["b", "a"], "; known: a, b"),
        ("zzz", [], ""),
    ],
)
def test_nearest_lists_close_names_or_all(name: str, candidates: list[str], expected: str) -> None:
    assert nearest(name, candidates) == expected
