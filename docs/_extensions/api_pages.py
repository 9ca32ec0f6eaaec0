"""Writes one page of API reference per package, and the table of the public names."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

import microtome

_INDEX = """# API reference

The names of the top-level package, `import microtome as mt`; they load what they need on first
use.

| name | what it is |
|---|---|
{rows}

All modules, by package:

```{{toctree}}
:maxdepth: 1

{pages}
```
"""


def write_pages(app: Any) -> None:
    """Write the pages below ``reference/api``, removing those of packages that are gone."""
    folder = Path(app.srcdir) / "reference" / "api"
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"errors.md": _page("errors", ["microtome.errors"])}
    for info in pkgutil.iter_modules(microtome.__path__):
        if info.ispkg:
            pages[f"{info.name}.md"] = _page(info.name, _modules(f"microtome.{info.name}"))
    listed = "\n".join(sorted(name.removesuffix(".md") for name in pages))
    rows = "\n".join(_row(name) for name in microtome.__all__)
    pages["index.md"] = _INDEX.format(rows=rows, pages=listed)
    for path in folder.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _modules(package: str) -> list[str]:
    """Return a package and every module below it that is not private."""
    found = importlib.import_module(package)
    below = pkgutil.walk_packages(found.__path__, package + ".")
    return [package, *(m.name for m in below if "._" not in m.name and "__main__" not in m.name)]


def _page(package: str, modules: list[str]) -> str:
    """Return the page of one package: a section per module."""
    parts = [f"# {package}\n"]
    for module in modules:
        title = module.removeprefix("microtome.")
        if module != modules[0]:
            parts.append(f"\n## {title}\n")
        # A package only hands on names; they are documented where they are defined.
        option = "no-members" if _is_package(module) else "ignore-module-all"
        parts.append(f"\n```{{eval-rst}}\n.. automodule:: {module}\n   :{option}:\n```\n")
    return "".join(parts)


def _is_package(module: str) -> bool:
    """Return whether a module is a package."""
    return hasattr(importlib.import_module(module), "__path__")


def _row(name: str) -> str:
    """Return the table row of one public name, linked to where it is documented."""
    value = getattr(microtome, name)
    line = (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")
    line = line.replace("|", "\\|").replace("``", "`")
    if inspect.ismodule(value):
        role = "{py:mod}"
        target = value.__name__
    else:
        role = "{py:obj}"
        target = f"{getattr(value, '__module__', 'microtome')}.{getattr(value, '__name__', name)}"
    return f"| {role}`mt.{name} <{target}>` | {line} |"


def setup(app: Any) -> dict[str, bool]:
    """Register the step with Sphinx."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
