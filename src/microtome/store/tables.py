"""Tables of text rows on disk: JSON Lines and CSV, with row numbers in every error."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from microtome.core.plain import is_frame, plain
from microtome.errors import DataError, EmptyDataError
from microtome.store.atomic import write_text


class Row(dict[str, Any]):
    """One row of a table: column to value, and where it stood.

    Attributes:
        number: Line of the file, counted from 1; for CSV the line where the row ends.
        source: Path of the file.
    """

    def __init__(self, values: Mapping[str, Any], *, number: int, source: str) -> None:
        """Take the values and the place they were read from."""
        super().__init__(values)
        self.number = number
        self.source = source

    @property
    def place(self) -> str:
        """Where the row stood, for messages: ``"pairs.csv, row 12"``."""
        return f"{self.source}, row {self.number}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's members; the second of two of one name is refused, not taken."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return found


def read_jsonl(path: str | Path) -> list[Row]:
    """Read a JSON Lines file: one JSON object per line, empty lines skipped.

    Args:
        path: The file, in UTF-8.

    Returns:
        The rows in order, each with its line number.

    Raises:
        DataError: The file is missing or binary, or a line is not a JSON object or names a
            member twice; the message names the row.
        EmptyDataError: There are no rows.
    """
    rows = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, row {number}: not JSON ({error}); correct the line"
            ) from error
        if not isinstance(values, dict):
            raise DataError(
                f"{path}, row {number}: a JSON {type(values).__name__}; expected an object in {{}}"
            )
        rows.append(Row(values, number=number, source=str(path)))
    return _not_empty(rows, path)


def read_csv(path: str | Path) -> list[Row]:
    """Read a CSV file with a header line; every value is text.

    Args:
        path: The file, in UTF-8, comma separated, quoted as RFC 4180 says.

    Returns:
        The rows in order, each with its line number.

    Raises:
        DataError: The file is missing or binary, the header is empty or repeats a name, or
            a row has another number of fields than the header; the message names the row.
        EmptyDataError: There are no rows below the header.
    """
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    try:
        for fields in reader:
            if not fields:
                continue
            if header is None:
                header = _header(fields, path)
            elif len(fields) != len(header):
                raise DataError(
                    f"{path}, row {reader.line_num}: {len(fields)} fields where the header has "
                    f"{len(header)}; quote values that hold commas"
                )
            else:
                values = dict(zip(header, fields, strict=True))
                rows.append(Row(values, number=reader.line_num, source=str(path)))
    except csv.Error as error:
        raise DataError(f"{path}, row {reader.line_num}: {error}; correct the quotes") from error
    return _not_empty(rows, path)


def write_jsonl(path: str | Path, rows: Any) -> Path:
    """Write rows (an iterable of mappings) or a DataFrame as JSON Lines, atomically.

    Raises:
        OutputError: The file could not be written.
        DataError: A value has no plain form.
    """
    lines = [json.dumps(plain(row), ensure_ascii=False, allow_nan=False) for row in _rows(rows)]
    return write_text(path, "".join(line + "\n" for line in lines))


def write_csv(path: str | Path, rows: Any) -> Path:
    """Write rows (an iterable of mappings) or a DataFrame as CSV (RFC 4180), atomically.

    The columns are those of all rows in the order they first appear; a missing value, None
    or NaN is an empty field. The index of a DataFrame is not written.

    Raises:
        OutputError: The file could not be written.
        DataError: A value has no plain form.
    """
    records = [plain(row) for row in _rows(rows)]
    columns = [str(name) for name in rows.columns] if is_frame(rows) else []
    names = list(dict.fromkeys(columns + [name for record in records for name in record]))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, names, restval="", lineterminator="\r\n")
    writer.writeheader()
    for record in records:
        writer.writerow({name: _field(value) for name, value in record.items()})
    return write_text(path, buffer.getvalue())


def _rows(rows: Any) -> Iterable[Mapping[str, Any]]:
    """Return the rows of a DataFrame or of an iterable of mappings."""
    found: Iterable[Mapping[str, Any]] = rows.to_dict("records") if is_frame(rows) else rows
    return found


def _field(value: Any) -> Any:
    """Return a value as one CSV field; lists and mappings as JSON text."""
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _read_text(path: str | Path) -> str:
    """Return a file's text, refusing what is not UTF-8 text."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give an existing file") from error
    if b"\x00" in data:
        raise DataError(f"{path} is a binary file; expected text in UTF-8 (JSONL or CSV)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, row {row}: byte 0x{data[error.start]:02x} is not UTF-8; "
            "save the file as text in UTF-8"
        ) from error


def _header(fields: list[str], path: str | Path) -> list[str]:
    """Return the column names of a CSV file, refusing empty and repeated ones."""
    names = [name.strip() for name in fields]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or "" in names:
        what = f"repeats the column {repeated[0]!r}" if repeated else "has a column without a name"
        raise DataError(f"{path}, row 1: the header {what}; give every column its own name")
    return names


def _not_empty(rows: list[Row], path: str | Path) -> list[Row]:
    """Return the rows, refusing none."""
    if not rows:
        raise EmptyDataError(f"{path} holds no rows; expected at least one")
    return rows
