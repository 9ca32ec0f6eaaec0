"""The base of every result: a frozen dataclass that can be saved, loaded and shown."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np

from microtome.core.hashing import sha256_arrays
from microtome.core.intervals import Interval, three_digits
from microtome.core.plain import is_data_array, is_frame, plain
from microtome.core.provenance import Provenance
from microtome.errors import ConfigError, FormatError, nearest
from microtome.store.arrays import load_arrays, save_arrays
from microtome.store.atomic import write_text
from microtome.store.codec import Decoder, Encoder

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = "microtome.result"
_SCHEMAS: dict[str, type[Result]] = {}


class Result:
    """Base of result types: subclass it, then decorate with ``@dataclass(frozen=True, eq=False)``.

    Fields may hold numbers, texts, tuples, mappings, frozen sets, numpy arrays, DataFrames,
    DataArrays, ``Interval``, ``Provenance`` and other results.

    Attributes:
        schema: Name of the file format, the class name with dashes unless given as
            ``class Circuit(Result, schema="circuit", version=2)``.
        version: Version of the file format; raise it when the fields change.
        provenance: Where the result comes from; results that stand alone override it with a
            field of this name.
    """

    schema: ClassVar[str]
    version: ClassVar[int]
    provenance: Provenance | None = None

    def __init_subclass__(cls, *, schema: str | None = None, version: int = 1) -> None:
        """Register the class under its schema, so that files can be read back."""
        super().__init_subclass__()
        cls.schema = schema or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()
        cls.version = version
        known = _SCHEMAS.get(cls.schema)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise ConfigError(
                f"schema {cls.schema!r} of {cls.__qualname__} is taken by {known.__qualname__}; "
                'give another as class ...(Result, schema="...")'
            )
        _SCHEMAS[cls.schema] = cls

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can express, schema included."""
        fields = {name: plain(value) for name, value in _fields(self).items()}
        return {"schema": self.schema, "version": self.version} | fields

    def to_frame(self) -> pd.DataFrame:
        """Return the result as a table: here one row per field; subclasses know better."""
        import pandas as pd

        rows = [(name, _brief(value)) for name, value in _fields(self).items()]
        return pd.DataFrame(rows, columns=["field", "value"])

    def save(self, path: str | Path) -> Path:
        """Write the result as a JSON file, and its arrays as safetensors beside it.

        The arrays' file carries a part of their hash in its name and is written first, so
        that the JSON file always refers to arrays that are there and are its own.

        Args:
            path: Path of the JSON file; ``.json`` is added where it has another ending.

        Returns:
            The path of the JSON file.

        Raises:
            OutputError: A file could not be written.
            DataError: A field holds a value of a kind that cannot be stored.
        """
        place = Path(path)
        if place.suffix != ".json":
            place = place.with_name(place.name + ".json")
        encoder = Encoder(_encode_nested)
        document = {"format": _FORMAT} | _encode_nested(self, encoder) | {"arrays": None}
        if encoder.arrays:
            document["arrays"] = _save_aside(place, encoder, self.schema)
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        write_text(place, text + "\n")
        _remove_stale(place, document["arrays"])
        return place

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a result that ``save`` wrote.

        Args:
            path: Path of the JSON file.

        Returns:
            The result; called on ``Result`` itself, of whatever class the file names.

        Raises:
            FormatError: The file is missing, damaged, of another kind or of a newer version.
        """
        place = Path(path)
        document = _read_document(place)
        arrays = _load_aside(place, document.get("arrays"))
        result = _decode_nested(document, Decoder(arrays, _decode_nested), place=place)
        if not isinstance(result, cls):
            raise FormatError(
                f"{place} holds a result of kind {result.schema!r}, not {cls.schema!r}; "
                f"read it with {type(result).__name__}.load"
            )
        return result

    def _repr_html_(self) -> str:
        """Return a small table of the fields, for notebooks."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(_brief(value))}</td></tr>"
            for name, value in _fields(self).items()
        )
        title = html.escape(type(self).__name__)
        return f"<table><caption>{title}</caption><tbody>{rows}</tbody></table>"


def _fields(result: Any) -> dict[str, Any]:
    """Return the name and value of each dataclass field of a result."""
    if not dataclasses.is_dataclass(result) or isinstance(result, type):
        raise ConfigError(f"{type(result).__name__} is no dataclass; decorate it with @dataclass")
    return {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}


