"""``python -m benchmarks [tables]``: print tables, all of them by default.

``workloads``: microtome, raw PyTorch and the peers on workloads a to f. ``growth``: what a sweep
costs by layers, positions and prompts. ``large``: the first at a billion parameters on a GPU.
``overhead``: tracing against the bare model. ``twins``: false claims on random models.
``planted``: the grades that compiled programs reach.
``circuits``: what scoring every edge costs. ``maximization``: texts that excite neurons, against
the corpus. ``resuming``: a sweep that is killed half-way and goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from benchmarks import (
    circuits,
    growth,
    large,
    maximization,
    overhead,
    planted,
    resuming,
    twins,
    workloads,
)
from benchmarks.options import Options, add_arguments, options

TABLES: dict[str, Callable[[Options], tuple[str, Any]]] = {
    "workloads": workloads.table,
    "growth": growth.table,
    "large": large.table,
    "overhead": lambda _: (overhead.table(), None),
    "twins": lambda _: (twins.table(), None),
    "planted": lambda _: (planted.table(), None),
    "circuits": circuits.table,
    "maximization": lambda _: (maximization.table(), None),
    "resuming": lambda _: (resuming.table(), None),
}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tables", nargs="*", metavar="table", help=", ".join(TABLES))
    add_arguments(parser)
    asked = parser.parse_args()
    chosen = options(asked)
    if unknown := [name for name in asked.tables if name not in TABLES]:
        parser.error(f"no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    saved: dict[str, Any] = {}
    for name in asked.tables or TABLES:
        text, data = TABLES[name](chosen)
        print(text, flush=True)
        saved[name] = {"text": text, "data": data}
        if chosen.json:  # after every table: a long run that breaks off leaves what it had
            chosen.json.write_text(json.dumps(saved, indent=1, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
