"""What the specimen can do: every code behavior, natural code, and an n-gram beside it."""

from __future__ import annotations

import math
import sysconfig
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from microtome import behaviors
from microtome.behaviors.registry import CODE
from microtome.core.plain import plain
from microtome.core.stats import cluster_bootstrap
from microtome.tracing.model import Model
from specimens.python_code.corpus import LONGEST_FILE, SourceFile

LONGEST = 5
"""Tokens of the longest n-gram, the predicted one included."""

ITEMS = 1000
"""Examples of a behavior over all splits: 200 leave 60 for the test, and five points of noise."""

UNSEEN = ("idlelib", "lib2to3", "test")
"""Folders of the library that the corpus leaves out; natural items are cut from them too."""


class NGram:
    """An interpolated n-gram over tokens (Witten and Bell, 1991).

    Args:
        tokens: Training tokens.
        vocab: Number of tokens.
    """

    def __init__(self, tokens: np.ndarray, vocab: int) -> None:
        self._vocab = vocab
        self._counts: list[dict[tuple[int, ...], Counter[int]]] = [
            defaultdict(Counter) for _ in range(LONGEST)
        ]
        rows = [int(t) for t in tokens]
        for size in range(LONGEST):
            for i in range(size, len(rows)):
                self._counts[size][tuple(rows[i - size : i])][rows[i]] += 1

    def probability(self, context: tuple[int, ...], token: int) -> float:
        """Return the probability of a token behind a context."""
        p = 1.0 / self._vocab
        for size in range(LONGEST):
            seen = self._counts[size].get(context[len(context) - size :])
            if seen is None:
                break
            total, kinds = sum(seen.values()), len(seen)
            p = (seen[token] + kinds * p) / (total + kinds)
        return p

    def best(self, context: tuple[int, ...]) -> int:
        """Return the likeliest token behind the longest context that was seen."""
        for size in range(LONGEST - 1, -1, -1):
            seen = self._counts[size].get(context[len(context) - size :])
            if seen:
                return seen.most_common(1)[0][0]
        return 0


def held_out_groups(files: list[SourceFile]) -> dict[str, list[SourceFile]]:
    """Return the test files in two groups: tables of ``encodings``, and code.

    Nine test files in ten belong to ``encodings``, most of them tables of characters, and would
    decide any figure over all of them.
    """
    test = [f for f in files if f.split == "test"]
    tables = [f for f in test if f.path.startswith("encodings/")]
    return {"code": [f for f in test if f not in tables], "encodings": tables}


def natural_code(
    model: Model, files: list[SourceFile], *, seed: int = 0, windows: int = 60
) -> dict[str, Any]:
    """Compare the network with an n-gram on windows of held-out files, group by group.

    Files take turns, so that each counts about the same; clusters of the intervals are files.

    Returns:
        For each group, loss in nats per token and share of next tokens guessed, of both, on the
        same tokens, and the difference of the shares.
    """
    gram = NGram(
        np.concatenate([_ids(model, f) for f in files if f.split == "train"]),
        model.anatomy.vocab if model.anatomy else 0,
    )
    found = {}
    for number, (name, group) in enumerate(held_out_groups(files).items()):
        random = np.random.default_rng([seed, 9, number])
        rows = _windows(model, group, random, windows)
        found[name] = _compared(model, gram, rows, seed=seed)
    return found


def _ids(model: Model, file: SourceFile) -> np.ndarray:
    encoded = model.tokenizer.backend_tokenizer.encode(file.text, add_special_tokens=False)
    return np.array(encoded.ids)


def _windows(
    model: Model, files: list[SourceFile], random: np.random.Generator, count: int
) -> list[tuple[str, list[int]]]:
    """Return windows of 129 tokens with the path of their file."""
    streams = [(f.path, _ids(model, f)) for f in files]
    streams = [(path, ids) for path, ids in streams if len(ids) > 130]
    order = random.permutation(len(streams))
    rows = []
    for turn in range(count):
        path, ids = streams[int(order[turn % len(order)])]
        start = int(random.integers(len(ids) - 129))
        rows.append((path, [int(t) for t in ids[start : start + 129]]))
    return rows


def _compared(
    model: Model, gram: NGram, rows: list[tuple[str, list[int]]], *, seed: int
) -> dict[str, Any]:
    values: dict[str, list[float]] = defaultdict(list)
    clusters = []
    for path, row in rows:
        logits = model.trace([row[:-1]]).logits
        logp = torch.log_softmax(logits[0], -1)  # type: ignore[index]
        for i in range(32, 128):
            context, target = tuple(row[i - LONGEST + 2 : i + 1]), row[i + 1]
            values["model loss"].append(-float(logp[i, target]))
            values["n-gram loss"].append(-math.log(gram.probability(context, target)))
            values["model next token"].append(int(logp[i].argmax()) == target)
            values["n-gram next token"].append(gram.best(context) == target)
            clusters.append(path)
    values["difference next token"] = list(
        np.subtract(values["model next token"], values["n-gram next token"], dtype=float)
    )
    return {
        name: plain(cluster_bootstrap(np.array(v, dtype=float), clusters, seed=seed))
        for name, v in values.items()
    }


def unseen_paths(files: list[SourceFile]) -> list[Path]:
    """Return the files that are in no way trained on: held-out packages and left-out folders."""
    root = Path(sysconfig.get_paths()["stdlib"])
    held = [root / f.path for f in files if f.split != "train"]
    left_out = [p for folder in UNSEEN for p in sorted((root / folder).rglob("*.py"))]
    return held + [p for p in left_out if p.stat().st_size <= LONGEST_FILE]


def measured(model: Model, files: list[SourceFile], *, seed: int = 0) -> dict[str, Any]:
    """Return accuracy of every code behavior on held-out templates and on natural held-out code."""
    unseen = unseen_paths(files)
    found: dict[str, Any] = {}
    for name in (*CODE, "induction"):
        gate = behaviors.get(name, n=ITEMS, seed=seed).check(model, seed=seed)
        entry: dict[str, Any] = {
            "accuracy": plain(gate.accuracy),
            "baselines": {k: round(b.value, 4) for k, b in gate.baselines.items()},
            "items": gate.n,
            "passed gate": gate.passed,
        }
        if name in CODE:
            items = behaviors.natural(name, paths=unseen, n=200, seed=seed)
            cut = behaviors.Behavior(name, name, "", items)
            scores = behaviors.score(model, cut.prepare(model), metric="accuracy")
            entry["natural"] = plain(scores.interval(seed=seed))
            entry["natural answers"] = sorted({a for item in items for a in item.answers})[:9]
        found[name] = entry
    return {"behaviors": found, "natural code": natural_code(model, files, seed=seed)}
