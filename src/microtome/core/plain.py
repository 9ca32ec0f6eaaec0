"""Any value of a result as plain lists, mappings, numbers and texts."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np

from microtome.errors import DataError


def plain(value: Any) -> Any:
    """Return a value in the form that strict JSON can express.

    Arrays become nested lists, tables lists of records, labelled arrays mappings with
    ``dims``, ``coords`` and ``values``, sets sorted lists; numbers that are not finite
    become None, since JSON has no word for them.

    Args:
        value: A scalar, text, path, sequence, set, mapping, array, tensor, DataFrame,
            DataArray, dataclass, or anything with ``to_dict()``.

    Raises:
        DataError: The value is of none of these kinds.

    Example:
        >>> import numpy as np
        >>> plain({"a": np.array([1.0, np.nan]), "b": (1, 2)})
        {'a': [1.0, None], 'b': [1, 2]}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(item) for item in value]
    if isinstance(value, AbstractSet):
        return [plain(item) for item in sorted(value, key=_sort_key)]
    return _plain_object(value)


def _sort_key(value: Any) -> tuple[str, Any]:
    """Order members of one type by value, members of several types by the type's name."""
    return type(value).__name__, value


def _plain_object(value: Any) -> Any:
    """Return the plain form of a table, labelled array, tensor or dataclass."""
    if is_frame(value):
        return [plain(record) for record in value.to_dict(orient="records")]
    if is_data_array(value):
        coords = {str(name): plain(coord.values) for name, coord in value.coords.items()}
        return {"dims": list(value.dims), "coords": coords, "values": plain(value.values)}
    if is_tensor(value):
        return plain(value.detach().cpu().tolist())
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    raise DataError(
        f"a value of type {type(value).__name__} has no plain form; expected numbers, texts, "
        "sequences, mappings, arrays, tables or dataclasses"
    )


def is_frame(value: Any) -> bool:
    """Return whether a value is a pandas DataFrame, without importing pandas."""
    return _is_a(value, "pandas", "DataFrame")


def is_data_array(value: Any) -> bool:
    """Return whether a value is an xarray DataArray, without importing xarray."""
    return _is_a(value, "xarray", "DataArray")


def is_tensor(value: Any) -> bool:
    """Return whether a value is a torch tensor, without importing torch."""
    return _is_a(value, "torch", "Tensor")


def _is_a(value: Any, module: str, name: str) -> bool:
    """Return whether a value is of a class whose module may not be loaded.

    A value can only be of a class whose module has been imported already.
    """
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))
