"""``microtome sweep --pairs``: two parts patched at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from microtome.cli.options import print_json, print_table, say

if TYPE_CHECKING:
    from microtome.behaviors.behavior import Behavior
    from microtome.tracing.model import Model

SHOWN = 15
"""Pairs in the table."""


def print_pairs(
    model: Model,
    task: Behavior,
    parts: str,
    base: str,
    metric: str,
    resume: Path | None,
    out: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Patch all pairs of some parts, and print those that act together most.

    Raises:
        UsageError: If ``base`` is neither run.
    """
    from microtome.cli.bars import Bars
    from microtome.errors import UsageError
    from microtome.store.atomic import write_text
    from microtome.sweeps import pair_patching

    if base not in ("clean", "corrupt"):
        raise UsageError(f"--base {base!r}: expected clean or corrupt.")
    chosen = None if parts == "all" else [part.strip() for part in parts.split(",")]
    with Bars() as bars:
        found = pair_patching(
            model, task, parts=chosen, base="clean" if base == "clean" else "corrupt",
            metric=metric, seed=seed, progress=bars, resume=resume,
        )  # fmt: skip
    frame = found.to_frame()
    frame = frame.reindex(frame["interaction"].abs().sort_values(ascending=False).index)
    if out is not None:
        write_text(out, frame.to_csv(index=False))
    rows = frame.to_dict("records")
    if as_json:
        print_json({"pairs": rows, "certificate": dict(found.certificate)})
        return
    table = []
    for row in rows[:SHOWN]:
        low_high = found.interval(row["one"], row["other"], seed=seed)
        effects = (row[k] for k in ("effect_one", "effect_other", "effect_both"))
        table.append([row["one"], row["other"], *(f"{v:.3f}" for v in effects), str(low_high)])
    print_table(
        ["one", "other", "alone", "alone", "both", "interaction"],
        table,
        right=(2, 3, 4, 5),
        title=f"share of the way from {base} to the other run; interaction: both minus the sum",
    )
    c = found.certificate
    say(
        f"The {len(table)} strongest of {len(rows)} pairs, n = {len(found.base)}. Largest "
        f"difference from whole passes {c['difference']:.2g} over {c['sample']} of {c['runs']} "
        "runs."
    )
