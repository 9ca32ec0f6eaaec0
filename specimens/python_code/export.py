"""Export the trained network: ``python -m specimens.python_code.export --run DIR --out FOLDER``.

Writes float16 weights, the tokenizer, a machine-readable card and a README for people. Without
``--run``, the network in the folder is measured again and only its cards are written.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from microtome.tracing.opening import load
from specimens.python_code.corpus import SourceFile, python_version, standard_library
from specimens.python_code.evaluate import measured

LARGEST = 4_000_000
"""Bytes that the weights may have."""

LIMITS = (
    "The validation losses of the curve are measured on the first 16,448 validation tokens, which "
    "all lie in one generated file of build settings (_sysconfigdata): they show that training "
    "went on, not how well code is predicted.",
    "The second stage was added after the behaviors were written and measured, to balance "
    "signatures with and without a default. The templates of default-or-close were held out of "
    "the text, not out of that decision.",
    "The second stage also repeats names with the separators of the induction test templates "
    "(semicolon, dash, or), so induction is not measured on held-out templates.",
    "Natural items of default-or-close all have the answer =, so always answering = gets them "
    "right.",
    "The file of build settings differs from machine to machine: the check of hashes refuses "
    "another build of the same Python version.",
)
"""What the figures do not show, in the card."""


def export(run: Path, out: Path) -> Path:
    """Write the shipped folder of a finished run.

    Args:
        run: Folder of the training run, with ``float32`` and ``facts.json``.
        out: Where the specimen goes.

    Raises:
        ValueError: If the weights are too large, or the library differs from the one trained on.
    """
    facts = json.loads((run / "facts.json").read_text(encoding="utf-8"))
    files = check_library(facts)
    network = GPT2LMHeadModel.from_pretrained(run / "float32", dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(run / "float32")
    network.half().save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    size = (out / "model.safetensors").stat().st_size
    if size >= LARGEST:
        raise ValueError(f"The weights have {size} bytes; at most {LARGEST} may ship.")
    return measure(out, facts, files)


def again(out: Path) -> Path:
    """Measure a shipped folder again and write its cards.

    Args:
        out: The folder, with a ``card.json``.

    Raises:
        ValueError: If the library differs from the one trained on.
    """
    card = json.loads((out / "card.json").read_text(encoding="utf-8"))
    facts = {**card, "recipe": card["settings"]}
    return measure(out, facts, check_library(facts))


def measure(out: Path, facts: dict[str, Any], files: list[SourceFile]) -> Path:
    """Write the cards of the network in a folder, with figures measured on it."""
    torch.set_num_threads(2)
    model = load(out)
    size = (out / "model.safetensors").stat().st_size
    parameters = sum(p.numel() for p in model.module.parameters())
    card = card_of(facts, measured(model, files), size, parameters)
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(readme(card), encoding="utf-8")
    return out


def check_library(facts: dict[str, Any]) -> list[SourceFile]:
    """Return the corpus; refuse another one than was trained on.

    Raises:
        ValueError: If a file's hash differs.
    """
    files = standard_library()
    known = {f["path"]: f["sha256"] for f in facts["files"]}
    other = [f.path for f in files if known.get(f.path) != f.sha256]
    if other or len(files) != len(known):
        raise ValueError(
            f"The standard library of Python {python_version()} differs from that of "
            f"{facts['python']} in {len(other)} files, for example {other[:1]}. Use that version "
            "of Python."
        )
    return files


def card_of(
    facts: dict[str, Any], figures: dict[str, Any], size: int, parameters: int
) -> dict[str, Any]:
    """Return the card: recipe, data with hashes, curve, measured behaviors, known mechanism."""
    return {
        "title": "GPT-2 of 4 blocks trained on Python's standard library and generated code",
        "parameters": parameters,
        "bytes": size,
        "recipe": "specimens/python_code (this repository), licence Apache-2.0",
        "settings": facts["recipe"],
        "python": facts["python"],
        "tokens": facts["tokens"],
        "curve": facts["curve"],
        "measured": figures,
        "limits": list(LIMITS),
        "mechanism": "not known beforehand; microtome dissect finds one for quote-closing",
        "data": "source files of the standard library (PSF licence; not shipped) and generated "
        "code",
        "files": facts["files"],
    }


def readme(card: dict[str, Any]) -> str:
    """Return the card for people."""
    rows = []
    for name, found in card["measured"]["behaviors"].items():
        a, natural = found["accuracy"], found.get("natural")
        shown = f"{a['value']:.3f} [{a['low']:.3f}, {a['high']:.3f}]"
        cut = (
            f"{natural['value']:.3f} [{natural['low']:.3f}, {natural['high']:.3f}] (n "
            f"{natural['n']})"
            if natural
            else "-"
        )
        best = max(found["baselines"].values())
        rows.append(f"| {name} | {shown} | {best:.3f} | {cut} |")
    last = card["curve"][-1]
    return "\n".join(
        [
            "# python-code",
            "",
            f"{card['title']}: {card['parameters']:,} parameters, float16, {card['bytes']:,} "
            "bytes; computed with in",
            "float32. A standard `GPT2LMHeadModel`: 4 blocks, 8 heads, width 176, context 256, "
            "2,048 byte-level BPE",
            "tokens in which every quote, bracket and other mark is a token of its own.",
            "",
            "Trained by the seeded, resumable recipe in `specimens/python_code` on the files of "
            "the standard library of",
            f"Python {card['python']} (split by package; hashes in `card.json`) and on generated "
            "code:",
            f"{card['settings']['steps']} + {card['settings']['finish']} steps, "
            f"{last['seconds'] / 60:.0f} minutes on two CPU cores.",
            "",
            "| behavior | accuracy on held-out templates | best simple baseline | natural held-out "
            "code |",
            "|---|---|---|---|",
            *rows,
            "",
            *(natural_line(n, g) for n, g in card["measured"]["natural code"].items()),
            "",
            "What the figures do not show:",
            "",
            *(f"* {limit}" for limit in card["limits"]),
            "",
            "Intervals are 95 % cluster bootstraps. Measured by `python -m "
            "specimens.python_code.export --out FOLDER`.",
            "",
        ]
    )


def natural_line(name: str, group: dict[str, Any]) -> str:
    """Return the comparison with the n-gram on one group of held-out files, as a list item."""
    right = group["model next token"]
    return (
        f"* Held-out files, {name} ({right['n']:,} tokens of {right['clusters']} files): loss "
        f"{group['model loss']['value']:.3f} nats against {group['n-gram loss']['value']:.3f} of "
        f"an interpolated 5-gram; next token right in {right['value']:.1%} [{right['low']:.1%}, "
        f"{right['high']:.1%}] against {group['n-gram next token']['value']:.1%}."
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="folder of the training run")
    parser.add_argument("--out", type=Path, required=True, help="folder of the specimen")
    options = parser.parse_args()
    print(export(options.run, options.out) if options.run else again(options.out))


if __name__ == "__main__":
    main()
