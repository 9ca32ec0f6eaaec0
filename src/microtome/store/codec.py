"""A result's fields as a JSON document and named arrays, and back without loss.

Values that JSON has no word for are written as an object with the key ``$``, which names
the kind: ``{"$": "tuple", "items": [...]}``. Arrays of numbers stand aside under a name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.core.intervals import Interval
from microtome.core.plain import is_data_array, is_frame
from microtome.core.provenance import Provenance
from microtome.errors import DataError, FormatError

_VALUES: dict[str, type] = {"interval": Interval, "provenance": Provenance}


class Encoder:
    """Turns values into JSON and collects the arrays met on the way.

    Attributes:
        arrays: Name to the array that the document refers to by that name.
    """

    def __init__(self, nested: Callable[[Any, Encoder], Any]) -> None:
        """Take the function that encodes a nested result, or returns None for other values."""
        self.arrays: dict[str, NDArray[Any]] = {}
        self._nested = nested

    def encode(self, value: Any) -> Any:
        """Return the JSON form of a value.

        Raises:
            DataError: The value is of a kind that a result may not hold.
        """
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            finite = math.isfinite(value)
            return float(value) if finite else {"$": "float", "value": str(float(value))}
        if isinstance(value, np.generic):
            return self.encode(value.item())
        if isinstance(value, list):
            return [self.encode(item) for item in value]
        if isinstance(value, tuple):
            return {"$": "tuple", "items": [self.encode(item) for item in value]}
        if isinstance(value, frozenset):
            items = sorted(value, key=lambda item: (type(item).__name__, item))
            return {"$": "frozenset", "items": [self.encode(item) for item in items]}
        if isinstance(value, Mapping):
            return self._mapping(value)
        return self._object(value)

    def _mapping(self, value: Mapping[Any, Any]) -> Any:
        """Encode a mapping; one with keys that are not plain text as a list of pairs."""
        if all(isinstance(key, str) and key != "$" for key in value):
            return {key: self.encode(item) for key, item in value.items()}
        pairs = [[self.encode(key), self.encode(item)] for key, item in value.items()]
        return {"$": "mapping", "items": pairs}

    def _object(self, value: Any) -> Any:
        """Encode an array, table, labelled array, known value type or nested result."""
        if isinstance(value, np.ndarray):
            return self._array(value)
        if is_frame(value):
            return self._frame(value)
        if is_data_array(value):
            return self._data_array(value)
        for kind, cls in _VALUES.items():
            if isinstance(value, cls):
                fields = vars(value)
                return {"$": kind} | {name: self.encode(item) for name, item in fields.items()}
        nested = self._nested(value, self)
        if nested is None:
            raise DataError(
                f"a result cannot hold a {type(value).__name__}; expected numbers, texts, tuples, "
                "mappings, numpy arrays, DataFrames, DataArrays, intervals or results"
            )
        return nested

    def _array(self, value: NDArray[Any]) -> dict[str, Any]:
        """Set an array of numbers aside under a new name; write one of texts in place."""
        if value.dtype.kind in "biufc":
            name = f"array{len(self.arrays)}"
            self.arrays[name] = value
            return {"$": "array", "name": name}
        if value.dtype.kind not in "OU":
            raise DataError(f"a result cannot hold an array of {value.dtype}; use numbers or texts")
        items = [self.encode(item) for item in value.ravel().tolist()]
        kind = "object" if value.dtype.kind == "O" else "str"
        return {"$": "texts", "dtype": kind, "shape": list(value.shape), "items": items}

    def _frame(self, frame: Any) -> dict[str, Any]:
        """Encode a table column by column, with the dtypes and the index."""
        index = frame.index
        plain_index = index.equals(type(frame)(index=range(len(frame))).index) and (
            index.names == [None]
        )
        levels = [index.get_level_values(i) for i in range(index.nlevels)]
        return {
            "$": "table",
            "names": [self.encode(name) for name in frame.columns],
            "columns": [self._column(frame.iloc[:, i]) for i in range(frame.shape[1])],
            "rows": len(frame),
            "index": None if plain_index else [self._column(level) for level in levels],
            "index_names": [self.encode(name) for name in index.names],
        }

    def _column(self, column: Any) -> dict[str, Any]:
        """Encode one column: numbers as an array, anything else value by value."""
        dtype = str(column.dtype)
        if getattr(column.dtype, "kind", "O") in "biuf" and isinstance(column.dtype, np.dtype):
            return {"dtype": dtype, "values": self._array(column.to_numpy())}
        if dtype not in ("object", "str", "string", "category"):
            raise DataError(f"a result cannot hold a column of {dtype}; use numbers or texts")
        items = [None if item != item else item for item in column.astype(object)]
        return {"dtype": dtype, "values": [self.encode(item) for item in items]}

    def _data_array(self, array: Any) -> dict[str, Any]:
        """Encode a labelled array with its coordinates and attributes."""
        return {
            "$": "labelled",
            "name": self.encode(array.name),
            "dims": list(array.dims),
            "values": self._array(np.asarray(array.values)),
            "coords": [
                [str(name), list(coord.dims), self._array(np.asarray(coord.values))]
                for name, coord in array.coords.items()
            ],
            "attrs": self._mapping(array.attrs),
        }


class Decoder:
    """Turns the JSON form back into values."""

    def __init__(
        self, arrays: Mapping[str, NDArray[Any]], nested: Callable[[Any, Decoder], Any]
    ) -> None:
        """Take the arrays set aside and the function that decodes a nested result."""
        self._arrays = arrays
        self._kinds: dict[str, Callable[[Any], Any]] = {
            "float": lambda value: float(value["value"]),
            "tuple": lambda value: tuple(map(self.decode, value["items"])),
            "frozenset": lambda value: frozenset(map(self.decode, value["items"])),
            "mapping": lambda value: {self.decode(k): self.decode(v) for k, v in value["items"]},
            "array": lambda value: self._arrays[value["name"]],
            "texts": self._texts,
            "table": self._table,
            "labelled": self._labelled,
            "result": lambda value: nested(value, self),
        }

    def decode(self, value: Any) -> Any:
        """Return the value that a JSON form stands for.

        Raises:
            FormatError: The form is of an unknown kind or incomplete.
        """
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$" not in value:
            return {key: self.decode(item) for key, item in value.items()}
        kind = value["$"]
        try:
            if kind in _VALUES:
                fields = {key: self.decode(item) for key, item in value.items() if key != "$"}
                return _VALUES[kind](**fields)
            if kind not in self._kinds:
                raise FormatError(f"a value of unknown kind {kind!r}; update microtome to read it")
            return self._kinds[kind](value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(
                f"a damaged value of kind {kind!r} ({error}); write it again"
            ) from error

    def _texts(self, value: Any) -> NDArray[Any]:
        """Return an array of texts, or of objects, in its shape."""
        items = self.decode(value["items"])
        if value["dtype"] == "str":
            return np.array(items, dtype=str).reshape(value["shape"])
        array = np.empty(len(items), dtype=object)
        array[:] = items
        return array.reshape(value["shape"])

    def _column(self, value: Any) -> Any:
        """Return one column of a table, in its dtype."""
        import pandas as pd

        values = self.decode(value["values"])
        return pd.Series(values, dtype=value["dtype"])

    def _table(self, value: Any) -> Any:
        """Return a DataFrame."""
        import pandas as pd

        columns = {i: self._column(column) for i, column in enumerate(value["columns"])}
        frame = pd.DataFrame(columns, index=range(value["rows"]))
        names = self.decode(value["index_names"])
        if value["index"] is not None:
            levels = [self._column(level) for level in value["index"]]
            if len(levels) == 1:
                frame.index = pd.Index(levels[0], name=names[0])
            else:
                frame.index = pd.MultiIndex.from_arrays(levels, names=names)
        frame.columns = pd.Index(self.decode(value["names"]))
        return frame

    def _labelled(self, value: Any) -> Any:
        """Return a DataArray."""
        import xarray as xr

        coords = {name: (dims, self.decode(values)) for name, dims, values in value["coords"]}
        return xr.DataArray(
            self.decode(value["values"]),
            dims=value["dims"],
            coords=coords,
            name=value["name"],
            attrs=self.decode(value["attrs"]),
        )
