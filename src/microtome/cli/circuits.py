"""``microtome circuit``: the commands about circuits, each in a file of its own."""

from __future__ import annotations

import typer

from microtome.cli import (
    circuit_benchmark,
    circuit_exchange,
    circuit_finding,
    circuit_graphs,
    circuit_judging,
    circuit_names,
    circuit_steps,
    circuit_tests,
)

app = typer.Typer(
    name="circuit",
    help="Find, judge, test, step through, name, draw and convert circuits.",
    no_args_is_help=True,
)
app.command("find")(circuit_finding.find)
app.command("evaluate")(circuit_finding.evaluate)
app.command("judge")(circuit_judging.judge)
app.command("test")(circuit_tests.test)
app.command("versus")(circuit_tests.versus)
app.command("step")(circuit_steps.step)
app.command("graph")(circuit_graphs.graph)
app.command("name")(circuit_names.name)
app.command("show")(circuit_exchange.show)
app.command("diff")(circuit_exchange.diff)
app.command("convert")(circuit_exchange.convert)
app.command("benchmark")(circuit_benchmark.benchmark)