def _encode_nested(value: Any, encoder: Encoder) -> Any:
    """Return the JSON form of a result, or None for any other value."""
    if not isinstance(value, Result):
        return None
    fields = {name: encoder.encode(item) for name, item in _fields(value).items()}
    return {"$": "result", "schema": value.schema, "version": value.version, "fields": fields}


def _decode_nested(document: Any, decoder: Decoder, *, place: Path | None = None) -> Result:
    """Return the result that a JSON form stands for."""
    where = f"{place}" if place else "a nested result"
    schema, version = document.get("schema"), document.get("version")
    cls = _SCHEMAS.get(str(schema))
    if cls is None:
        raise FormatError(
            f"{where} is of the unknown kind {schema!r}{nearest(str(schema), _SCHEMAS)}; update "
            "microtome, or import the package that defines it first"
        )
    if not isinstance(version, int) or version > cls.version:
        raise FormatError(
            f"{where} has version {version} of {schema!r}, this microtome reads up to "
            f"{cls.version}; update microtome"
        )
    names = {f.name for f in dataclasses.fields(cast(Any, cls))}
    fields = {name: decoder.decode(item) for name, item in document.get("fields", {}).items()}
    if unknown := sorted(set(fields) - names):
        raise FormatError(f"{where} has the unknown fields {unknown} of {schema!r}; write it again")
    try:
        return cls(**fields)
    except TypeError as error:
        raise FormatError(
            f"{where} lacks fields of {schema!r} ({error}); write it again"
        ) from error


def _save_aside(place: Path, encoder: Encoder, schema: str) -> dict[str, str]:
    """Write a result's arrays beside its JSON file and return what refers to them."""
    digest = sha256_arrays(encoder.arrays)
    name = f"{place.stem}-{digest[:12]}.safetensors"
    metadata = {"format": _FORMAT, "schema": schema}
    save_arrays(place.with_name(name), encoder.arrays, metadata=metadata)
    return {"file": name, "sha256": digest}


def _load_aside(place: Path, reference: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays a document refers to, checked against their hash."""
    if reference is None:
        return {}
    if not isinstance(reference, dict) or not {"file", "sha256"} <= set(reference):
        raise FormatError(f"{place} refers to its arrays in an unknown way; write it again")
    file = place.with_name(Path(str(reference["file"])).name)
    if not file.is_file():
        raise FormatError(f"{place} needs {file.name} beside it; move both files together")
    arrays = load_arrays(file)
    if sha256_arrays(arrays) != reference["sha256"]:
        raise FormatError(f"{file} does not hold the arrays of {place.name}; write them again")
    return arrays


def _read_document(place: Path) -> dict[str, Any]:
    """Return the JSON document of a result file."""
    try:
        document = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(
            f"cannot read {place}: {error.strerror}; give an existing file"
        ) from error
    except ValueError as error:
        raise FormatError(
            f"{place} is not JSON or is truncated ({error}); write it again"
        ) from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise FormatError(f"{place} is no result of microtome; expected a file that save() wrote")
    return document


def _remove_stale(place: Path, reference: dict[str, str] | None) -> None:
    """Remove the arrays that an earlier save of the same JSON file left beside it."""
    pattern = re.compile(re.escape(place.stem) + r"-[0-9a-f]{12}\.safetensors")
    for file in place.parent.iterdir():
        if pattern.fullmatch(file.name) and file.name != (reference or {}).get("file"):
            file.unlink(missing_ok=True)


def _brief(value: Any) -> str:
    """Return a value in a few words: arrays and tables by their shape."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array {list(value.shape)}"
    if is_frame(value):
        return f"table of {value.shape[0]} rows, {value.shape[1]} columns"
    if is_data_array(value):
        return "array " + ", ".join(
            f"{d} {n}" for d, n in zip(value.dims, value.shape, strict=True)
        )
    if isinstance(value, Interval | str):
        return str(value)
    if isinstance(value, Provenance):
        return ", ".join(filter(None, (value.model, value.command, value.created)))
    if isinstance(value, Result):
        return type(value).__name__
    if isinstance(value, float):
        return three_digits(value)
    if isinstance(value, tuple | list | dict | frozenset) and len(value) > 8:
        return f"{len(value)} entries"
    return str(value)
