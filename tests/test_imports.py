"""What importing costs, and what the top-level package promises."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import microtome

HEAVY = ("torch", "transformers", "scipy", "sklearn", "pandas", "xarray")
SOURCE = str(Path(microtome.__file__).parents[1])


def run(code: str) -> str:
    """Run code in a fresh interpreter that finds the same source tree."""
    code = f"import sys; sys.path.insert(0, {SOURCE!r})\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADED = f"print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])"


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert run("import microtome; dir(microtome); " + LOADED).strip() == "LOADED"


@pytest.mark.parametrize("words", [["--help"], ["dissect", "--help"], ["models", "--help"]])
def test_the_help_of_the_command_line_loads_nothing_heavy(words: list[str]) -> None:
    code = f"""
sys.argv = ["microtome", *{words!r}]
from microtome.cli.app import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
{LOADED}
"""
    output = run(code.strip())
    assert "Usage" in output
    assert output.strip().splitlines()[-1] == "LOADED"


@pytest.mark.parametrize("name", microtome.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    value = getattr(microtome, name)
    assert (getattr(value, "__doc__", None) or "").strip(), f"microtome.{name} has no docstring"
    assert name in dir(microtome)


def test_no_public_callable_shares_the_name_of_a_subpackage() -> None:
    packages = {info.name for info in pkgutil.iter_modules(microtome.__path__)}
    clashes = [n for n in microtome.__all__ if n in packages and callable(getattr(microtome, n))]
    assert not clashes


def test_the_public_names_are_few() -> None:
    assert len(microtome.__all__) <= 45


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        microtome.no_such_name  # noqa: B018


def packages_with_names() -> list[str]:
    """Every package of microtome that lists public names."""
    found = ["microtome"]
    for info in pkgutil.walk_packages(microtome.__path__, "microtome."):
        if info.ispkg and hasattr(importlib.import_module(info.name), "__all__"):
            found.append(info.name)
    return found


@pytest.mark.parametrize("package", packages_with_names())
def test_every_listed_name_of_a_package_resolves(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
