from __future__ import annotations

import sys

import numpy as np
import pytest

from . import shape_checks

SOURCE = """
from __future__ import annotations
import numpy as np
from jaxtyping import Float

def shaped(a: Float[np.ndarray, "batch pos"], b: Float[np.ndarray, "batch"]) -> int:
    return 1

def inside() -> int:
    return shaped(np.zeros((2, 3)), np.zeros(3))

def free(a: int) -> int:
    return 2

class Thing:
    def read(self, a: Float[np.ndarray, "pos"]) -> int:
        return 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    package = tmp_path / "checked_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "shapes.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", [shape_checks.Finder("checked_package"), *sys.meta_path])
    from checked_package import shapes

    yield shapes
    for name in [n for n in sys.modules if n.startswith("checked_package")]:
        del sys.modules[name]


def test_wrong_shapes_are_caught_everywhere(module) -> None:
    assert module.shaped(np.zeros((2, 3)), np.zeros(2)) == 1
    assert module.Thing().read(np.zeros(4)) == 3
    for call in (
        lambda: module.shaped(np.zeros((2, 3)), np.zeros(3)),
        lambda: module.Thing().read(np.zeros((4, 4))),
        module.inside,
    ):
        with pytest.raises(Exception, match="typechecking parameter"):
            call()


def test_functions_without_shapes_are_left_alone(module) -> None:
    assert module.free("not a number") == 2
