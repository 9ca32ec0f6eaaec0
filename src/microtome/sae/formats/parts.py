"""What every format reads through: JSON with checked fields, tensors with checked shapes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microtome.errors import ConfigError, FormatError, nearest
from microtome.sae.architecture import Architecture
from microtome.store.arrays import check_safetensors

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FormatError: The file is missing, no JSON, or no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}; give a whole folder") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON ({error}); write or fetch it again") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def want(config: Mapping[str, Any], name: str, kind: type | tuple[type, ...], path: Path) -> Any:
    """Return a field of a configuration.

    Raises:
        FormatError: It is missing or of another kind.
    """
    if name not in config:
        raise FormatError(f"{path} has no {name!r}{nearest(name, config)}")
    value = config[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise FormatError(f"{name} in {path} is {value!r}; expected {_words(kind)}")
    return value


def whole(value: Any, name: str, path: Path) -> int:
    """Return a count, whatever type of number it was written in.

    Raises:
        FormatError: It is no number, not whole, or below 1.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (value >= 1 and value == value // 1):
        raise FormatError(f"{name} in {path} is {value!r}; expected a whole number from 1")
    return int(value)


def fitting(path: Path, make: Callable[[], Architecture]) -> Architecture:
    """Return the architecture that a file describes.

    Raises:
        FormatError: Its values do not fit together.
    """
    try:
        return make()
    except (ConfigError, TypeError, ValueError) as error:
        raise FormatError(f"{path} describes no coder: {error}") from error


def _words(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(k.__name__ for k in kinds)


@dataclass(frozen=True, eq=False)
class Tensors:
    """Named tensors of one file, taken one by one with their shapes checked.

    Attributes:
        path: The file.
        values: Name to tensor.
    """

    path: Path
    values: Mapping[str, Tensor]

    @staticmethod
    def read(path: Path) -> Tensors:
        """Read a safetensors file.

        Raises:
            FormatError: The file is missing, truncated or of another format.
            UnsafeFileError: It is a pickle.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        check_safetensors(path)
        try:
            return Tensors(path, load_file(str(path)))
        except SafetensorError as error:
            raise FormatError(f"cannot read {path}: {error}; write or fetch it again") from error

    def take(self, name: str, *shape: int) -> Tensor:
        """Return a tensor in float32 (float64 stays), checked for shape and finite values.

        Raises:
            FormatError: It is missing, of another shape, or holds NaN or infinity.
        """
        if name not in self.values:
            raise FormatError(f"{self.path} has no tensor {name!r}{nearest(name, self.values)}")
        value = self.values[name]
        if tuple(value.shape) != shape:
            raise FormatError(
                f"{name} in {self.path} has shape {tuple(value.shape)}; expected {shape}"
            )
        plain = value.dtype in DTYPES.values() and value.layout == torch.strided
        if not plain or value.is_meta or not bool(torch.isfinite(value).all()):
            raise FormatError(
                f"{name} in {self.path} is {value.dtype} or holds NaN or infinity; expected "
                f"finite floating-point numbers in {', '.join(DTYPES)}"
            )
        return value if value.dtype == torch.float64 else value.float()

    def number(self, name: str) -> int:
        """Return a whole number that is stored as a tensor.

        Raises:
            FormatError: It is missing, not a single number, or not whole.
        """
        if name not in self.values:
            raise FormatError(f"{self.path} has no tensor {name!r}{nearest(name, self.values)}")
        value = self.values[name]
        return whole(value.item() if value.numel() == 1 else None, name, self.path)

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """Return the shape of a tensor of a given number of axes.

        Raises:
            FormatError: It is missing or has another number of axes.
        """
        if name not in self.values:
            raise FormatError(f"{self.path} has no tensor {name!r}{nearest(name, self.values)}")
        found = tuple(self.values[name].shape)
        if len(found) != axes:
            raise FormatError(f"{name} in {self.path} has shape {found}; expected {axes} axes")
        return found
