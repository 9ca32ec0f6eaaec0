"""The command line as a stranger uses it: results, exit codes, and bad input of every kind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.small import code_model, interruptible, save_model

from microtome.sae import SAE, Architecture, Origin, save

SHORT = ["--n", "60", "--nulls", "1", "--threads", "1"]


def microtome(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "microtome", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=cwd,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(code_model(), tmp_path_factory.mktemp("model"))


def one_paragraph(result: subprocess.CompletedProcess[str], code: str) -> None:
    assert result.returncode == 2, result.stderr
    assert code in result.stderr and "Traceback" not in result.stderr
    assert result.stdout == "" and "\n\n" not in result.stderr.strip()


def test_help_and_lists() -> None:
    assert "dissect" in microtome("--help").stdout
    names = [row["name"] for row in json.loads(microtome("models", "list", "--json").stdout)]
    assert "python-code" in names
    facts = json.loads(microtome("doctor", "--json").stdout)
    assert facts["torch"].startswith("2.") and "cpu" in facts["devices"]


def test_show_verify_trace_lens_attribute_sweep(folder: Path, tmp_path: Path) -> None:
    model = str(folder)
    assert json.loads(microtome("models", "show", model, "--json").stdout)["blocks"] == 2
    verified = json.loads(microtome("models", "verify", model, "--json").stdout)
    assert verified["passed"] and any(s["site"] == "blocks.1.attn.z" for s in verified["sites"])
    out = tmp_path / "t.safetensors"
    traced = microtome(
        "trace",
        model,
        "data = 1",
        "--capture",
        "blocks.1.attn.pattern",
        "--out",
        str(out),
        "--json",
    )
    assert json.loads(traced.stdout)["captured"] and out.stat().st_size > 0
    assert json.loads(microtome("lens", model, "data = 1", "--json").stdout)
    scores = json.loads(
        microtome("attribute", model, "quote-closing", "--method", "direct", "--json").stdout
    )
    assert len(scores["components"]) == 2 * 5 + 3
    pair = ["--clean", "x = 'data", "--corrupt", 'x = "data', "--answer", "'", "--wrong", '"']
    swept = json.loads(microtome("sweep", model, *pair, "--json").stdout)
    assert swept["certificate"]["passed"]
    assert "forward passes" in microtome("sweep", model, *pair, "--explain").stdout
    both = microtome("sweep", model, *pair, "--pairs", "a0.h1,a1.h0,m1", "--json")
    assert [(p["one"], p["other"]) for p in json.loads(both.stdout)["pairs"]]
    more = microtome("sweep", model, *pair, "--certify", "1", "--json")
    assert json.loads(more.stdout)["certificate"]["sample"] == 1
    neurons = microtome(
        "attribute", model, "quote-closing", "--method", "neurons", "--top", "4", "--json"
    )
    assert len(json.loads(neurons.stdout)["neurons"]) == 4


def test_families_as_rows() -> None:
    rows = json.loads(
        microtome("models", "verify", "--families", "--only", "gpt2", "--json").stdout
    )
    assert [(r["family"], r["passed"], r["reason"]) for r in rows] == [("gpt2", True, "")]


def test_a_model_that_does_not_show_the_behavior_exits_with_one(
    folder: Path, tmp_path: Path
) -> None:
    result = microtome(
        "dissect", str(folder), "quote-closing", "--out", str(tmp_path / "r"), *SHORT
    )
    assert result.returncode == 1 and "nothing to explain" in result.stdout
    assert (tmp_path / "r/report.html").is_file()


def test_dissect_says_that_a_coder_is_of_another_model(folder: Path, tmp_path: Path) -> None:
    site = ("blocks.0.resid_post",)
    make = Architecture(32, 8, activation="topk", k=2)
    coder = SAE(make, origin=Origin(site, site, "other", "0" * 64))
    command = ["dissect", str(folder), "quote-closing", "--out", str(tmp_path / "r"), *SHORT]
    result = microtome(*command, "--sae", str(save(coder, tmp_path / "sae")))
    assert result.returncode == 1 and "fingerprint 000000000000" in result.stderr


def test_bad_models(folder: Path, tmp_path: Path) -> None:
    one_paragraph(microtome("models", "show", str(tmp_path / "none")), "MT011")
    cut = shutil.copytree(folder, tmp_path / "cut")
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[: len(data) // 2])
    one_paragraph(microtome("models", "show", str(cut)), "MT012")
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    one_paragraph(microtome("models", "show", str(pickled)), "MT013")
    (tmp_path / "weights.pt").write_bytes(b"\x80\x04x")
    one_paragraph(microtome("models", "show", str(tmp_path / "weights.pt")), "MT013")
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "config.json").write_text("{")
    one_paragraph(microtome("models", "show", str(broken)), "MT012")


def test_bad_prompts_and_sites(folder: Path) -> None:
    model = str(folder)
    one_paragraph(microtome("trace", model, ""), "MT031")
    one_paragraph(microtome("trace", model, "data " * 400), "MT031")
    one_paragraph(
        microtome("trace", model, "x", "--capture", "blocks.0.attn.zz", "--out", "t.safetensors"),
        "MT020",
    )
    one_paragraph(
        microtome("trace", model, "x", "--capture", "blocks.7.attn.z", "--out", "t.safetensors"),
        "MT022",
    )
    one_paragraph(microtome("sweep", model, "quote-closing", "--site", "nowhere"), "MT020")
    one_paragraph(microtome("attribute", model, "quote-closing", "--method", "magic"), "MT002")
    one_paragraph(microtome("models", "show", model, "--device", "cuda:9"), "MT003")
    one_paragraph(microtome("models", "show", model, "--dtype", "int3"), "MT003")


def test_bad_behaviors_and_folders(folder: Path, tmp_path: Path) -> None:
    model = str(folder)
    (tmp_path / "binary.jsonl").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "file").write_text("")
    one_paragraph(microtome("dissect", model, "quote-closng"), "MT002")
    one_paragraph(microtome("dissect", model, str(tmp_path / "binary.jsonl")), "MT040")
    one_paragraph(microtome("dissect", model, "--out", "/proc/nowhere/x"), "MT072")
    one_paragraph(microtome("dissect", model, "--out", str(tmp_path / "file")), "MT072")
    one_paragraph(microtome("dissect", model, "--faithfulness", "2"), "MT003")
    assert microtome("dissectt").returncode == 2 and microtome("trace").returncode == 2


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    command = [
        sys.executable,
        "-m",
        "microtome",
        "dissect",
        "--out",
        str(tmp_path / "r"),
        "--threads",
        "1",
    ]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )
    time.sleep(12)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.strip() == "Interrupted; nothing was left half-written."
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_is_no_error(folder: Path) -> None:
    line = f"{sys.executable} -m microtome models verify {folder} | head -1"
    result = subprocess.run(
        line, shell=True, capture_output=True, text=True, timeout=120, check=False
    )
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "change", [{"n_head": "eight"}, {"model_type": "x", "auto_map": {"AutoConfig": "x.X"}}]
)
def test_a_hostile_configuration_is_refused(
    change: dict[str, object], folder: Path, tmp_path: Path
) -> None:
    from microtome.errors import ModelFileError
    from microtome.tracing.opening import load

    shutil.copytree(folder, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(ModelFileError, match="cannot be opened"):
        load(tmp_path / "model")


@pytest.mark.parametrize(
    "option", [["--site", "attn.z"], ["--over", "role"], ["--explain"], ["--certify", "3"]]
)
def test_pairs_refuse_options_that_they_would_not_heed(option: list[str]) -> None:
    pairs = ("--pairs", "a0.h0,m1")
    found = microtome("sweep", "python-code", "quote-closing", *pairs, *option)
    one_paragraph(found, "MT001")
    assert f"leave out {option[0]}" in found.stderr


def test_a_configuration_with_fewer_blocks_than_the_files_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    from microtome.errors import ModelFileError
    from microtome.tracing.opening import load

    shutil.copytree(folder, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "n_layer": 1}))
    with pytest.raises(ModelFileError, match=r"fewer blocks than the files.*h\.1\."):
        load(tmp_path / "model")


def test_an_unknown_model_names_the_specimens(monkeypatch: pytest.MonkeyPatch) -> None:
    from microtome.errors import ModelNotFoundError
    from microtome.models import loading
    from microtome.tracing.opening import load

    monkeypatch.setattr(loading, "specimen_names", lambda: ("python-code", "digits-cnn"))
    with pytest.raises(ModelNotFoundError) as found:
        load("python-cod")
    assert "no specimen 'python-cod' (nearest: python-code)" in str(found.value)
    assert "huggingface.co" not in str(found.value)
