"""``microtome attribute-inputs`` and ``maximize``: results and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.small import code_model, save_model
from typer.testing import CliRunner, Result

from microtome.cli.app import app
from microtome.errors import MicrotomeError


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--threads", "1"])


def refused(code: str, *arguments: str) -> str:
    """Run a command that ends with an error; the shell prints its one paragraph."""
    error = call(*arguments).exception
    assert isinstance(error, MicrotomeError) and error.code == code, error
    return str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(code_model(), tmp_path_factory.mktemp("model")))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    below = tmp_path / "texts"
    below.mkdir()
    (below / "a.py").write_text("def total(data, size=None):\n    return [data, size]\n" * 3)
    (below / "b.bin").write_bytes(bytes(range(128, 256)))
    return below


def test_attribute_inputs(folder: str) -> None:
    found = json.loads(
        call("attribute-inputs", folder, "quote-closing", "--n", "20", "--json").stdout
    )
    assert found["method"] == "integrated_gradients" and found["baseline"] == "corrupt"
    assert {r["role"] for r in found["roles"]} >= {"opening quote", "string", "rest"}
    assert len(found["completeness_error"]) == found["n"]
    shown = call(
        "attribute-inputs", folder, "quote-closing", "--n", "20", "--method", "occlusion",
        "--show", "2",
    )  # fmt: skip
    assert shown.exit_code == 0 and "opening quote" in shown.stdout and "example 1" in shown.stdout
    assert "mean embedding" in shown.stderr and "error" not in shown.stderr


def test_maximize_texts(folder: str, texts: Path, tmp_path: Path) -> None:
    short = ["--length", "4", "--iterations", "2", "--population", "2", "--texts", str(texts)]
    unit = "blocks.1.mlp.act[neuron=5]"
    out = tmp_path / "found.json"
    found = json.loads(call("maximize", folder, unit, *short, "--json", "--out", str(out)).stdout)
    assert found["unit"] == unit and len(found["rows"]) == 8 and out.is_file()
    assert found["limit"] == pytest.approx(2 * found["median_cross_entropy"])
    shown = call("maximize", folder, unit, *short)
    assert shown.exit_code == 0 and "optimized" in shown.stdout and "median" in shown.stderr


def test_maximize_pixels() -> None:
    arguments = ["maximize", "digits-cnn", "module:conv2:out[neuron=3]", "--iterations", "5"]
    found = json.loads(call(*arguments, "--json").stdout)
    assert len(found["rows"]) == 5 and len(found["image"][0]) == 8
    assert "best image of the data" in call(*arguments).stdout


def test_bad_input_is_refused(folder: str, texts: Path, tmp_path: Path) -> None:
    unit = "blocks.1.mlp.act[neuron=5]"
    assert "--texts" in refused("MT001", "maximize", folder, unit)
    assert "UTF-8" in refused("MT040", "maximize", folder, unit, "--texts", str(texts / "b.bin"))
    refused("MT040", "maximize", folder, unit, "--texts", str(tmp_path / "none"))
    refused("MT022", "maximize", folder, "blocks.1.mlp.act", "--texts", str(texts))
    refused("MT001", "maximize", "digits-cnn", "module:conv2:out[neuron=3]", "--texts", str(texts))
    refused("MT022", "maximize", "digits-cnn", "module:conv2:out[neuron=99]")
    refused("MT002", "attribute-inputs", folder, "quote-closing", "--method", "magic")
    refused("MT002", "attribute-inputs", folder, "quote-closing", "--split", "tset")
    refused("MT015", "attribute-inputs", "digits-cnn", "quote-closing")
