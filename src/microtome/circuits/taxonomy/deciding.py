"""The rule by which a part gets a name: false discoveries, the customary value, and z.

A part has to stand out from every null that applies, so its p value is the largest over them
(intersection-union test, Berger 1982) and its z the smallest. Over all heads and detectors, and
over the parts of every other detector, the false-discovery rate is held at 5 % (Benjamini and
Hochberg 1995).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from microtome.circuits.taxonomy.detector import Detector, Scores
from microtome.core.stats import benjamini_hochberg

if TYPE_CHECKING:
    import pandas as pd

RATE = 0.05
"""False-discovery rate."""

Z = 3.0
"""What z has to exceed."""

OTHERS = 5
"""Other parts that are needed as a null."""

MANY = 1000
"""Parts of twins from which on p values are counted, too."""

_MAD = 1.4826
"""Standard deviations in a median absolute deviation, for a normal distribution."""


def compare(detector: Detector, own: Scores, twins: Sequence[Scores]) -> pd.DataFrame:
    """Return one row for each part with its z and p against every null that applies.

    Args:
        detector: The detector.
        own: The scores of the model's parts.
        twins: The scores of the twins' parts.
    """
    import pandas as pd

    z, p, mean, sd = {}, {}, {}, {}
    if "shuffle" in detector.nulls:
        mean["shuffle"], sd["shuffle"] = own.null_mean, own.null_sd
        z["shuffle"] = (own.values - own.null_mean) / own.null_sd
        p["shuffle"] = own.null_p
    if "others" in detector.nulls and len(own.parts) > OTHERS:
        mean["others"], sd["others"] = _others(own)
        z["others"] = (own.values - mean["others"]) / sd["others"]
        p["others"] = stats.t.sf(z["others"], len(own.parts) - 2)
    pooled = np.concatenate([t.values for t in twins]) if twins else np.zeros(0)
    if "twin" in detector.nulls and pooled.size > OTHERS:
        mean["twin"] = np.full(len(own.parts), pooled.mean())
        sd["twin"] = np.maximum(pooled.std(ddof=1), own.null_sd)
        z["twin"] = (own.values - mean["twin"]) / sd["twin"]
        p["twin"] = np.maximum(stats.t.sf(z["twin"], pooled.size - 1), _counted(own.values, pooled))
    table = {name: np.stack(list(found.values())) for name, found in
             (("z", z), ("p", p), ("mean", mean), ("sd", sd))}  # fmt: skip
    hardest = table["p"].argmax(0)
    columns = np.arange(len(own.parts))
    return pd.DataFrame(
        {
            "part": own.parts,
            "kind": detector.kind,
            "name": detector.name,
            "score": own.values,
            "threshold": np.nan if detector.threshold is None else detector.threshold,
            "null": np.array(list(z))[hardest],
            "null_mean": table["mean"][hardest, columns],
            "null_sd": table["sd"][hardest, columns],
            "z": table["z"].min(0),
            "p": table["p"].max(0),
            **{f"z_{name}": z.get(name, np.nan) for name in ("shuffle", "others", "twin")},
            "condition": own.allowed,
            "detail": [own.details.get(part, "") for part in own.parts],
        }
    )


def _counted(values: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """Return the p value by counting where there are many draws: tails may be heavier than t's."""
    if pooled.size < MANY:
        return np.zeros(len(values))
    above = pooled.size - np.searchsorted(np.sort(pooled), values)
    return np.asarray((1 + above) / (1 + pooled.size))


def _others(own: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Return median and spread of all other parts, robust where several are of the kind."""
    count = len(own.parts)
    rest = np.stack([np.delete(own.values, i) for i in range(count)]) if count <= 4096 else None
    if rest is None:
        # one part among thousands moves no median
        middle = np.full(count, np.median(own.values))
        spread = np.full(count, _MAD * np.median(np.abs(own.values - middle[0])))
    else:
        middle = np.median(rest, 1)
        spread = _MAD * np.median(np.abs(rest - middle[:, None]), 1)
    return middle, np.maximum(spread, own.null_sd)


def decide(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with q values and whether each part gets the name.

    The family of tests is all heads and detectors together; for neurons, pairs and motifs it is the
    parts of one detector, because neurons that are dead or that follow positions by the hundred
    would make room for false ones of another detector.
    """
    found = table.copy()
    families = found["kind"].where(found["kind"] == "head", found["name"])
    found["q"] = np.nan
    survives = np.zeros(len(found), dtype=bool)
    for family in families.unique():
        inside = (families == family).to_numpy()
        p = found.loc[inside, "p"].to_numpy()
        found.loc[inside, "q"] = adjusted(p)
        survives[inside] = benjamini_hochberg(p, RATE)
    beats = found["threshold"].isna() | (found["score"] > found["threshold"])
    found["stands_out"] = survives & (found["z"] > Z) & found["condition"]
    found["labelled"] = found["stands_out"] & beats
    front = ["part", "kind", "name", "score", "threshold", "z", "p", "q", "stands_out", "labelled"]
    return found[[*front, *(c for c in found.columns if c not in front)]]


def adjusted(p: np.ndarray) -> np.ndarray:
    """Return Benjamini-Hochberg adjusted p values: the lowest rate at which each is rejected."""
    count = len(p)
    order = np.argsort(p, kind="stable")
    steps = p[order] * count / np.arange(1, count + 1)
    lowest = np.minimum.accumulate(steps[::-1])[::-1]
    q = np.empty(count)
    q[order] = np.minimum(lowest, 1.0)
    return q
