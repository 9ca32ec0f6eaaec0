"""``microtome circuit``: the commands about circuits."""

from __future__ import annotations

import typer

from microtome.cli import circuit_tests

app = typer.Typer(help="Find, judge, test and draw circuits.", no_args_is_help=True)
app.command("test")(circuit_tests.test)
