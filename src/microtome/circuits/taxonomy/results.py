"""What naming parts gives: a table of parts and detectors, and what was not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from microtome.core.provenance import Provenance
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd

NOTE = (
    "No threshold transfers between models: a customary value comes from the models of its source. "
    "A name means that the score beats that value, that z exceeds 3 against the hardest of the "
    "nulls, and that the false-discovery rule at 5 % is survived. A name says what a part does on "
    "the inputs of its detector, not what it does elsewhere."
)


@dataclass(frozen=True, eq=False)
class PartNames(Result, schema="part-names"):
    """Names of a model's parts, with the scores and nulls that earned or refused them.

    Attributes:
        table: One row for each part and detector: ``part``, ``kind``, ``name``, ``score``,
            ``threshold`` (NaN where none is customary), ``z`` (the smallest over the nulls), ``p``
            (the largest), ``q`` (adjusted over the family of tests),
            ``stands_out`` (from all nulls), ``labelled`` (beats the threshold, too), the hardest
            ``null`` with ``null_mean`` and ``null_sd``, ``z_shuffle``, ``z_others``, ``z_twin``,
            whether a further ``condition`` holds, and a ``detail``.
        detectors: Every detector's name, kind, definition, source, needs, shuffle, nulls, threshold
            and standing.
        not_run: Why a detector was not run, by name.
        left_out: What a detector could not score, and why, by name.
        twins: Twins that stood as a null.
        rate: False-discovery rate.
        note: How to read the names.
        model: The model.
        seconds: Seconds by detector.
        provenance: Model, seed, versions.
    """

    table: pd.DataFrame
    detectors: tuple[Mapping[str, Any], ...]
    not_run: Mapping[str, str]
    left_out: Mapping[str, tuple[str, ...]]
    twins: int
    rate: float
    note: str
    model: str
    seconds: Mapping[str, float]
    provenance: Provenance | None = None

    @property
    def labelled(self) -> pd.DataFrame:
        """The rows of parts that got a name."""
        return self.table[self.table["labelled"]].reset_index(drop=True)

    def names_of(self, part: str) -> tuple[str, ...]:
        """Return the names that a part got."""
        found = self.labelled
        return tuple(found.loc[found["part"] == part, "name"])

    def scores(self, name: str) -> pd.DataFrame:
        """Return all rows of one detector, best first.

        Raises:
            UnknownNameError: If there is no such detector.
        """
        from microtome.errors import UnknownNameError, nearest

        known = [d["name"] for d in self.detectors]
        if name not in known:
            raise UnknownNameError(f"No detector {name!r}{nearest(name, known)}.")
        found = self.table[self.table["name"] == name]
        return found.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)

    def to_frame(self) -> pd.DataFrame:
        """Return the table."""
        return self.table

    def summary(self) -> str:
        """Return the names in a few lines."""
        found = self.labelled
        below = self.table[self.table["stands_out"] & ~self.table["labelled"]]
        below = below[below["kind"] == "head"]
        lines = [
            f"{len(found)} names for {found['part'].nunique()} parts of {self.model}, "
            f"{len(self.table)} tests against nulls with {self.twins} twins."
        ]
        for rows, label in ((found, ""), (below, " (stands out, below the customary value)")):
            for name, some in rows.groupby("name", sort=False):
                lines.append(f"{name}{label}: {_listed(some)}")
        lines += [f"not run: {name} ({why})" for name, why in self.not_run.items()]
        return "\n".join(lines)


def _listed(rows: pd.DataFrame) -> str:
    """Return parts with their scores, best first, twelve at most."""
    ordered = rows.sort_values("score", ascending=False, kind="stable")
    shown = [f"{p} {s:.2f}" for p, s in zip(ordered["part"], ordered["score"], strict=True)][:12]
    more = f" and {len(rows) - 12} more" if len(rows) > 12 else ""
    return ", ".join(shown) + more
