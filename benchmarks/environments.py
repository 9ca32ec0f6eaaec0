"""Virtual environments for the peers, made once under ``.bench/``; each of them is optional."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".bench"
PEERS = {
    "transformer_lens": "transformer-lens==4.3.0",
    "nnsight": "nnsight==0.8.1",
    "pyvene": "pyvene==0.1.8",
    "captum": "captum==0.9.0",
    "auto_circuit": "auto-circuit==1.0.1",
    "saelens": "sae-lens==6.54.12",
    "sparsify": "eai-sparsify==1.3.3",
    "dictionary_learning": "dictionary-learning==0.1.0",
}
"""Peers to their pinned requirement."""

BY_HAND = {
    "auto_circuit": (
        "accelerate", "attrs", "beartype==0.14.1", "better-abc", "blobfile", "chex", "datasets",
        "dm-haiku", "einops", "fancy-einsum", "jax", "jaxtyping", "networkx", "numpy",
        "ordered-set", "pandas", "plotly", "rich", "sentencepiece",
        "transformers-stream-generator", "typeguard", "vscode-tqdm", "wandb", "word2word",
    )
}  # fmt: skip
"""What peers need whose own pins fit nothing else; those are installed without dependencies."""

BESIDE = {"auto_circuit": ("transformer-lens==2.18.0", "tracr-pypi==1.0.0")}
"""What else is installed without dependencies."""

OWN = ("raw", "microtome", "edges", "coders_raw", "coders_microtome")
"""What runs with the interpreter that runs the benchmarks."""


@dataclass(frozen=True)
class Environment:
    """Where a contender runs.

    Attributes:
        name: The contender.
        python: Its interpreter; None if it could not be set up.
        note: Why it could not be set up, or which pins had to give way.
    """

    name: str
    python: Path | None
    note: str = ""


def pinned(package: str) -> str:
    """Return a package's line of the constraints, such as ``torch==2.13.0``."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{package}=="))


def environment(name: str, folder: Path = FOLDER) -> Environment:
    """Return the environment of a contender, made now if it is not there yet."""
    if name in OWN:
        return Environment(name, Path(sys.executable))
    place = folder / name
    wanted = [pinned("torch"), PEERS[name]]
    stamp = place / "installed.json"
    if stamp.is_file():
        found = json.loads(stamp.read_text(encoding="utf-8"))
        if found["wanted"] == wanted:
            return Environment(name, _python(place), found["note"])
    print(f"setting up {name} in {place.relative_to(ROOT)}", file=sys.stderr, flush=True)
    note, worked = _by_hand(place, name) if name in BY_HAND else _install(place, PEERS[name])
    if not worked:
        return Environment(name, None, note)
    stamp.write_text(json.dumps({"wanted": wanted, "note": note}), encoding="utf-8")
    return Environment(name, _python(place), note)


def _install(place: Path, requirement: str) -> tuple[str, bool]:
    """Install torch first and alone, then the peer by the strictest pins that can be met."""
    if not _python(place).is_file() and (reason := _call([sys.executable, "-m", "venv", place])):
        return reason, False
    if reason := _pip(place, pinned("torch")):
        return reason, False
    pins = [pinned("torch"), pinned("transformers")]
    for arguments, note in (
        ([requirement, *pins, "-c", str(ROOT / "constraints.txt")], ""),
        ([requirement, *pins], "other versions than the constraints' below transformers"),
        ([requirement, pins[0], "transformers"], "another version of transformers"),
    ):
        reason = _pip(place, *arguments)
        if not reason:
            return note, True
    return reason, False


def _by_hand(place: Path, name: str) -> tuple[str, bool]:
    """Install what a peer needs, then the peer itself without its own pins."""
    if not _python(place).is_file() and (reason := _call([sys.executable, "-m", "venv", place])):
        return reason, False
    for arguments in (
        (pinned("torch"),),
        (pinned("torch"), pinned("transformers"), *BY_HAND[name]),
        ("--no-deps", PEERS[name], *BESIDE[name]),
    ):
        if reason := _pip(place, *arguments):
            return reason, False
    return "installed without its own pins, which fit no current torch", True


def _pip(place: Path, *arguments: str) -> str:
    pip: list[str | Path] = [_python(place), "-m", "pip", "install", "--quiet"]
    return _call([*pip, "--disable-pip-version-check", *arguments])


def _call(command: list[str | Path]) -> str:
    """Run a command; return the last line of what it complained about, empty if it worked."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["it gave no reason"]
    return lines[-1].strip()


def _python(place: Path) -> Path:
    return place / ("Scripts" if sys.platform == "win32" else "bin") / "python"
