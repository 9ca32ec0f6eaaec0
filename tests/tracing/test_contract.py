"""The contract of every family: all of them, each with every option active."""

from __future__ import annotations

import pytest

from microtome.models.families import names
from microtome.tracing.contract import verify_family

FAILING = {
    "doge-moe": "its routing mixes the tokens of a batch",
    "gemma3n_text": "its blocks carry several residual streams",
    "albert": "one block object runs several times",
    "convbert": "its convolutions see padding",
}
"""Families that do not keep the contract, and why."""


@pytest.mark.parametrize("name", names())
def test_family(name: str) -> None:
    row = verify_family(name)
    assert row.passed == (name not in FAILING), row.reason
    assert row.reason or row.passed
