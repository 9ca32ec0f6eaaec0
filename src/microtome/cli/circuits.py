"""``microtome circuit``: the commands on circuits, each in a file of its own."""

from __future__ import annotations

import typer

from microtome.cli import circuit_benchmark

app = typer.Typer(name="circuit", help="Circuits and those who find them.", no_args_is_help=True)


@app.callback()
def circuit() -> None:
    """Circuits and those who find them."""


app.command("benchmark")(circuit_benchmark.benchmark)
