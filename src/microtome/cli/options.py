"""Options that several commands share, and opening what they name."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from microtome.behaviors.behavior import Behavior
    from microtome.tracing.model import Model

ModelName = Annotated[
    str, typer.Argument(help="A folder, a hub id, or the name of a specimen.", show_default=False)
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")
]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
Device = Annotated[str | None, typer.Option(help="Device of the model, such as cpu or cuda.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads of torch; by default half of the processors.", min=1, max=4096),
]
Home = Annotated[
    Path | None, typer.Option(help="Folder of microtome's files; $MICROTOME_HOME by default.")
]


def open_model(name: str, device: str | None, dtype: str | None, threads: int | None) -> Model:
    """Open a model with the shared options."""
    import torch

    from microtome.errors import ConfigError
    from microtome.tracing.opening import load

    use_threads(threads)
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(
                f"--device {device} cannot be used: {str(error).splitlines()[0]}"
            ) from None
    return load(name, device=device, dtype=dtype)


def use_threads(threads: int | None) -> None:
    """Set the threads of torch; by default half of the processors."""
    import torch

    # contended threads are many times slower than fewer that are free
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 2) // 2))


def open_behavior(name: str, n: int, seed: int) -> Behavior:
    """Open a behavior by name or from a file."""
    from microtome.behaviors.registry import get

    return get(name, n=n, seed=seed)


def use_home(home: Path | None) -> None:
    """Set the folder of microtome's files for this process."""
    if home is not None:
        os.environ["MICROTOME_HOME"] = str(home)


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    from microtome.core.plain import plain

    sys.stdout.write(json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def print_table(
    columns: list[str], rows: list[list[str]], *, title: str = "", right: tuple[int, ...] = ()
) -> None:
    """Print a table that fits the terminal.

    Args:
        columns: Headings.
        rows: Cells as text.
        title: A line above.
        right: Columns that hold numbers.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(soft_wrap=False).print(table)


def say(text: str) -> None:
    """Print a line for people on standard error."""
    print(text, file=sys.stderr)
