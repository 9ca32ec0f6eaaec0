"""``microtome circuit``: the commands on circuits and their parts."""

from __future__ import annotations

import typer

from microtome.cli import circuit_names

app = typer.Typer(help="Circuits and what their parts are.", no_args_is_help=True)


@app.callback()
def circuit() -> None:
    """Circuits and what their parts are."""


app.command("name")(circuit_names.name)
