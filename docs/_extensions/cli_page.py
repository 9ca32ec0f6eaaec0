"""Writes the reference of every command from the command line itself before each build."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from microtome.cli.app import app as application

_HEAD = """# Command line

`microtome --help` and `microtome COMMAND --help` print what stands here. An error is one paragraph
with a [code](errors.md) and no traceback unless `--debug` is given.

| exit code | meaning |
|---|---|
| 0 | it ran; a finding that fails its control is a result, too |
| 1 | nothing to explain, or a check failed; with `--strict` also a verdict not established |
| 2 | wrong usage or bad input; nothing is left half-written |
| 70 | an error of microtome's own, to be reported |
| 130 | interrupted |

"""


def write_page(app: Any) -> None:
    """Write ``reference/cli.md`` below the documentation's source folder."""
    root = typer.main.get_command(application)
    page = _HEAD + "".join(_section(path, command) for path, command in _commands("", root))
    path = Path(app.srcdir) / "reference" / "cli.md"
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != page:
        path.write_text(page, encoding="utf-8")


def _commands(prefix: str, group: Any) -> Iterator[tuple[str, Any]]:
    """Yield every command below a group with the words that call it."""
    for name, command in group.commands.items():
        words = f"{prefix} {name}".strip()
        if hasattr(command, "commands"):
            yield from _commands(words, command)
        else:
            yield words, command


def _section(words: str, command: Any) -> str:
    """Return the section of one command: usage, what it does, example, options."""
    text, _, example = inspect.cleandoc(command.help or "").partition("Example:")
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    shown = [a.name.upper() if a.required else f"[{a.name.upper()}]" for a in arguments]
    parts = [f"## microtome {words}\n\n{text.strip()}\n\n"]
    usage = " ".join(["microtome", words, *shown, "[OPTIONS]"])
    lines = [usage, *(line.strip() for line in example.strip().splitlines())]
    parts.append("```sh\n" + "\n".join(lines) + "\n```\n\n")
    rows = [_row(p) for p in command.params if p.name != "help"]
    parts.append("| option | default | meaning |\n|---|---|---|\n" + "".join(rows) + "\n")
    return "".join(parts)


def _row(parameter: Any) -> str:
    """Return the table row of one argument or option."""
    names = [*parameter.opts, *parameter.secondary_opts]
    if parameter.param_type_name == "argument":
        names = [parameter.name.upper()]
    default = "" if parameter.default is None or parameter.required else f"`{parameter.default}`"
    meaning = (parameter.help or "").replace("|", "\\|")
    return f"| {' '.join(f'`{name}`' for name in names)} | {default} | {meaning} |\n"


def setup(app: Any) -> dict[str, bool]:
    """Register the step with Sphinx."""
    app.connect("builder-inited", write_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
