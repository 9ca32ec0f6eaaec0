"""The recipe of the Python-code specimen, and the weights that ship."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from specimens.python_code import train as recipe
from specimens.python_code.corpus import SourceFile, split_of, standard_library
from specimens.python_code.generated import Writer, identifiers
from specimens.python_code.vocabulary import train_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from microtome.behaviors import get
from microtome.models.specimens import specimen_card, specimen_folder
from microtome.tracing.opening import load

NAMES = [f"name_{a}{b}" for a in "abcdefgh" for b in "abcdefgh"]


@pytest.mark.parametrize("balanced", [False, True])
def test_generated_code_parses(balanced: bool) -> None:
    writer = Writer(np.random.default_rng(0), NAMES, balanced=balanced)
    snippets = [writer.snippet() for _ in range(300)]
    for snippet in snippets:
        if not (snippet.startswith("# ") and "\n " in snippet):
            ast.parse(snippet)
    assert len(set(snippets)) > 290


def test_tokenizer_is_exact_and_keeps_marks_apart() -> None:
    texts = [f.text for f in standard_library()[:20]]
    tokenizer = train_tokenizer(texts, 600)
    for text in texts[:5]:
        assert tokenizer.decode(tokenizer(text, verbose=False)["input_ids"]) == text
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("f(x='a', y=[1])")["input_ids"])
    assert all(mark in pieces for mark in ["(", "'", ",", "=", "[", "]", ")"])


def test_packages_are_in_one_split() -> None:
    files = standard_library()
    by_package: dict[str, set[str]] = {}
    for f in files:
        by_package.setdefault(f.path.split("/")[0].removesuffix(".py"), set()).add(f.split)
    assert all(len(s) == 1 for s in by_package.values())
    assert split_of("json") == split_of("json")


def test_training_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def f(value, size=None):\n    return value\n" * 60
    files = [
        SourceFile(f"p{i}.py", s, "0", text) for i, s in enumerate(("train", "train", "validation"))
    ]  # type: ignore[arg-type]
    monkeypatch.setattr(recipe, "identifiers", lambda texts: NAMES)
    small = recipe.Recipe(
        steps=4,
        finish=2,
        batch=2,
        context=16,
        layers=1,
        width=16,
        heads=2,
        vocab=300,
        snippets=80,
        threads=1,
    )
    whole = recipe.train(small, tmp_path / "whole", every=2, files=files)
    honest, calls = recipe._step, []

    def stop(*args: object) -> float:
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return honest(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(recipe, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        recipe.train(small, tmp_path / "cut", every=2, files=files)
    monkeypatch.setattr(recipe, "_step", honest)
    again = recipe.train(small, tmp_path / "cut", every=2, files=files)
    a, b = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (whole, again))
    assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(ValueError, match="another recipe"):
        recipe.train(replace(small, seed=1), tmp_path / "cut", every=2, files=files)


def test_identifiers_are_ordered_by_use() -> None:
    assert identifiers(["data = size\n", "data = 1\n", "not python ("])[0] == "data"


def test_the_shipped_weights_open_everywhere_and_know_the_task() -> None:
    folder = specimen_folder("python-code")
    assert folder is not None
    assert (folder / "model.safetensors").stat().st_size < 4_000_000
    assert type(AutoModelForCausalLM.from_pretrained(folder)).__name__ == "GPT2LMHeadModel"
    assert AutoTokenizer.from_pretrained(folder).decode([5]) is not None
    model = load("python-code")
    assert model.dtype == torch.float32 and model.verify().passed
    found = get("quote-closing", n=100).check(model)
    assert found.passed and found.accuracy.value >= 0.9
    card = specimen_card("python-code")
    good = [b for b in card["measured"]["behaviors"].values() if b["accuracy"]["value"] >= 0.9]
    assert len(good) >= 4
