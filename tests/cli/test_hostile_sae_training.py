"""``microtome sae train`` with what cannot be meant: refused before any work is done."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from microtome.cli.app import app
from microtome.errors import MicrotomeError


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--site", "mlp.in->"), "sites on both sides"),
        (("--site", "->mlp.out"), "sites on both sides"),
        (("--site", "a->b->c"), "sites on both sides"),
        (("--site", ""), "sites on both sides"),
        (("--format", "sealens"), "no format 'sealens'; nearest: saelens"),
        (("--lr", "inf"), "lr is inf; expected a finite number"),
        (("--prefixes", "a"), "expected whole numbers by commas"),
    ],
)
def test_options_are_refused_first(option: tuple[str, str], message: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = ["sae", "train", str(tmp_path / "nowhere"), "-o", str(out), *option]
    found = CliRunner().invoke(app, given)
    assert isinstance(found.exception, MicrotomeError)
    assert message in str(found.exception)
    assert not out.exists()
