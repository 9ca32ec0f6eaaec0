"""Where a result comes from: enough to compute it again."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib.metadata
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microtome.core.plain import plain

_PACKAGES = ("microtome", "torch", "transformers", "tokenizers", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True)
class Provenance:
    """What a result was computed from and with.

    Attributes:
        model: Name, folder or hub id of the model, or ``""``.
        fingerprint: Hash of the model's weights and configuration, or ``""``.
        config: The method's settings, as plain values.
        versions: Package to version, Python included.
        seed: The seed given, or None where nothing was drawn.
        threads: Number of threads torch computed with, or None without torch.
        dtype: The model's dtype, for example ``"float32"``.
        device: The model's device, for example ``"cpu"``.
        command: The command line that ran.
        created: Time in UTC, ISO 8601.
    """

    model: str = ""
    fingerprint: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    threads: int | None = None
    dtype: str = ""
    device: str = ""
    command: str = ""
    created: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can express."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}


def collect(
    model: Any = None,
    config: Any = None,
    *,
    seed: int | None = None,
    command: str | None = None,
) -> Provenance:
    """Gather the provenance of a result that is about to be computed.

    Args:
        model: A ``Model``, or anything with ``name``, ``fingerprint``, ``dtype`` and ``device``.
        config: A dataclass or mapping with the method's settings.
        seed: The seed in use.
        command: The command that reproduces the result; the running command line by default.

    Returns:
        The filled value.
    """
    torch = sys.modules.get("torch")
    return Provenance(
        model=_text(model, "name"),
        fingerprint=_text(model, "fingerprint"),
        config=plain(config) if config is not None else {},
        versions=dict(versions()),
        seed=seed,
        threads=torch.get_num_threads() if torch is not None else None,
        dtype=_text(model, "dtype").removeprefix("torch."),
        device=_text(model, "device"),
        command=_command_line() if command is None else command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


@functools.cache
def versions() -> Mapping[str, str]:
    """Return the versions of Python and of the packages that decide a result's numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _text(model: Any, attribute: str) -> str:
    """Return an attribute of the model as text, or ``""`` where there is none."""
    value = getattr(model, attribute, None)
    return "" if value is None else str(value)


def _command_line() -> str:
    """Return the running command line, the program without its folder."""
    if not sys.argv or not sys.argv[0]:
        return ""
    path = Path(sys.argv[0])
    name = path.parent.name if path.name == "__main__.py" else path.name
    return shlex.join([name, *sys.argv[1:]])
