"""Every test that may be skipped has a row in QUARANTINES.md, and every row a test."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
PATTERN = re.compile(
    r"(pytest\.skip|importorskip|skipif|mark\.skip|mark\.xfail|pytest\.xfail|\bshared_data /)"
)


def files_that_may_skip() -> set[str]:
    """Test files that hold a way to skip, relative to the project."""
    here = {Path(__file__).name, "conftest.py"}
    return {
        path.relative_to(ROOT).as_posix()
        for path in TESTS.rglob("*.py")
        if path.name not in here and PATTERN.search(path.read_text(encoding="utf-8"))
    }


def files_with_a_row() -> set[str]:
    """Test files named in the first column of the table."""
    text = (ROOT / "QUARANTINES.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `(tests/[\w/]+\.py)", text, re.MULTILINE))


def test_every_skip_has_a_row() -> None:
    assert files_that_may_skip() <= files_with_a_row()


def test_every_row_has_a_skip() -> None:
    assert files_with_a_row() <= files_that_may_skip()
