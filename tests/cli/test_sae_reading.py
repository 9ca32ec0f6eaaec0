"""``microtome sae eval``, ``latents`` and ``convert`` on a small coder of the shipped specimen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import microtome as mt
from microtome.cli.app import app
from microtome.errors import MicrotomeError
from microtome.sae import SAE, Architecture, Origin, load, save

SITE = "blocks.2.resid_post"
TEXT = "def f(a, b='x'):\n    return [a, 'y', \"z\"]\n\n\nclass C:\n    d = {'k': 1}\n"


def run(*words: object, code: int = 0) -> Result:
    """Run a command; an expected error of microtome's own is turned into its text."""
    result = CliRunner().invoke(app, [str(w) for w in words])
    if code:
        assert isinstance(result.exception, MicrotomeError)
        assert result.exception.exit_code == code
    else:
        assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = mt.load("python-code")
    width = model.trace([[1]], capture=[SITE])[SITE].shape[-1]
    made = SAE(Architecture(width, 64, activation="topk", k=4), origin=Origin((SITE,), (SITE,)))
    return save(made, tmp_path_factory.mktemp("coder") / "sae")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number in range(4):
        (folder / f"{number}.py").write_text(TEXT * (number + 2))
    return folder


def test_eval_prints_the_coder_beside_its_baselines(
    coder: Path, text: Path, tmp_path: Path
) -> None:
    done = run("sae", "eval", "python-code", coder, text, "-o", tmp_path / "e.json", "--json")
    rows = json.loads(done.stdout)
    assert [r["coder"] for r in rows] == ["sae", "random", "coordinates"]
    assert all(0 < r["fvu"] < 5 for r in rows)
    assert (tmp_path / "e.json").is_file()


def test_eval_trains_the_twins_coder_once(coder: Path, text: Path, tmp_path: Path) -> None:
    words = ["sae", "eval", "python-code", coder, text, "--tokens", 300, "--json"]
    words += ["--twin", tmp_path / "twin", "--twin-steps", 2, "--baseline", "random"]
    first = run(*words)
    assert [r["coder"] for r in json.loads(first.stdout)] == ["sae", "random", "twin"]
    assert load(tmp_path / "twin" / "sae").origin.details["twin"] == 0
    written = (tmp_path / "twin" / "sae" / "sae.json").stat().st_mtime_ns
    assert run(*words).stdout == first.stdout
    assert (tmp_path / "twin" / "sae" / "sae.json").stat().st_mtime_ns == written
    refused = run(*words[:-2], "--baseline", "neurons", code=2)
    assert "no baseline 'neurons'" in str(refused.exception)


def test_latents_are_listed_from_a_kept_index(coder: Path, text: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    first = run(
        "sae", "latents", "python-code", coder, text, "--index", index, "--top", 3, "--json"
    )
    again = run(
        "sae", "latents", "python-code", coder, text, "--index", index, "--top", 3, "--json"
    )
    assert len(json.loads(first.stdout)) == 3
    assert first.stdout == again.stdout
    other = save(SAE(load(coder).architecture, seed=9, origin=load(coder).origin), tmp_path / "o")
    refused = run("sae", "latents", "python-code", other, text, "--index", index, code=2)
    assert "another coder" in str(refused.exception)
    for words, named in ((["--context", 64], "context"), (["--tokens", 50], "text")):
        place = [coder, text, "--index", index]
        refused = run("sae", "latents", "python-code", *place, *words, code=2)
        assert f"another {named};" in str(refused.exception)
    moved = [coder, text, "--index", index, "--site", "blocks.1.resid_post"]
    refused = run("sae", "latents", "python-code", *moved, code=2)
    assert "another site;" in str(refused.exception)


def test_convert_writes_what_can_be_written(coder: Path, tmp_path: Path) -> None:
    run("sae", "convert", coder, "--to", "saelens", "-o", tmp_path / "s")
    x = torch.randn(5, load(coder).d_in)
    torch.testing.assert_close(load(tmp_path / "s")(x), load(coder)(x))
    pages = run("sae", "convert", coder, "--to", "neuronpedia", "-o", tmp_path / "n", code=2)
    assert "sae show" in str(pages.exception) and not (tmp_path / "n").exists()
    refused = run("sae", "convert", coder, "--to", "gemma-scope", "-o", tmp_path / "g", code=2)
    assert "JumpReLU" in str(refused.exception)
    assert not (tmp_path / "g").exists()


def test_a_coder_without_a_place_in_the_model_asks_for_its_site(
    coder: Path, text: Path, tmp_path: Path
) -> None:
    bare = save(load(coder), tmp_path / "s", format="sparsify")
    refused = run("sae", "eval", "python-code", bare, text, code=2)
    assert "no sites" in str(refused.exception)
    run("sae", "eval", "python-code", bare, text, "--site", SITE, "--tokens", 200)
