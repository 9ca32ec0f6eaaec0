"""The specimens: small trained models that ship with the package."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = Path(__file__).parent / "weights"

PLAIN = {"microtome-digits-cnn": "microtome.models.digits:DigitsCNN"}
"""Classes of the specimens that are no Hugging Face models, by the type in their config.json."""


def specimen_names() -> tuple[str, ...]:
    """Return the names of the shipped specimens, sorted."""
    if not WEIGHTS.is_dir():
        return ()
    return tuple(sorted(p.name for p in WEIGHTS.iterdir() if (p / "config.json").is_file()))


def specimen_folder(name: str) -> Path | None:
    """Return the folder of a shipped specimen, or None if there is none of this name."""
    wanted = name.replace("_", "-")
    return WEIGHTS / wanted if wanted in specimen_names() else None


def specimen_card(name: str) -> dict[str, Any]:
    """Return a specimen's card: recipe, data, seeds, curve and measured behaviors.

    Raises:
        UnknownNameError: If there is no specimen of this name.
    """
    from microtome.errors import UnknownNameError, nearest

    folder = specimen_folder(name)
    if folder is None:
        raise UnknownNameError(f"No specimen {name!r}{nearest(name, specimen_names())}.")
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    return card if isinstance(card, dict) else {}


def plain_specimen(folder: str | Path) -> nn.Module | None:
    """Return the network in a folder whose class this package defines, or None for other folders.

    Raises:
        ModelFileError: If the weights do not fit the class.
    """
    config = Path(folder) / "config.json"
    if not config.is_file():
        return None
    target = PLAIN.get(json.loads(config.read_text(encoding="utf-8")).get("model_type", ""))
    if target is None:
        return None
    from safetensors.torch import load_file

    from microtome.errors import ModelFileError

    module, _, name = target.partition(":")
    network: nn.Module = getattr(importlib.import_module(module), name)()
    try:
        network.load_state_dict(load_file(config.with_name("model.safetensors")))
    except (RuntimeError, OSError) as error:
        raise ModelFileError(
            f"{folder}: the weights do not fit {name}: {' '.join(str(error).split())[:200]}. Fetch "
            "or train them again."
        ) from None
    return network
