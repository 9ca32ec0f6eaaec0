"""What closes a bracket and what follows a string in it: two attributes of one token.

``python -m specimens.python_code_sae.brackets --out RUN`` trains a coder behind the first block,
where the bracket's token still holds what later blocks read, and measures how far its latents tell
the two attributes apart (cause and isolation, after RAVEL).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import microtome as mt
from microtome.cli.bars import Bars
from microtome.sae import Config, disentanglement, save, train
from microtome.sae.evaluation.facts import Fact, facts_of
from specimens.python_code_sae.train import texts

SITE = "blocks.0.resid_post"


def facts() -> list[Fact]:
    """Return prompts about the three brackets."""
    entities = {
        "[": {"closer": "]", "separator": ","},
        "(": {"closer": ")", "separator": ","},
        "{": {"closer": "}", "separator": ":"},
    }
    names = ("x", "value", "data", "self.items", "result", "args")
    pairs = ("1, 2", "a, b", "x, y")
    templates = {
        "closer": [f"{name} = {{entity}}{pair}" for name in names for pair in pairs],
        "separator": [f"{n} = {{entity}}'{key}'" for n in names for key in ("a", "name", "x1")],
    }
    return facts_of(entities, templates)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = mt.load("python-code")
    config = Config(k=16, d_sae=1024, steps=asked.steps, batch_size=512, seed=asked.seed)
    with Bars() as bars:
        coder = train(
            model, config, site=SITE, text=texts(0, snippets=1200), tokens=asked.tokens,
            folder=asked.out, progress=bars,
        )  # fmt: skip
        save(coder, asked.out / "sae")
        for method in ("mask", "variance"):
            found = disentanglement(
                model, coder, facts(), method=method, among="answers", unseen="prompts",
                pairs=60, steps=100, progress=bars,
            )  # fmt: skip
            print(f"{method}: score {found.score:.3f}, {found.n_right} of {found.n_facts} right")
            print(found.table.to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
