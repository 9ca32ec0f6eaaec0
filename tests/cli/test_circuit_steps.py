"""``microtome circuit step``: trees that fit the terminal, JSON, a page, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.small import code_model, save_model
from typer.testing import CliRunner, Result

from microtome.cli.app import app
from microtome.errors import MicrotomeError


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["circuit", "step", *arguments, "--threads", "1"])


def refused(code: str, *arguments: str) -> str:
    """Run a command that ends with an error; the shell prints its one paragraph."""
    error = call(*arguments).exception
    assert isinstance(error, MicrotomeError) and error.code == code, error
    return str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(code_model(), tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--neurons", "--depth", "3", "--top", "3"),
        ("--from", "a1.h2<q>", "--pos", "2"),
        ("--from", "blocks.1.mlp.pre[neuron=3]"),
        ("--from", "m0", "--forward", "--depth", "3"),
        ("--from", "embed.token", "--pos", "-2", "--forward", "--neurons"),
        ("--token", "'", "--against", ""),
        ("--generate", "2"),
    ],
)
def test_trees_fit_a_hundred_columns(folder: str, options: tuple[str, ...]) -> None:
    result = call(folder, "data = 'value", *options)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) > 5 and max(map(len, lines)) <= 100
    assert "├──" in result.stdout and "more" in result.stdout
    assert "norm" in result.stderr


def test_json_adds_up(folder: str) -> None:
    found = json.loads(call(folder, "data = 'value", "--top", "3", "--json").stdout)
    (root,) = found["roots"]
    total = sum(link["value"] for link in root["links"]) + root["hidden_value"] + root["constant"]
    assert total == pytest.approx(root["value"], rel=1e-4)
    assert len(root["links"]) == 3 and root["steps"] and root["unexplained"] < 1e-5


def test_generated_tokens_have_a_tree_each(folder: str) -> None:
    found = json.loads(call(folder, "data = 'value", "--generate", "3", "--json").stdout)
    length = found["prompt_length"]
    assert [r["pos"] for r in found["roots"]] == [length - 1, length, length + 1]
    assert len(found["tokens"]) == length + 3


def test_the_page_needs_nothing_else(folder: str, tmp_path: Path) -> None:
    page = tmp_path / "steps.html"
    assert call(folder, "data = '<b>", "--html", str(page)).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "<details" in text and "http://" not in text.replace("http://www.w3.org", "")
    assert "<b>" not in text and "logits" in text


def test_refusals(folder: str) -> None:
    assert "a1.h3" in refused("MT020", folder, "data", "--from", "heads")
    assert "out of range" in refused("MT022", folder, "data", "--from", "a7.h0")
    assert "2 tokens" in refused("MT015", folder, "data", "--token", " data value")
    assert "forward" in refused("MT022", folder, "data", "--forward")
