from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.errors import DataError, EmptyDataError
from microtome.store.tables import read_csv, read_jsonl, write_csv, write_jsonl


def test_jsonl_round_trip_with_row_numbers(tmp_path) -> None:
    rows = [{"a": 1, "t": "é\u2028x"}, {"a": None, "b": [1, {"c": 2}]}]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    file.write_text("\n" + file.read_text(encoding="utf-8").replace("\n", "\n\n"), encoding="utf-8")
    found = read_jsonl(file)
    assert found == rows
    assert [row.number for row in found] == [2, 4]
    assert found[1].place == f"{file}, row 4"


def test_csv_round_trip(tmp_path) -> None:
    rows = [{"a": "x,y", "b": 'say "hi"'}, {"a": "two\nlines", "c": "3"}]
    found = read_csv(write_csv(tmp_path / "a.csv", rows))
    assert found == [
        {"a": "x,y", "b": 'say "hi"', "c": ""},
        {"a": "two\nlines", "b": "", "c": "3"},
    ]
    assert [row.number for row in found] == [2, 4]


texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"))


@given(st.lists(st.dictionaries(texts, texts | st.integers() | st.booleans()), min_size=1))
def test_jsonl_keeps_any_text(rows) -> None:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        assert read_jsonl(write_jsonl(Path(folder) / "a", rows)) == rows


@given(st.lists(st.tuples(texts, texts), min_size=1))
def test_csv_keeps_any_text(rows) -> None:
    import tempfile
    from pathlib import Path

    records = [{"a": a, "b": b} for a, b in rows]
    with tempfile.TemporaryDirectory() as folder:
        assert read_csv(write_csv(Path(folder) / "a", records)) == records


def test_frames_are_written_with_their_columns(tmp_path) -> None:
    frame = pd.DataFrame({"x": [1.5, np.nan], "y": ["a", None]})
    assert write_csv(tmp_path / "a.csv", frame).read_bytes() == b"x,y\r\n1.5,a\r\n,\r\n"
    assert write_csv(tmp_path / "b.csv", frame[:0]).read_bytes() == b"x,y\r\n"
    assert read_jsonl(write_jsonl(tmp_path / "a.jsonl", frame))[1] == {"x": None, "y": None}


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfname,x\r\nb,2\r\n")
    assert read_csv(tmp_path / "a.csv") == [{"name": "b", "x": "2"}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1}\n{"a": \n', "row 2: not JSON"),
        (b'{"a": 1}\n\n[1]\n', "row 3: a JSON list"),
        (b"\x89PNG\x00\x1a", "binary file"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "row 2: byte 0xff is not UTF-8"),
    ],
)
def test_bad_jsonl_names_the_row(tmp_path, content, words) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_jsonl(tmp_path / "a.jsonl")
    assert "a.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a,b\n1,2\n1,2,3\n", "row 3: 3 fields where the header has 2"),
        (b'a,b\n"x"y,2\n', "row 2"),
        (b'a,b\n"open,2\n', "row 2"),
        (b"a,a\n1,2\n", "repeats the column 'a'"),
        (b"a,\n1,2\n", "without a name"),
        (b"a\n\x00\n", "binary file"),
    ],
)
def test_bad_csv_names_the_row(tmp_path, content, words) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_csv(tmp_path / "a.csv")


@pytest.mark.parametrize("read", [read_csv, read_jsonl])
def test_empty_and_missing_files(tmp_path, read) -> None:
    for content in (b"", b"\n\n"):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(EmptyDataError, match="no rows"):
            read(tmp_path / "a")
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError, match="cannot read"):
            read(path)
