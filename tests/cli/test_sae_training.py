"""``microtome sae train``: from a model and text or from shards, resumable after any stop."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.small import code_model, interruptible, save_model
from typer.testing import CliRunner, Result

from microtome.cli.app import app
from microtome.errors import MicrotomeError
from microtome.sae import Origin, load, save

SITE = ("--site", "blocks.0.mlp.in->blocks.0.mlp.out")
SMALL = ("--k", "4", "--latents", "48", "--batch-size", "64", "--threads", "1")


def call(*arguments: object, command: str = "train") -> Result:
    return CliRunner().invoke(app, ["sae", command, *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(code_model(), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("text")
    (place / "a.txt").write_text("".join(f"value = {i} + data[{i}]\n" for i in range(300)))
    return place


def test_a_model_and_text_give_what_shards_give(folder: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = [folder, "--text", text, *SITE, *SMALL, "--steps", 8, "-o", out]
    facts = json.loads(call(*given, "--json").stdout)
    assert facts["steps"] == 8 and facts["folder"] == str(out / "sae")
    coder = load(out / "sae")
    assert coder.origin.sources == ("blocks.0.mlp.in",)
    assert coder.origin.targets == ("blocks.0.mlp.out",)
    again = call(out / "activations", *SITE, *SMALL, "--steps", 8, "-o", tmp_path / "again")
    assert again.exit_code == 0 and "FVU" in again.stderr and "Early look" in again.stderr
    other = load(tmp_path / "again" / "sae")
    assert torch.equal(coder.weights["W_dec"], other.weights["W_dec"])
    assert coder.origin == other.origin  # the model's fingerprint is known either way


def test_seeds_are_compared(folder: Path, text: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        given = [folder, "--text", text, *SITE, *SMALL, "--steps", 8, "--seed", seed]
        shards = ["--shards", tmp_path / "shards"]
        assert call(*given, *shards, "-o", tmp_path / str(seed)).exit_code == 0
    places = [tmp_path / str(seed) / "sae" for seed in (0, 1)]
    shown = call(*places, command="stability")
    assert "Found in all others" in shown.stderr and "mutual" in shown.stdout
    given = [*places, "--activations", tmp_path / "shards", "-o", tmp_path / "s.json", "--json"]
    facts = json.loads(call(*given, command="stability").stdout)
    assert len(facts["pairs"]) == len(facts["in_all"]) == 2
    assert 0 < facts["pairs"][0]["mmcs"] < 1 and (tmp_path / "s.json").is_file()
    elsewhere = load(places[1])
    elsewhere.origin = Origin(("blocks.1.mlp.in",), ("blocks.1.mlp.out",))
    given[1] = save(elsewhere, tmp_path / "elsewhere")
    error = call(*given, command="stability").exception
    assert isinstance(error, MicrotomeError) and "blocks.0.mlp.in and blocks.1.mlp.in" in str(error)
    error = call(places[0], command="stability").exception
    assert isinstance(error, MicrotomeError) and "at least two" in str(error)


def test_what_is_missing_is_asked_for(folder: Path, text: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        error = call(*arguments, "-o", tmp_path / "r").exception
        assert isinstance(error, MicrotomeError) and error.exit_code == 2
        return str(error)

    assert "--text FILE" in refused("python-code", *SITE)
    assert "site or sources" in refused(folder, "--text", text)
    assert "--text" in refused(text, "--shards", tmp_path / "s")
    assert "first argument" in refused(text, "--tokens", 5) or "manifest" in refused(text)
    assert not (tmp_path / "r").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals are sent to a process")
def test_a_stopped_run_goes_on_by_the_same_command(
    folder: Path, text: Path, tmp_path: Path
) -> None:
    given = [str(folder), "--text", str(text), *SITE, *SMALL, "--steps", "40"]
    whole = tmp_path / "whole"
    assert call(*given, "-o", whole).exit_code == 0
    out = tmp_path / "run"
    command = [*given, "-o", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "microtome", "sae", "train", *command, "--steps", "100000"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )
    until = time.monotonic() + 120
    while not (out / "metrics.jsonl").is_file() and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    told = " ".join(errors.split())
    assert "The same command goes on" in told
    assert shlex.join(["microtome", "sae", "train", *command, "--steps", "100000"]) in told
    assert not (out / "sae").exists()
    (out / "checkpoint.safetensors").unlink(missing_ok=True)  # of the longer run
    kept = {p: p.stat().st_mtime_ns for p in (out / "activations").glob("acts-*")}
    assert call(*command).exit_code == 0
    assert kept and kept == {p: p.stat().st_mtime_ns for p in kept}
    assert torch.equal(load(out / "sae").weights["W_dec"], load(whole / "sae").weights["W_dec"])
