"""The state of a training run on disk: one file, old or new and never a part.

It holds all that the rest of the run depends on. The order of the rows is a function of data and
seed, and every draw has a stream of its own named by its step, so the number of the next step
stands for all random states: a run that was killed and goes on computes the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microtome.errors import ConfigError, FormatError, OutputError
from microtome.store.arrays import load_arrays, load_metadata, save_arrays

FILE, KIND, VERSION = "checkpoint.safetensors", "microtome.sae.checkpoint", 1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run between two steps.

    Attributes:
        identity: What the run is: settings, make, sites, data, precision.
        counters: Numbers that go on: steps done, what the selector remembers, sums of metrics.
        tensors: Weights, the optimizer's averages, rows since each latent fired.
    """

    identity: Mapping[str, Any]
    counters: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def save(self, folder: Path) -> Path:
        """Write it in place of the last one.

        Raises:
            OutputError: The folder cannot be written or the disk is full; the last one stays.
        """
        head = {"kind": KIND, "version": VERSION, "identity": self.identity}
        text = json.dumps(head | {"counters": self.counters})
        arrays = {name: value.detach().cpu() for name, value in self.tensors.items()}
        return save_arrays(folder / FILE, arrays, metadata={"microtome": text})

    @staticmethod
    def load(folder: Path) -> Checkpoint | None:
        """Read the checkpoint of a folder, None if there is none.

        Raises:
            FormatError: The file is damaged, of another kind or newer.
            OutputError: The folder has a name that the disk does not take.
        """
        path = folder / FILE
        try:
            if not path.is_file():
                return None
        except OSError as error:
            raise OutputError(
                f"cannot use {folder}: {error.strerror}; choose another folder"
            ) from error
        try:
            head = json.loads(load_metadata(path)["microtome"])
            if head["kind"] != KIND or head["version"] > VERSION:
                raise FormatError(
                    f"{path} is {head['kind']!r} version {head['version']}; expected {KIND!r} up "
                    f"to version {VERSION}: update microtome or choose another folder"
                )
            counters, identity = dict(head["counters"]), dict(head["identity"])
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"{path} is no checkpoint of a training run ({error}); choose another folder"
            ) from error
        tensors = {name: torch.from_numpy(a) for name, a in load_arrays(path).items()}
        return Checkpoint(identity, counters, tensors)

    def require_tensors(self, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
        """Refuse tensors of other names or shapes than those of the run.

        Raises:
            FormatError: They differ, so that the file was damaged.
        """
        found = {name: tuple(value.shape) for name, value in self.tensors.items()}
        odd = sorted(n for n in found.keys() | shapes.keys() if found.get(n) != shapes.get(n))
        if odd:
            raise damaged(folder, f"missing, unknown or of another shape: {', '.join(odd[:3])}")

    def require(self, identity: Mapping[str, Any], folder: Path) -> None:
        """Refuse to go on with another run's checkpoint.

        Raises:
            ConfigError: The run differs; the message names the differences.
        """
        found = _flat(json.loads(json.dumps(identity)))
        kept = _flat(dict(self.identity))
        different = [
            f"{name} is {found.get(name)!r}, was {kept.get(name)!r}"
            for name in sorted(found.keys() | kept.keys())
            if found.get(name) != kept.get(name)
        ]
        if different:
            raise ConfigError(
                f"{folder} holds another run after {self.counters.get('step')} steps: "
                f"{'; '.join(different[:6])}; go on with the same settings and data, or choose "
                "another folder"
            )


def damaged(folder: Path, why: object) -> FormatError:
    """Return the error for a checkpoint that is whole but does not hold what it should."""
    return FormatError(
        f"{folder / FILE} is damaged ({why}); delete it to begin the run again, or choose another "
        "folder"
    )


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested values by dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[before + name] = value
    return found
