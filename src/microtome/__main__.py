"""``python -m microtome``: the command line."""

from __future__ import annotations

from microtome.cli.app import main

main()
