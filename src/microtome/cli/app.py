"""The command line: ``microtome COMMAND``; commands load what they need when they run."""

from __future__ import annotations

import typer

from microtome.cli import analysis, circuits, dissection, health, inputs, models, sae, sweeping
from microtome.cli.running import run

app = typer.Typer(
    name="microtome",
    help="Open a network, find the mechanism behind a behavior, test it, edit it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(models.app, name="models")
app.add_typer(circuits.app, name="circuit")
app.add_typer(sae.app, name="sae")
app.command("dissect")(dissection.dissect)
app.command("trace")(analysis.trace)
app.command("lens")(analysis.lens)
app.command("sweep")(sweeping.sweep)
app.command("attribute")(analysis.attribute)
app.command("attribute-inputs")(inputs.attribute_inputs)
app.command("maximize")(inputs.maximize)
app.command("doctor")(health.doctor)


def main() -> None:
    """Run the command line; every error ends it with one paragraph and an exit code."""
    run(app)
