"""``microtome sae``: the commands about sparse coders, each in a file of its own."""

from __future__ import annotations

import typer

from microtome.cli import (
    sae_converting,
    sae_evaluation,
    sae_harvest,
    sae_labelled,
    sae_latents,
    sae_showing,
    sae_training,
)

app = typer.Typer(
    name="sae",
    help="Harvest activations; train, evaluate, read and convert sparse coders.",
    no_args_is_help=True,
)
app.command("harvest")(sae_harvest.harvest)
app.command("train")(sae_training.train)
app.command("eval")(sae_evaluation.evaluate)
app.command("stability")(sae_evaluation.stability)
app.command("probe")(sae_labelled.probe)
app.command("interchange")(sae_labelled.interchange)
app.command("latents")(sae_latents.latents)
app.command("show")(sae_showing.show)
app.command("convert")(sae_converting.convert)


@app.callback()
def sae() -> None:
    """Harvest activations; train, evaluate, read and convert sparse coders."""
