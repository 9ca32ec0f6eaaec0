"""False claims: how often the rules and tests find something where there is nothing.

``--what`` chooses: ``verdict``, ``shi``, ``scrub``, ``versus``, ``names``. Every case is a function
of its number, so that a run that was killed goes on (``--resume FILE``) and gives the same table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.false_claims import neighbors, verdicts
from benchmarks.false_claims.counting import Ledger, Row
from benchmarks.options import Options

WHAT: dict[str, Callable[[Ledger, int], tuple[str, list[Row]]]] = {
    "verdict": verdicts.table,
    "shi": neighbors.shi,
    "scrub": neighbors.scrubbing,
    "versus": neighbors.contrasts,
    "names": neighbors.names,
}
"""The tables by name."""

COUNT = 1000
"""Twins whose verdict is counted; the other tables take a share of it."""


def table(options: Options) -> tuple[str, Any]:
    """Return the chosen tables and all rows."""
    torch.set_num_threads(1)
    ledger = Ledger(options.resume, options.minutes)
    count = options.count or (20 if options.quick else COUNT)
    text, found = [], {}
    for name in options.what:
        part, found[name] = WHAT[name](ledger, count)
        text.append(part)
    head = f"False claims: seeds 0 to {count - 1} of each case, 1 thread, 95 % intervals\n"
    tail = f"   {ledger.left} cases were not run: out of time\n" if ledger.left else ""
    return head + "".join(text) + tail, found
