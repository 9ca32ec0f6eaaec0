"""Writes the page of all errors from ``microtome.errors`` before each build."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from microtome import errors
from microtome.errors import MicrotomeError

_HEAD = """# Errors

Every error that microtome raises on purpose is of one of these classes. The message says what
happened, with which values, what was expected and what to do; the command line prints it with
its code and without a traceback (`--debug` shows one). This page is made from
`microtome/errors.py`.

```text
{tree}
```

"""

_SECTION = """({code})=
## {code} {name}

{meaning}

:What to do: {remedy}
:Class: `microtome.errors.{name}`, a kind of {parents}
:Exit code: {exit_code}

"""


def write_page(app: Any) -> None:
    """Write ``reference/errors.md`` below the documentation's source folder."""
    page = _HEAD.format(tree=_tree()) + "".join(map(_section, _classes(MicrotomeError)))
    path = Path(app.srcdir) / "reference" / "errors.md"
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != page:
        path.write_text(page, encoding="utf-8")


def _classes(cls: type[MicrotomeError]) -> Iterator[type[MicrotomeError]]:
    """Yield a class and all below it, in the order of their codes."""
    yield cls
    for below in sorted(cls.__subclasses__(), key=lambda c: c.code):
        yield from _classes(below)


def _tree() -> str:
    """Return the tree drawn in the module's docstring."""
    lines = (inspect.getdoc(errors) or "").splitlines()
    return "\n".join(line.removeprefix("    ") for line in lines if "MT0" in line)


def _section(cls: type[MicrotomeError]) -> str:
    """Return the section of one error."""
    parents = ", ".join(
        f"[{base.__name__}](#{base.code})"
        if issubclass(base, MicrotomeError)
        else f"`{base.__name__}`"
        for base in cls.__bases__
    )
    return _SECTION.format(
        code=cls.code,
        name=cls.__name__,
        meaning=cls.meaning,
        remedy=cls.remedy,
        parents=parents,
        exit_code=cls.exit_code,
    )


def shorten(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Replace the tree in the module's docstring, which is no reStructuredText, by a link."""
    if what == "module" and name == "microtome.errors":
        lines[1:] = ["", "The tree is on the page :doc:`/reference/errors`.", ""]


def setup(app: Any) -> dict[str, bool]:
    """Register the step with Sphinx."""
    app.connect("builder-inited", write_page)
    app.connect("autodoc-process-docstring", shorten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
