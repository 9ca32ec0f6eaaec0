"""Sparse coders that microtome writes and other packages read, and the reverse: differences."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.environments import ROOT, environment
from benchmarks.options import Options
from microtome.sae import SAE, Architecture, load, save

D_IN, ROWS = 10, 500
SCRIPT = ROOT / "benchmarks" / "peers" / "coders.py"

FORMATS = {
    "saelens": "saelens",
    "sparsify": "sparsify",
    "dictionary_learning": "dictionary-learning",
}
"""Peers to the name of their format."""

KINDS: dict[str, tuple[str, ...]] = {
    "saelens": (
        "standard",
        "topk",
        "abstopk",
        "jumprelu",
        "gated",
        "transcoder",
        "skip_transcoder",
        "jumprelu_transcoder",
        "jumprelu_skip_transcoder",
    ),
    "sparsify": ("topk", "skip"),
    "dictionary_learning": ("relu", "topk", "batchtopk", "jumprelu", "gated"),
}
"""What each peer calls the kinds of coders that it has."""


@dataclass(frozen=True)
class Row:
    """One kind of coder in one format, there and back.

    Attributes:
        peer: The other package.
        kind: Its name for the kind of coder.
        read_by_peer: Largest difference of latents and outputs in a coder microtome wrote.
        read_here: The same in a coder that the peer wrote.
        failure: Why there are no figures.
    """

    peer: str
    kind: str
    read_by_peer: float = float("nan")
    read_here: float = float("nan")
    failure: str = ""


def table(options: Options) -> tuple[str, Any]:
    """Return the table as text and as data."""
    del options
    rows = [row for peer in KINDS for row in _peer_rows(peer)]
    lines = [
        "| peer | kind | written here, read there | written there, read here |",
        "|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            [row.failure, ""]
            if row.failure
            else [f"{row.read_by_peer:.1e}", f"{row.read_here:.1e}"]
        )
        lines.append("| " + " | ".join((row.peer, row.kind, *cells)) + " |")
    return "\n".join(lines), [vars(row) for row in rows]


def _peer_rows(peer: str) -> list[Row]:
    found = environment(peer)
    kinds = KINDS[peer]
    if found.python is None:
        return [Row(peer, "all", failure=found.note)]
    with tempfile.TemporaryDirectory() as name:
        theirs, ours = Path(name) / "theirs", Path(name) / "ours"
        written = _ask(found.python, peer, "write", theirs, kinds)
        coders = {kind: load(theirs / kind, format=FORMATS[peer]) for kind in kinds}
        own = {kind: _like(coder) for kind, coder in coders.items()}
        for kind, coder in own.items():
            save(coder, ours / kind, format=FORMATS[peer])
        read = _ask(found.python, peer, "read", ours, kinds)
        return [
            Row(
                peer,
                kind,
                read_by_peer=_difference(own[kind], read[kind]),
                read_here=_difference(coders[kind], written[kind]),
                failure=_failure(theirs / kind) or _failure(ours / kind),
            )
            for kind in kinds
        ]


def _failure(place: Path) -> str:
    file = place.with_suffix(".failed")
    return file.read_text().splitlines()[0][:160] if file.exists() else ""


def _like(coder: SAE) -> SAE:
    """Return a coder of the same make with weights of microtome's own."""
    make: Architecture = coder.architecture
    own = SAE(make, seed=5, origin=coder.origin)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, value in own.weights.items():
            noise = torch.randn(value.shape, generator=generator) * 0.3
            if name == "threshold":
                value.copy_(noise.abs().amax() if make.activation == "batchtopk" else noise.abs())
            else:
                value.add_(noise)
    return own


def _ask(
    python: Path, peer: str, action: str, folder: Path, kinds: tuple[str, ...]
) -> dict[str, dict[str, np.ndarray]]:
    """Let a peer write or read the coders of all kinds; return what it computed with them."""
    inputs = np.random.default_rng(0).standard_normal((ROWS, D_IN)).astype(np.float32)
    folder.mkdir(exist_ok=True)
    for kind in kinds:
        np.savez(folder / f"{kind}.npz", inputs=inputs)
    command = [str(python), "-P", str(SCRIPT), peer, action, str(folder), *kinds]
    subprocess.run(command, check=True, capture_output=True, text=True)
    found = {}
    for kind in kinds:
        with np.load(folder / f"{kind}.npz") as file:
            found[kind] = dict(file)
    return found


@torch.no_grad()
def _difference(coder: SAE, found: dict[str, np.ndarray]) -> float:
    if "latents" not in found:
        return float("nan")
    inputs = torch.from_numpy(found["inputs"])
    pairs = ((coder.encode(inputs), found["latents"]), (coder(inputs), found["outputs"]))
    return max(float(np.abs(ours.numpy() - theirs).max()) for ours, theirs in pairs)
