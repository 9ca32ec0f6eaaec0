"""Lazy public names, so that importing a package loads no heavy dependency."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package that loads its names on first use.

    Args:
        package: ``__name__`` of the package.
        names: Public name to the module that defines it; ``module`` alone exposes a submodule
            when the name equals its last part, ``module:attribute`` another name in it.

    Returns:
        The two functions to assign in the package's ``__init__``.
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        target, _, attribute = names[name].partition(":")
        module = importlib.import_module(target)
        return getattr(module, attribute) if attribute else module

    def __dir__() -> list[str]:
        return sorted(names)

    return __getattr__, __dir__
