"""``microtome circuit``: the commands on circuits, each in a file of its own."""

from __future__ import annotations

import typer

from microtome.cli import circuit_steps

app = typer.Typer(
    name="circuit", help="Circuits: step through what feeds what.", no_args_is_help=True
)
app.command("step")(circuit_steps.step)
