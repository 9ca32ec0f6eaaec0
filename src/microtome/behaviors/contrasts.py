"""A behavior from two files of prompts: what the model does on one kind and not on the other.

Each line is a prompt. Prompts of the first file should be answered by ``answers`` (a refusal, say),
those of the second by ``wrongs``. Pairs are made by line, or by length: each prompt of the first
file with those of the second that are closest to it in characters, of which the tokenizer then
picks one of as many tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from microtome.behaviors.behavior import Behavior
from microtome.behaviors.items import SPLITS, Item, Split
from microtome.core.seeds import rng
from microtome.errors import DataError, EmptyDataError, PairError, UsageError

Pairing = Literal["line", "length"]

PREFIX = "contrast:"
CANDIDATES = 12
"""Prompts of the second file that are tried for each of the first, where lengths decide."""

_ENDS = (0.5, 0.7, 1.0)


def contrast(
    first: str | Path,
    second: str | Path,
    *,
    answers: str | Sequence[str],
    wrongs: str | Sequence[str],
    pairing: Pairing = "line",
    seed: int = 0,
) -> Behavior:
    r"""Return the contrast between two kinds of prompts.

    Args:
        first: Text file with a prompt of the first kind in each line; ``\n`` means a new line.
        second: The same for the second kind.
        answers: What follows prompts of the first kind, with its exact leading space.
        wrongs: What follows prompts of the second kind.
        pairing: ``line`` (equal line numbers make a pair) or ``length``.
        seed: Spreads pairs over the splits.

    Raises:
        DataError: If a file is missing or no text.
        EmptyDataError: If a file holds no prompts.
        PairError: If files to be paired by line have prompts in different lines.
    """
    lines = [_lines(Path(path)) for path in (first, second)]
    kinds = [list(found.values()) for found in lines]
    if pairing not in ("line", "length"):
        raise UsageError(f"No pairing {pairing!r}; known: line, length.")
    if pairing == "line" and len(kinds[0]) != len(kinds[1]):
        raise PairError(
            f"{first} has {len(kinds[0])} prompts and {second} has {len(kinds[1])}; pairs by line "
            "need equally many. Pair them by length instead."
        )
    alone = sorted(set(lines[0]) ^ set(lines[1]))
    if pairing == "line" and alone:
        raise PairError(
            f"Line {alone[0]} holds a prompt in {first if alone[0] in lines[0] else second} only; "
            "pairs by line need blank lines at the same places. Pair them by length instead."
        )
    numbers = list(lines[0])
    right, wrong = ((t,) if isinstance(t, str) else tuple(t) for t in (answers, wrongs))
    items = []
    pairs = _by_line(kinds, seed) if pairing == "line" else _by_length(kinds, seed)
    for number, clean, corrupt, split in pairs:
        name = f"line {numbers[number]}"
        items.append(
            Item(
                clean,
                corrupt,
                right,
                wrong,
                name,
                name,
                split=split,
                source=f"{Path(first).name}, {name}",
            )  # fmt: skip
        )
    title = f"{Path(first).stem} against {Path(second).stem}"
    return Behavior(
        f"contrast-{Path(first).stem}-{Path(second).stem}",
        title,
        f"Prompts of {Path(first).name} against prompts of {Path(second).name}: which of the given "
        "answers follows.",
        tuple(items),
        n=None if pairing == "line" else len(kinds[0]),
        seed=seed,
    )


def parse_contrast(text: str, *, seed: int = 0) -> Behavior:
    """Return the contrast that ``contrast:A.txt,B.txt,answer= No|Sorry,wrong= Yes`` means.

    ``pairing=length`` may follow.

    Raises:
        UsageError: If a part is missing or unknown.
    """
    files: list[str] = []
    options: dict[str, str] = {}
    for part in text.removeprefix(PREFIX).split(","):
        key, equals, value = part.partition("=")
        if equals and key in ("answer", "wrong", "pairing"):
            options[key] = value
        else:
            files.append(part)
    if len(files) != 2 or not options.get("answer") or not options.get("wrong"):
        raise UsageError(
            f"{text!r}: expected two files and the answers to compare, as in "
            "'contrast:A.txt,B.txt,answer= No|Sorry,wrong= Yes'."
        )
    return contrast(
        files[0],
        files[1],
        answers=options["answer"].split("|"),
        wrongs=options["wrong"].split("|"),
        pairing=options.get("pairing", "line"),  # type: ignore[arg-type]
        seed=seed,
    )


def _lines(path: Path) -> dict[int, str]:
    """Return the prompts of a file by the number of their line, from 1 on."""
    if path.is_dir() or not path.exists():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}; give a text file with one prompt in each line.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8: {error.reason}.") from None
    # not splitlines: a form feed or a Unicode separator is a part of the prompt
    found = {
        number: line.replace("\\n", "\n")
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    }
    if not found:
        raise EmptyDataError(f"{path} holds no prompts.")
    return found


def _splits(count: int, seed: int, what: str) -> list[Split]:
    """Return the split of each of some lines."""
    rank = rng(seed, "contrast", what).permutation(count)
    places = ((float(r) + 0.5) / count for r in rank)
    return [next(s for s, end in zip(SPLITS, _ENDS, strict=True) if p < end) for p in places]


def _by_line(kinds: list[list[str]], seed: int) -> list[tuple[int, str, str, Split]]:
    splits = _splits(len(kinds[0]), seed, "lines")
    return [
        (n, a, b, s) for n, (a, b, s) in enumerate(zip(kinds[0], kinds[1], splits, strict=True))
    ]


def _by_length(kinds: list[list[str]], seed: int) -> list[tuple[int, str, str, Split]]:
    """Pair within splits, so that no prompt of either kind is in two of them."""
    own, others = (_splits(len(k), seed, str(n)) for n, k in enumerate(kinds))
    pairs = []
    for number, (clean, split) in enumerate(zip(kinds[0], own, strict=True)):
        there = [b for b, s in zip(kinds[1], others, strict=True) if s == split and b != clean]
        near = sorted(there, key=lambda b, a=clean: abs(len(b) - len(a)))  # type: ignore[misc]
        pairs += [(number, clean, b, split) for b in near[:CANDIDATES]]
    return pairs
