"""Contrast files as they come: marks of their own, blank lines, pipes, the same prompt twice."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from tests.small import code_tokenizer

from microtome.behaviors import get
from microtome.behaviors.contrasts import contrast
from microtome.behaviors.preparation import Encoder, _Fitting
from microtome.errors import DataError, PairError


def two(folder: Path, first: str, second: str) -> tuple[Path, Path]:
    """Write two files of prompts."""
    places = folder / "a.txt", folder / "b.txt"
    for place, text in zip(places, (first, second), strict=True):
        place.write_bytes(text.encode())
    return places


def test_only_line_ends_end_a_prompt(tmp_path: Path) -> None:
    files = two(tmp_path, "\ufeffone\u2028more\r\nt\x0cwo\n", "un\ndeux\n")
    made = contrast(*files, answers=" yes", wrongs=" no")
    assert [(i.clean, i.corrupt) for i in made.items] == [
        ("one\u2028more", "un"),
        ("t\fwo", "deux"),
    ]


def test_blank_lines_do_not_shift_the_pairs(tmp_path: Path) -> None:
    files = two(tmp_path, "one\n\nthree\n\n", "un\n\ntrois\n")
    made = contrast(*files, answers=" yes", wrongs=" no")
    assert [(i.corrupt, i.source) for i in made.items] == [
        ("un", "a.txt, line 1"), ("trois", "a.txt, line 3"),
    ]  # fmt: skip
    files = two(tmp_path, "one\n\nthree\n", "un\ndeux\n\n")
    with pytest.raises(PairError, match="Line 2 holds a prompt in .*b.txt only"):
        contrast(*files, answers=" yes", wrongs=" no")


def test_a_pipe_is_read(tmp_path: Path) -> None:
    first, second = two(tmp_path, "one\n", "un\n")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(first.read_text(),))
    writer.start()
    made = contrast(pipe, second, answers=" yes", wrongs=" no")
    writer.join()
    assert made.items[0].clean == "one"
    with pytest.raises(DataError, match="is a folder"):
        contrast(tmp_path, second, answers=" yes", wrongs=" no")


def test_years_that_single_digits_cannot_tell_apart_are_dropped_for_that_reason() -> None:
    made = get("greater-than", n=60)
    item = next(i for i in made.items if i.clean.endswith("in 18") and " 1803 " in i.clean)
    # digit by digit every wrong answer of 1803 begins with 0, as 04 to 09 do
    fitting = _Fitting(Encoder(code_tokenizer(), bos=False), None)
    assert fitting.example(item) is None
    assert "begins with the same token" in fitting.misfits[0].reason
