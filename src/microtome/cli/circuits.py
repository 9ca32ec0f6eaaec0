"""``microtome circuit``: the commands on circuits, each in a file of its own."""

from __future__ import annotations

import typer

from microtome.cli import circuit_exchange

app = typer.Typer(
    name="circuit", help="Circuits: convert, draw and compare them.", no_args_is_help=True
)
app.command("convert")(circuit_exchange.convert)
app.command("show")(circuit_exchange.show)
app.command("diff")(circuit_exchange.diff)
