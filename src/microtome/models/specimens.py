"""The specimens: small trained models that ship with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"


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
