"""Write constraints.txt: the exact version of every package in the running environment.

Run as ``.venv/bin/python scripts/lock.py`` after ``make install``. Local version labels, such
as the ``+cpu`` of a torch build, are left out, and so is the project itself.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

PLACE = Path(__file__).resolve().parents[1] / "constraints.txt"
LEFT_OUT = {"microtome", "pip", "setuptools", "wheel"}
HEAD = "# The whole dependency set, written by scripts/lock.py; what the tests run with.\n"


def pins() -> list[str]:
    """Return one ``name==version`` per installed package, by name."""
    found = {}
    for package in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower()
        if name not in LEFT_OUT:
            found[name] = package.version.partition("+")[0]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def main() -> int:
    """Write the file and say what it holds."""
    lines = pins()
    PLACE.write_text(HEAD + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{PLACE.name}: {len(lines)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
