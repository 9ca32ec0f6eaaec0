"""Fixtures of the views' tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

# The gallery and its data lie beside the tests and are imported by name.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def parse() -> Callable[[str], ElementTree.Element]:
    """Return a function that reads markup as XML and fails where it is not well formed."""

    def read(markup: str) -> ElementTree.Element:
        return ElementTree.fromstring(markup)

    return read
