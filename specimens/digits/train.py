"""Train the digits network: ``python -m specimens.digits.train --out FOLDER``.

Writes float32 weights, a configuration, a machine-readable card and a README for people.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from microtome.core.hashing import sha256_arrays
from microtome.core.seeds import torch_generator
from microtome.core.stats import wilson
from microtome.models.digits import DigitsCNN, digits

CONFIG = {"model_type": "microtome-digits-cnn", "architectures": ["DigitsCNN"]}


@dataclass(frozen=True)
class Recipe:
    """Settings of the training.

    Attributes:
        seed: Of the weights and of the order of the images.
        epochs: Passes over the training images.
        batch: Images per step.
        rate: Largest learning rate of AdamW; it falls to zero along a cosine.
        decay: Weight decay.
        shift: Largest shift of an image in pixels, drawn at each step.
    """

    seed: int = 0
    epochs: int = 30
    batch: int = 64
    rate: float = 4e-3
    decay: float = 1e-2
    shift: int = 1


def train(recipe: Recipe) -> tuple[DigitsCNN, list[dict[str, float]]]:
    """Return the trained network, in evaluation mode, and its curve."""
    torch.set_num_threads(1)
    data, draw = digits("train"), torch_generator(recipe.seed, "digits network")
    network = DigitsCNN()
    _initialize(network, draw)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    steps = recipe.epochs * (len(data.labels) // recipe.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    curve = []
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(data.labels), generator=draw)
        whole = len(order) // recipe.batch * recipe.batch
        for part in order[:whole].split(recipe.batch):
            images = _shifted(data.images[part], recipe.shift, draw)
            loss = torch.nn.functional.cross_entropy(network(images), data.labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        curve.append({"epoch": epoch + 1, "loss": round(float(loss.detach()), 4)})
    return network.eval(), curve


def accuracy(network: DigitsCNN, split: str) -> dict[str, Any]:
    """Return the share of right answers on a split, with its Wilson interval."""
    data = digits(split)
    with torch.no_grad():
        right = int((network(data.images).argmax(1) == data.labels).sum())
    found = wilson(right, len(data.labels))
    return {"value": found.value, "low": found.low, "high": found.high, "n": len(data.labels)}


def export(recipe: Recipe, out: Path) -> Path:
    """Train and write the shipped folder."""
    network, curve = train(recipe)
    out.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), out / "model.safetensors")
    (out / "model.safetensors").chmod(0o644)
    data = {s: digits(s) for s in ("train", "test")}
    card = {
        "title": "Convolutional network on scikit-learn's 8 x 8 handwritten digits",
        "parameters": sum(p.numel() for p in network.parameters()),
        "bytes": (out / "model.safetensors").stat().st_size,
        "recipe": "specimens/digits (this repository), licence Apache-2.0",
        "settings": asdict(recipe),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "curve": curve,
        "measured": {f"accuracy, {s}": accuracy(network, s) for s in data},
        "data": "sklearn.datasets.load_digits (UCI handwritten digits, CC BY 4.0; not shipped)",
        "images": {s: sha256_arrays({"images": d.images.numpy()}) for s, d in data.items()},
        "mechanism": "not known beforehand",
        "limits": ["The images of one writer may lie in both splits: the set does not say."],
    }
    (out / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n", encoding="utf-8")
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(readme(card), encoding="utf-8")
    return out


def readme(card: dict[str, Any]) -> str:
    """Return the card for people."""
    test = card["measured"]["accuracy, test"]
    return (
        "# digits-cnn\n\n"
        f"{card['title']}: {card['parameters']:,} parameters, float32, {card['bytes']:,} bytes.\n"
        "Three convolutions (8, 16, 16 units of 3 x 3) and a linear readout; sites are\n"
        "`module:conv1:out`, `module:conv2:out`, `module:conv3:out` and `module:readout:out`.\n\n"
        f"Trained by the seeded recipe in `specimens/digits` ({card['settings']['epochs']} epochs, "
        "seconds on one core).\n"
        f"Accuracy on {test['n']} held-out images: {test['value']:.3f} "
        f"[{test['low']:.3f}, {test['high']:.3f}] (Wilson, 95 %).\n\n"
        f"What the figure does not show: {card['limits'][0]}\n"
    )


def _initialize(network: DigitsCNN, draw: torch.Generator) -> None:
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=draw)
        else:
            torch.nn.init.zeros_(weight)


def _shifted(images: torch.Tensor, most: int, draw: torch.Generator) -> torch.Tensor:
    """Return the images of a batch moved by the same random number of pixels, zero behind them."""
    down, right = torch.randint(0, 2 * most + 1, (2,), generator=draw).tolist()
    height, width = images.shape[2:]
    framed = torch.nn.functional.pad(images, (most, most, most, most))
    return framed[:, :, down : down + height, right : right + width]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the specimen")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(export(Recipe(seed=options.seed), options.out))


if __name__ == "__main__":
    main()
