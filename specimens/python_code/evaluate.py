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
from microtome.tracing.model import Model
from specimens.python_code.corpus import SourceFile

LONGEST = 5
"""Tokens of the longest n-gram, the predicted one included."""


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


def natural_code(
    model: Model, files: list[SourceFile], *, seed: int = 0, windows: int = 60
) -> dict[str, Any]:
    """Compare the network with an n-gram on windows of held-out files.

    Returns:
        Loss in nats per token and share of next tokens guessed, of both, on the same tokens.
    """
    text = {s: [f.text for f in files if f.split == s] for s in ("train", "test")}
    encode = model.tokenizer.backend_tokenizer.encode
    train = np.concatenate(
        [np.array(encode(t, add_special_tokens=False).ids) for t in text["train"]]
    )
    gram = NGram(train, model.anatomy.vocab if model.anatomy else 0)
    random = np.random.default_rng([seed, 9])
    rows = []
    while len(rows) < windows:
        ids = encode(
            text["test"][int(random.integers(len(text["test"])))], add_special_tokens=False
        ).ids
        if len(ids) > 130:
            start = int(random.integers(len(ids) - 129))
            rows.append(ids[start : start + 129])
    losses: dict[str, list[float]] = {"model": [], "n-gram": []}
    hits: dict[str, list[bool]] = {"model": [], "n-gram": []}
    for row in rows:
        logits = model.trace([row[:-1]]).logits
        logp = torch.log_softmax(logits[0], -1)  # type: ignore[index]
        for i in range(32, 128):
            context, target = tuple(row[i - LONGEST + 2 : i + 1]), row[i + 1]
            losses["model"].append(-float(logp[i, target]))
            losses["n-gram"].append(-math.log(gram.probability(context, target)))
            hits["model"].append(int(logp[i].argmax()) == target)
            hits["n-gram"].append(gram.best(context) == target)
    return {
        "tokens": len(hits["model"]),
        **{f"{name} loss": round(float(np.mean(v)), 4) for name, v in losses.items()},
        **{f"{name} next token": round(float(np.mean(v)), 4) for name, v in hits.items()},
    }


def measured(model: Model, files: list[SourceFile], *, seed: int = 0) -> dict[str, Any]:
    """Return accuracy of every code behavior on held-out templates and on natural held-out code."""
    root = Path(sysconfig.get_paths()["stdlib"])
    held = [root / f.path for f in files if f.split != "train"]
    found: dict[str, Any] = {}
    for name in (*CODE, "induction"):
        gate = behaviors.get(name, n=200, seed=seed).check(model, seed=seed)
        entry: dict[str, Any] = {
            "accuracy": plain(gate.accuracy),
            "baselines": {k: round(b.value, 4) for k, b in gate.baselines.items()},
            "items": gate.n,
            "passed gate": gate.passed,
        }
        if name in CODE:
            items = behaviors.natural(name, paths=held, n=200, seed=seed)
            cut = behaviors.Behavior(name, name, "", items)
            scores = behaviors.score(model, cut.prepare(model), metric="accuracy")
            entry["natural"] = plain(scores.interval(seed=seed))
        found[name] = entry
    return {"behaviors": found, "natural code": natural_code(model, files, seed=seed)}
