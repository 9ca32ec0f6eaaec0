"""``microtome circuit``: the commands on circuits, each in a file of its own."""

from __future__ import annotations

import typer

from microtome.cli import circuit_benchmark, circuit_finding, circuit_tests

app = typer.Typer(help="Find, judge, test and draw circuits.", no_args_is_help=True)
app.command("find")(circuit_finding.find)
app.command("evaluate")(circuit_finding.evaluate)
app.command("test")(circuit_tests.test)
app.command("benchmark")(circuit_benchmark.benchmark)
