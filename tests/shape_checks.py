"""Checks shapes written with jaxtyping while the tests run, and only then.

An import hook wraps every function and method of microtome whose annotations name a
jaxtyping type, so that beartype compares the arrays with the shapes at each call. Others
stay untouched: what users pass wrongly must meet microtome's own errors.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import inspect
import sys
from collections.abc import Callable, Sequence
from types import FunctionType, ModuleType
from typing import Any

from beartype import beartype
from jaxtyping import jaxtyped

_WORDS = ("Float[", "Int[", "Integer[", "Bool[", "Num[", "Shaped[", "Inexact[")


class _Loader(importlib.abc.Loader):
    """Runs a module as its own loader does, then wraps what it defines."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        check_shapes(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of one package and gives them the checking loader."""

    def __init__(self, package: str) -> None:
        self._prefix = package + "."

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the usual spec of a module of the package, with the loader exchanged."""
        if not fullname.startswith(self._prefix):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def check_shapes(module: ModuleType) -> int:
    """Wrap what a module defines with jaxtyping types; return how many were wrapped."""
    wrapped = 0
    for owner in [module, *(c for c in vars(module).values() if inspect.isclass(c))]:
        if inspect.isclass(owner) and owner.__module__ != module.__name__:
            continue
        for name, value in list(vars(owner).items()):
            if isinstance(value, FunctionType) and _names_a_shape(value, module):
                setattr(owner, name, _checked(value))
                wrapped += 1
    return wrapped


def install(package: str) -> None:
    """Check the shapes of every module of a package that is imported from now on."""
    sys.meta_path.insert(0, Finder(package))


def _names_a_shape(function: FunctionType, module: ModuleType) -> bool:
    """Return whether a function of this module has a jaxtyping type in its annotations."""
    hints = function.__annotations__.values()
    own = function.__module__ == module.__name__
    return own and any(word in str(hint) for hint in hints for word in _WORDS)


def _checked(function: FunctionType) -> Callable[..., Any]:
    """Return the function with its shapes checked at each call."""
    checked: Callable[..., Any] = jaxtyped(typechecker=beartype)(function)
    return checked
