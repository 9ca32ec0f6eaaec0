"""A long sweep killed half-way and resumed: whether the result is the same, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPTS = int(os.environ.get("MICROTOME_RESUMED", "200"))
"""Prompts of the sweep."""

COMMAND = (
    *("sweep", "python-code", "quote-closing", "--site", "mlp.act", "--over", "neuron"),
    *("--neurons", ",".join(map(str, range(64))), "--n", str(PROMPTS), "--threads", "1"),
)


def table() -> str:
    """Run the sweep whole; then again, killed with SIGKILL half-way, and go on."""
    with tempfile.TemporaryDirectory() as folder:
        whole, resumed = Path(folder) / "whole.csv", Path(folder) / "resumed.csv"
        kept = Path(folder) / "kept.safetensors"
        seconds = _run(whole)
        killed = _killed(resumed, kept, seconds)
        rest = _run(resumed, "--resume", str(kept))
        same = whole.read_bytes() == resumed.read_bytes()
        cells = len(whole.read_text(encoding="utf-8").splitlines()) - 1
    return (
        f"Sweep of 64 neurons of each block, {PROMPTS} prompts of several lengths: {cells} cells\n"
        f"  whole {seconds:.1f} s; killed with SIGKILL after {killed:.1f} s; resumed {rest:.1f} s\n"
        f"  the tables are {'the same, byte for byte' if same else 'DIFFERENT'}; the file that "
        f"kept what was done {'is left behind' if kept.exists() else 'is gone'}\n"
    )


def _run(out: Path, *options: str) -> float:
    began = time.perf_counter()
    _microtome(out, *options).communicate()
    return time.perf_counter() - began


def _killed(out: Path, kept: Path, whole: float) -> float:
    """Kill a run once half of the whole run's time is over and something has been kept."""
    began = time.perf_counter()
    process = _microtome(out, "--resume", str(kept))
    while process.poll() is None and (time.perf_counter() - began < whole / 2 or not kept.exists()):
        time.sleep(0.02)
    if process.poll() is not None:
        raise SystemExit("the sweep ended before it could be killed; raise MICROTOME_RESUMED")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return time.perf_counter() - began


def _microtome(out: Path, *options: str) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", "microtome", *COMMAND, "--out", str(out), *options]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
