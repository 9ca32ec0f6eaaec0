"""Heads told by what their OV circuit does to single tokens: copy, suppress, name the successor."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import stats

from microtome.circuits.taxonomy.detector import Detector, Scores
from microtome.circuits.taxonomy.material import Material, head_name
from microtome.circuits.taxonomy.shuffles import DRAWS
from microtome.core.seeds import rng
from microtome.errors import ModelSupportError

TOP, BOTTOM = 5, 10
"""Ranks that count as top and as bottom, in vocabularies of 100 times as many tokens."""

SMALLEST = 8
"""Ordinary tokens a vocabulary must have."""


def copying(material: Material) -> Scores:
    """Score the share of tokens whose own logit is among the highest that the head writes."""
    return _own_rank(material, TOP, largest=True)


def suppression(material: Material) -> Scores:
    """Score the share of tokens whose own logit is among the lowest that the head writes."""
    return _own_rank(material, BOTTOM, largest=False)


def _own_rank(material: Material, ranks: int, *, largest: bool) -> Scores:
    outputs = material.outputs
    if len(outputs) < SMALLEST:
        raise ModelSupportError(
            f"The vocabulary of {len(outputs)} tokens is too small to tell a token's own rank from "
            f"chance; {SMALLEST} are needed."
        )
    count = min(ranks, max(1, len(outputs) // 100))
    tried = len(material.tokens)
    stream = rng(material.inputs.seed, "copying")
    # what other tokens' writes would do for this one: hubs that raise a token for all are no copies
    exchanges = np.stack([stream.permutation(tried) for _ in range(DRAWS)])

    def score(logits: torch.Tensor) -> tuple[float, np.ndarray]:
        best = logits.topk(count, largest=largest).indices
        hit = torch.zeros(tried, len(outputs), dtype=torch.bool).scatter_(1, best, True)
        table = hit[:, :tried].float().numpy()
        places = np.arange(tried)
        return float(table[places, places].mean()), table[exchanges, places].mean(1)

    return _of_heads(material, score)


def _of_heads(
    material: Material, score: Callable[[torch.Tensor], tuple[float, np.ndarray]]
) -> Scores:
    """Score every head's logits ``[token, output]``; chance is taken off as in the patterns."""
    heads, left_out = material.weight_heads()
    read: dict[int, torch.Tensor] = {}
    values, sds, ps = [], [], []
    for layer, head in heads:
        if layer not in read:
            read[layer] = material.embedded(material.tokens, layer)
        value, out = material.value_map(layer, head)
        found, drawn = score((read[layer] @ value) @ out[:, material.outputs])
        chance = float(drawn.mean())
        left = max(1 - chance, 1e-6)
        sd = max(float(drawn.std(ddof=1)) / left, 0.5 / len(material.tokens))
        values.append((found - chance) / left)
        sds.append(sd)
        ps.append(stats.t.sf(values[-1] / sd, DRAWS - 1))
    return Scores(
        tuple(head_name(n, h) for n, h in heads),
        np.array(values), np.zeros(len(values)), np.array(sds), np.array(ps),
        np.ones(len(values), dtype=bool), {}, left_out,
    )  # fmt: skip


def successor(material: Material) -> Scores:
    """Score the share of ordinals whose successor is the list's member with the highest logit."""
    lists = material.inputs.lists
    if not lists:
        raise ModelSupportError(material.inputs.missing["ordinal lists"])
    heads, left_out = material.weight_heads()
    stream = rng(material.inputs.seed, "successor")
    orders = {
        name: np.stack([stream.permutation(len(ids) - 1) for _ in range(DRAWS)])
        for name, ids in lists.items()
    }
    values, means, sds, ps, details = [], [], [], [], {}
    for layer, head in heads:
        value, out = material.value_map(layer, head)
        right, drawn, total, best = 0, np.zeros(DRAWS), 0, (0.0, "")
        for name, ids in lists.items():
            logits = material.embedded(ids[:-1], layer) @ value @ out[:, list(ids)]
            # a token's own logit is copying, not succession
            logits.fill_diagonal_(float("-inf"))
            top = logits.argmax(1).numpy()
            hits = top == np.arange(1, len(ids))
            drawn += (top[orders[name]] == np.arange(1, len(ids))).sum(1)
            right, total = right + int(hits.sum()), total + len(hits)
            best = max(best, (float(hits.mean()), name))
        mean, sd = drawn.mean() / total, max(drawn.std(ddof=1) / total, 0.5 / total)
        values.append(right / total)
        means.append(mean)
        sds.append(sd)
        # few ordinals give few hits: counts under exchanges are close to Poisson's law
        counted = stats.poisson.sf(right - 1, max(mean * total, 1.0))
        ps.append(max(stats.t.sf((values[-1] - mean) / sd, DRAWS - 1), counted))
        details[head_name(layer, head)] = f"best: {best[1] or 'no list'} {best[0]:.0%}"
    return Scores(
        tuple(head_name(n, h) for n, h in heads),
        np.array(values), np.array(means), np.array(sds), np.array(ps),
        np.ones(len(values), dtype=bool), details, left_out,
    )  # fmt: skip


SWAPPED = "writes of other tokens in place of a token's own"

COPYING = (
    Detector(
        "copying", "head",
        f"share of tokens whose own logit is in the top {TOP} of W_U OV(E + MLP0(E)), beyond "
        "chance (W_U OV E in the first block)",
        "Wang 2022", "weights", SWAPPED, copying, threshold=0.95, standing="paper",
    ),
    Detector(
        "copy suppression", "head",
        f"share of tokens whose own logit is in the bottom {BOTTOM} of W_U OV(E + MLP0(E)), "
        "beyond chance",
        "McDougall 2023", "weights", SWAPPED, suppression, threshold=0.5, standing="microtome",
    ),
    Detector(
        "successor", "head",
        "share of ordinals whose successor has the highest logit of its list in "
        "W_U OV(E + MLP0(E)), the token itself aside",
        "Gould 2023", "ordinal lists", "successors exchanged within each list", successor,
        threshold=0.5, standing="customary",
    ),
)  # fmt: skip
"""Detectors of what OV circuits do to single tokens."""
