"""Behaviors from files: the schema, the round trip, and every error by its row."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from tests.small import code_tokenizer, tokenizer_for

from microtome.behaviors import get, load, names
from microtome.behaviors.items import SPLITS
from microtome.errors import DataError, EmptyDataError, FormatError, PairError, UnknownNameError

GOOD = {"clean": "a b", "corrupt": "a c", "answer": "x", "wrong": "y"}


def jsonl(folder: Path, *rows: object) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def csv(folder: Path, *lines: str) -> Path:
    path = folder / "pairs.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", names())
def test_saved_behaviors_come_back_whole(name: str, tmp_path: Path) -> None:
    behavior = get(name, n=30, seed=5)
    loaded = load(behavior.save(tmp_path / "other-name.jsonl"))
    for field in fields(behavior):
        if field.name != "items":
            assert getattr(loaded, field.name) == getattr(behavior, field.name)
    for a, b in zip(loaded.items, behavior.items, strict=True):
        assert (a.clean, a.corrupt, a.answers, a.wrongs) == (
            b.clean,
            b.corrupt,
            b.answers,
            b.wrongs,
        )
        assert (a.cluster, a.template, a.split) == (b.cluster, b.template, b.split)
        assert dict(a.roles) == dict(b.roles) and dict(a.features) == dict(b.features)
    tokenizer = tokenizer_for(name)
    assert [e.clean for e in loaded.prepare(tokenizer)] == [
        e.clean for e in behavior.prepare(tokenizer)
    ]


HEADER = {"schema": "microtome behavior", "version": 1, "name": "n"}


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ({**HEADER, "schema": "something"}, "expected 'microtome behavior'"),
        ({**HEADER, "version": 2}, "version 2"),
        ({**HEADER, "titlee": "t"}, "nearest: title"),
    ],
)
def test_foreign_and_newer_headers_are_refused(
    tmp_path: Path, header: dict[str, object], text: str
) -> None:
    with pytest.raises(FormatError, match=text):
        load(jsonl(tmp_path, header, GOOD))
    with pytest.raises(EmptyDataError):
        load(jsonl(tmp_path, HEADER))


@pytest.mark.parametrize(
    ("row", "error", "text"),
    [
        ({**GOOD, "clean": ""}, DataError, "'clean' is missing, empty or NaN"),
        ({**GOOD, "clean": " "}, DataError, "the clean prompt is empty"),
        ({**GOOD, "corrupt": float("nan")}, DataError, "'corrupt' is missing, empty or NaN"),
        ({**GOOD, "clean": 3}, DataError, "expected text"),
        ({**GOOD, "answer": float("nan")}, DataError, "'answer' is missing, empty or not text"),
        ({**GOOD, "answer": []}, DataError, "'answer' is missing, empty or not text"),
        ({**GOOD, "answers": ["x"]}, DataError, "both 'answer' and 'answers'"),
        ({"clean": "d", "corrupt": "e", "answer": "x"}, DataError, "'wrong' is missing"),
        ({**GOOD, "wrong": "x"}, PairError, "both an answer and a wrong answer"),
        ({**GOOD, "corrupt": "a b"}, PairError, "are the same"),
        ({**GOOD, "split": "all"}, DataError, "none of train"),
        ({**GOOD, "clusters": "k"}, DataError, "unknown column 'clusters'; nearest: cluster"),
        ({**GOOD, "roles": [1]}, DataError, "roles must be an object"),
        ({**GOOD, "roles": {"r": [0, 1]}}, DataError, r"a role is \[\[start, end\]"),
        ({**GOOD, "roles": {"r": [[0, 9], [0, 1]]}}, DataError, "outside a prompt of 3"),
        ({**GOOD, "features": [1]}, DataError, "features must be an object"),
        ({**GOOD, "feature.f": float("nan")}, DataError, "feature 'f' is nan"),
        ({**GOOD, "feature.f": None}, DataError, "feature 'f' is None"),
        ({**GOOD, "natural": "maybe"}, DataError, "expected true or false"),
        ([1], DataError, "expected an object"),
    ],
)
def test_a_wrong_row_is_named(
    tmp_path: Path, row: object, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        load(jsonl(tmp_path, {**GOOD, "clean": "z"}, row))
    assert "pairs.jsonl, row 2" in str(caught.value)


def test_a_duplicate_names_both_rows(tmp_path: Path) -> None:
    with pytest.raises(PairError, match=r"row 3: the same pair as .*row 1"):
        load(jsonl(tmp_path, GOOD, {**GOOD, "clean": "z"}, GOOD))


def test_unequal_lengths_name_the_row_or_are_dropped(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {**GOOD, "clean": "12", "corrupt": "13"}, {**GOOD, "clean": "1"})
    with pytest.raises(PairError, match=r"row 2 does not fit .* different numbers of tokens"):
        load(path).prepare(code_tokenizer())
    kept = load(path, misfits="drop").prepare(code_tokenizer())
    assert len(kept) == 1 and kept.drops[0].count == 1


def test_splits_are_named_in_all_rows_or_none_and_keep_clusters_whole(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 2: no split"):
        load(jsonl(tmp_path, {**GOOD, "split": "train"}, {**GOOD, "clean": "z"}))
    with pytest.raises(DataError, match="row 2: cluster 'k' is in test here and in train"):
        load(
            jsonl(
                tmp_path,
                {**GOOD, "split": "train", "cluster": "k"},
                {**GOOD, "clean": "z", "split": "test", "cluster": "k"},
            )
        )
    rows = [{**GOOD, "clean": f"a {n}", "cluster": f"k{n // 4}"} for n in range(80)]
    behavior = load(jsonl(tmp_path, *rows))
    clusters = [{i.cluster for i in behavior.split(s)} for s in SPLITS]
    assert [len(c) for c in clusters] == [10, 4, 6]
    assert len(set.union(*clusters)) == 20
    assert load(jsonl(tmp_path, *rows)).items == behavior.items
    assert load(jsonl(tmp_path, *rows), seed=1).items != behavior.items


def test_csv_reads_numbers_truth_several_answers_and_roles(tmp_path: Path) -> None:
    path = csv(
        tmp_path,
        "clean,corrupt,answers,wrong,feature.length,feature.kind,feature.odd,natural,roles",
        r'a b,a c,x|z,\|,3,long,False,false,"{""r"": [[0, 1], [0, 1]]}"',
    )
    (item,) = load(path).items
    assert item.answers == ("x", "z") and item.wrongs == ("|",)
    assert item.features == {"length": 3.0, "kind": "long", "odd": False}
    assert item.natural is False and item.roles == {"r": ((0, 1), (0, 1))}
    (item,) = load(jsonl(tmp_path, {**GOOD, "answer": "|"})).items
    assert item.answers == ("|",)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (("clean,corrupt,answer,wrong", "a,b,x"), "row 2: 3 fields"),
        (("clean,corrupt,answer,wrong", "a,b,,y"), "row 2: 'answer' is missing"),
        (("clean,corrupt,answer", "a,b,x"), "row 2: 'wrong' is missing"),
        (("clean,corrupt,answer,wrong,feature.f", "a,b,x,y,nan"), "row 2: the feature 'f'"),
        (("clean,corrupt,answer,wrong,roles", "a,b,x,y,{"), "row 2: roles are not JSON"),
    ],
)
def test_wrong_csv_rows_are_named(tmp_path: Path, lines: tuple[str, ...], text: str) -> None:
    with pytest.raises(DataError, match=text):
        load(csv(tmp_path, *lines))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(EmptyDataError):
        load(csv(tmp_path, "clean,corrupt,answer,wrong"))
    (tmp_path / "b.jsonl").write_bytes(b"\x00\x01")
    with pytest.raises(DataError, match="binary"):
        load(tmp_path / "b.jsonl")
    (tmp_path / "l.csv").write_bytes("clean\ncaf\u00e9".encode("latin-1"))
    with pytest.raises(DataError, match=r"row 2: byte 0xe9 is not UTF-8"):
        load(tmp_path / "l.csv")


def test_the_registry_reads_files_too(tmp_path: Path) -> None:
    assert get(jsonl(tmp_path, GOOD)).name == "pairs"
    with pytest.raises(UnknownNameError, match="A file ends in"):
        get(str(tmp_path / "missing"))


def test_the_package_is_light_to_import() -> None:
    import subprocess

    code = (
        "import microtome.behaviors, sys; print('torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "row",
    [
        "[" * 100_000,
        '{"clean": "a", "corrupt": "b", "answer": "c", "wrong": "d",'
        ' "roles": {"r": [[0, 1e400], [0, 1]]}}',
    ],
)
def test_hostile_rows_are_named(row: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(row)
    with pytest.raises(DataError, match="row 1"):
        load(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("metric", "logit_diff"),
        ("metric", ["loss"]),
        ("n", 0),
        ("n", 2.5),
        ("n", True),
        ("chance", 1.5),
        ("chance", "half"),
        ("seed", "x"),
        ("misfits", "keep"),
        ("title", 3),
    ],
)
def test_a_setting_that_would_fail_later_is_refused(
    setting: str, value: object, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match=f"row 1: setting {setting} is .*; expected"):
        load(jsonl(tmp_path, {**HEADER, setting: value}, GOOD))


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path, GOOD)
    path.write_text(path.read_text().replace('"wrong": "y"', '"wrong": "y", "clean": "a d"'))
    with pytest.raises(DataError, match="row 1: not JSON \\('clean' is there twice\\)"):
        load(path)
