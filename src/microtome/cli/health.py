"""``microtome doctor``: versions, devices, threads, and what works here."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path

from microtome.cli.options import Home, Json, print_json, print_table, use_home

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "xarray",
)
EXTRAS = {"plot": "matplotlib"}


def doctor(home: Home = None, as_json: Json = False) -> None:
    """Say what is installed, which devices there are, and what works.

    Example: microtome doctor
    """
    use_home(home)
    facts = {**_versions(), **_machine(), **_files()}
    if as_json:
        print_json(facts)
        return
    print_table(["what", "found"], [[k, str(v)] for k, v in facts.items()])


def _versions() -> dict[str, str]:
    facts = {"microtome": _version("microtome"), "Python": platform.python_version()}
    facts.update({name: _version(name) for name in PACKAGES})
    for extra, module in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        facts[f"extra [{extra}]"] = (
            "installed" if there else f"not installed: pip install 'microtome[{extra}]'"
        )
    return facts


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _machine() -> dict[str, object]:
    import torch

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [
            f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())
        ]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "devices": ", ".join(devices),
        "processors": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
    }


def _files() -> dict[str, str]:
    from microtome.models.specimens import specimen_names
    from microtome.store.runs import home as home_folder

    folder = home_folder()
    existing = folder
    while not existing.exists():
        existing = existing.parent
    shared = Path(os.environ.get("MICROTOME_SHARED_DATA", "../shared/data"))
    return {
        "specimens": ", ".join(specimen_names()) or "none",
        "home": f"{folder} ({'writable' if os.access(existing, os.W_OK) else 'NOT writable'})",
        "hub": "offline" if os.environ.get("HF_HUB_OFFLINE") == "1" else "asked only for a hub id",
        "shared test data": str(shared) if shared.is_dir() else f"not found at {shared}",
    }
