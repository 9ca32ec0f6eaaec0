"""``python -m benchmarks [overhead] [sweeps] [twins] [maximization]``: tables, by default all."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks import maximization, overhead, sweeps, twins

TABLES: dict[str, Callable[[], str]] = {
    "overhead": overhead.table,
    "sweeps": sweeps.table,
    "twins": twins.table,
    "maximization": maximization.table,
}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", help="which tables")
    for name in parser.parse_args().tables or list(TABLES):
        print(TABLES[name](), flush=True)


if __name__ == "__main__":
    main()
