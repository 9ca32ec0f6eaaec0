"""``python -m benchmarks [tables]``: print tables, all of them by default."""

from __future__ import annotations

import argparse
import json
from types import ModuleType
from typing import Any

from benchmarks import (
    circuits,
    coders,
    false_claims,
    formats,
    growth,
    harvesting,
    large,
    maximization,
    overhead,
    resuming,
    trained,
    workloads,
)
from benchmarks.options import Options, add_arguments, options

MODULES: dict[str, ModuleType] = {
    "workloads": workloads,
    "growth": growth,
    "large": large,
    "overhead": overhead,
    "false_claims": false_claims,
    "circuits": circuits,
    "trained": trained,
    "maximization": maximization,
    "resuming": resuming,
    "harvesting": harvesting,
    "sae": coders,
    "formats": formats,
}
"""Tables to the module that makes each; the first line of its docstring says what it shows."""

PLAIN = (overhead, maximization, resuming, harvesting)
"""Modules whose tables take no options and are text alone."""


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="\n".join(
            [str(__doc__), "", *(f"{n}: {_first(m)}" for n, m in MODULES.items())]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tables", nargs="*", metavar="table", help=", ".join(MODULES))
    add_arguments(parser)
    asked = parser.parse_args()
    chosen = options(asked)
    if unknown := [name for name in asked.tables if name not in MODULES]:
        parser.error(f"no table {unknown[0]!r}; there are {', '.join(MODULES)}")
    saved: dict[str, Any] = {}
    for name in asked.tables or MODULES:
        text, data = _table(MODULES[name], chosen)
        print(text, flush=True)
        saved[name] = {"text": text, "data": data}
        if chosen.json:  # after every table: a long run that breaks off leaves what it had
            chosen.json.write_text(json.dumps(saved, indent=1, default=str), encoding="utf-8")


def _table(module: ModuleType, chosen: Options) -> tuple[str, Any]:
    if module in PLAIN:
        return module.table(), None
    text, data = module.table(chosen)
    return text, data


def _first(module: ModuleType) -> str:
    return (module.__doc__ or "").strip().splitlines()[0]


if __name__ == "__main__":
    main()
