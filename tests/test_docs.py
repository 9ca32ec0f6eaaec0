"""The documentation's code runs, its pages name what exists, and every error has its section."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from microtome import errors

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLES = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.stem)
def test_the_examples_run(page: Path, tmp_path, monkeypatch) -> None:
    """All blocks of a page run in order in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        exec(compile(block, page.name, "exec"), names)


def test_the_errors_page_has_a_section_for_every_code(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_extensions"))
    extension = importlib.import_module("errors_page")
    extension.write_page(SimpleNamespace(srcdir=tmp_path))
    page = (tmp_path / "reference" / "errors.md").read_text(encoding="utf-8")
    classes = [c for c in vars(errors).values() if isinstance(c, type) and hasattr(c, "code")]
    assert len(re.findall(r"^\(MT\d{3}\)=$", page, re.MULTILINE)) == len(classes)
    for cls in classes:
        assert f"## {cls.code} {cls.__name__}" in page
        assert cls.meaning in page and cls.remedy in page
    del sys.modules["errors_page"]


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        if not target.startswith(("http://", "https://", "mailto:")):
            generated = target.startswith("reference/")
            assert generated or (page.parent / target).exists(), target
