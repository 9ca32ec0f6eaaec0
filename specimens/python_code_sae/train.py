"""Train sparse autoencoders of three sparsities on the Python-code specimen.

``python -m specimens.python_code_sae.train --out RUN`` harvests activations on the text the model
was trained on, library and generated code in equal parts, and trains on them; it goes on after a
stop. ``--twin`` does the same with the model's weights permuted.
"""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch

import microtome as mt
from microtome.cli.bars import Bars
from microtome.core.seeds import rng
from microtome.sae import SAE, ActivationStore, Config, Origin, harvest, save, train
from microtome.tracing.model import Model
from specimens.python_code.corpus import standard_library
from specimens.python_code.generated import Writer, identifiers

SPARSITIES = (8, 16, 32)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights.

    Attributes:
        site: Where the activations are taken.
        tokens: How many, half of them of generated code.
        d_sae: Latents.
        steps: Training steps.
        seed: Of everything that is drawn.
        threads: Of torch; another number gives other last bits.
    """

    site: str = "blocks.2.resid_post"
    tokens: int = 600_000
    d_sae: int = 2048
    steps: int = 3000
    seed: int = 0
    threads: int = 1


def texts(seed: int, split: str = "train", snippets: int = 6000) -> list[str]:
    """Return library files and generated code in turn, in a random order.

    Args:
        seed: Decides the order and what is generated.
        split: Split of the library.
        snippets: Generated texts.
    """
    files = [f.text for f in standard_library() if f.split == split]
    names = identifiers([f.text for f in standard_library() if f.split == "train"])
    writer = Writer(rng(seed, "sae specimen", split), names)
    generated = ["\n".join(writer.snippet() for _ in range(12)) for _ in range(snippets // 12)]
    order = rng(seed, "sae order", split)
    files = [files[i] for i in order.permutation(len(files))]
    # About as many characters of each kind, so that a cut leaves both.
    mixed: list[str] = []
    balance = 0
    while files or generated:
        take = files if files and (balance <= 0 or not generated) else generated
        text = take.pop()
        balance += len(text) if take is files else -len(text)
        mixed.append(text)
    return mixed


def activations(recipe: Recipe, model: Model, folder: Path) -> ActivationStore:
    """Return the harvested activations, made now if they are not there yet."""
    with Bars() as bars:
        return harvest(
            model,
            texts(recipe.seed),
            sites=recipe.site,
            folder=folder,
            tokens=recipe.tokens,
            seed=recipe.seed,
            resume=folder.exists(),
            progress=bars,
        )


def trained(
    recipe: Recipe, store: ActivationStore, model: Model, k: int, folder: Path, *, twin: bool
) -> SAE:
    """Train one coder, or go on with it; the twin's says which twin it is of."""
    config = Config(
        activation="batchtopk", k=k, d_sae=recipe.d_sae, steps=recipe.steps, seed=recipe.seed
    )
    details = {"twin": recipe.seed} if twin else {}
    origin = Origin((recipe.site,), (recipe.site,), "python-code", model.fingerprint, details)
    with Bars() as bars:
        return train(store, config, folder=folder, origin=origin, progress=bars)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--twin", action="store_true")
    parser.add_argument("--k", type=int, nargs="*", default=SPARSITIES)
    for name, kind in (("site", str), ("tokens", int), ("d_sae", int), ("steps", int)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(Recipe, name))
    asked = parser.parse_args()
    recipe = Recipe(asked.site, asked.tokens, asked.d_sae, asked.steps)
    torch.set_num_threads(recipe.threads)
    model = mt.load("python-code")
    scope = model.twin(recipe.seed) if asked.twin else contextlib.nullcontext(model)
    with scope:
        store = activations(recipe, model, asked.out / "activations")
        for k in asked.k:
            found = trained(recipe, store, model, k, asked.out / f"k{k}", twin=asked.twin)
            save(found, asked.out / f"k{k}" / "sae")
            s = found.summary
            print(f"k {k}: FVU {s.fvu:.4f}, L0 {s.l0:.1f}, dead {s.dead_share:.3f}", flush=True)


if __name__ == "__main__":
    main()
