"""``microtome sae harvest``: shards from text, figures, and going on after any stop."""

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
from tests.small import code_model, interruptible, save_model
from typer.testing import CliRunner, Result

from microtome.cli.app import app
from microtome.errors import MicrotomeError
from microtome.sae import ActivationStore

SITE = ("--site", "blocks.0.mlp.out")
SLOW = (*SITE, "--threads", "1", "--batch-size", "8", "--tokens", "28000")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["sae", "harvest", *arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(code_model(), tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("text")
    for number in range(4):
        lines = [f"value = {i * number} + data[{i}]\n" for i in range(700)]
        (place / f"{number}.txt").write_text("".join(lines))
    return str(place)


def test_a_harvest_says_what_it_wrote(folder: str, text: str, tmp_path: Path) -> None:
    out = str(tmp_path / "a")
    given = [folder, text, *SITE, "--site", "attn.z", "-o", out, "--tokens", "500"]
    given += ["--context", "64", "--stored", "bfloat16", "--threads", "1"]
    facts = json.loads(call(*given, "--json").stdout)
    store = ActivationStore(out)
    assert facts["rows"] == store.rows <= facts["tokens"] == 500
    assert [s["site"] for s in facts["sites"]] == list(store.sites)
    assert len(store.sites) == 3 and facts["dtype"] == "bfloat16" and facts["context"] == 64
    shown = call(*given, "--resume")
    assert "blocks.1.attn.z" in shown.stdout and "500 tokens in 1 shards" in shown.stderr


def test_a_second_harvest_in_a_folder_is_refused(folder: str, text: str, tmp_path: Path) -> None:
    given = [folder, text, *SITE, "-o", str(tmp_path / "a"), "--tokens", "200", "--threads", "1"]
    assert call(*given).exit_code == 0
    error = call(*given).exception
    assert isinstance(error, MicrotomeError) and error.code == "MT001" and "--resume" in str(error)
    error = call(*given, "--resume", "--seed", "1").exception
    assert isinstance(error, MicrotomeError) and "seed: 0, now 1" in str(error)
    error = call(folder, "nothing", *SITE, "-o", str(tmp_path / "b")).exception
    assert isinstance(error, MicrotomeError) and error.code == "MT040"
    assert not (tmp_path / "b").exists()


@pytest.fixture(scope="module")
def whole(folder: str, text: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a harvest that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "a"
    assert call(folder, text, *SLOW, "-o", str(out)).exit_code == 0
    return {p.name: p.read_bytes() for p in out.iterdir()}


@pytest.mark.skipif(os.name != "posix", reason="signals are sent to a process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_harvest_goes_on(
    folder: str, text: str, tmp_path: Path, number: signal.Signals, whole: dict[str, bytes]
) -> None:
    given = [folder, text, *SLOW]
    process = subprocess.Popen(
        [sys.executable, "-m", "microtome", "sae", "harvest", *given, "-o", str(tmp_path / "a")],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )
    until = time.monotonic() + 120
    while not list(tmp_path.glob("a/acts-*")) and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    resumed = [*given, "-o", str(tmp_path / "a"), "--resume"]
    if number == signal.SIGINT:
        assert process.returncode == 130
        told = " ".join(errors.split())
        assert "shards are in" in told
        assert shlex.join(["microtome", "sae", "harvest", *resumed]) in told
    shards = json.loads((tmp_path / "a/manifest.json").read_text())["shards"]
    assert len(shards) < 3
    assert call(*resumed).exit_code == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == whole
    assert len(whole) == 4
