"""``microtome circuit step``: what feeds a place of the forward pass, and what it feeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microtome.cli.options import (
    Device,
    Dtype,
    Json,
    ModelName,
    Threads,
    open_model,
    print_json,
    say,
)

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from microtome.circuits.stepping.results import Link, Step, Steps

WIDEST = 100
"""Columns that a tree takes at most."""

BAR = 10
"""Columns of a bar."""


def step(
    model: ModelName,
    prompt: Annotated[str, typer.Argument(help="The prompt.", show_default=False)],
    start: Annotated[
        str,
        typer.Option(
            "--from", help="A part (a1.h3, 'a1.h3<q>', m2, m2.n17) or a site; see the docs."
        ),
    ] = "logits",
    pos: Annotated[
        int | None, typer.Option(help="Position; the last by default, negative from the end.")
    ] = None,
    forward: Annotated[
        bool, typer.Option("--forward/--backward", help="What it feeds, or what feeds it.")
    ] = False,
    depth: Annotated[int, typer.Option(help="Steps to go on.", min=1, max=8)] = 2,
    top: Annotated[int, typer.Option(help="Links shown in each step.", min=1)] = 6,
    branch: Annotated[int, typer.Option(help="Links of a step to go on from.", min=1)] = 2,
    neurons: Annotated[
        bool, typer.Option("--neurons", help="Split MLPs into neurons right away.")
    ] = False,
    token: Annotated[
        str | None, typer.Option(help="For logits: the token, with its leading space.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="For logits: the token to compare with; '' for none.")
    ] = None,
    other: Annotated[
        int | None, typer.Option(help="For q its key's position, for k its query's.")
    ] = None,
    generate: Annotated[
        int, typer.Option(help="Generate tokens, with one tree for each.", min=0)
    ] = 0,
    html: Annotated[Path | None, typer.Option(help="Also write a page to this file.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Step from a place of the forward pass to what feeds it directly, or what it feeds.

    Example: microtome circuit step python-code "x = 'abc" --depth 2
    """
    from microtome.circuits.stepping import step as run

    found = run(
        open_model(model, device, dtype, threads), prompt, start, pos=pos,
        way="forward" if forward else "backward", depth=depth, top=top, branch=branch,
        neurons=neurons, token=token, against=against, other=other, generate=generate,
    )  # fmt: skip
    if html is not None:
        from microtome.circuits.stepping.pages import write_page

        say(f"Written: {write_page(found, html)}")
    if as_json:
        print_json(found.to_dict())
        return
    _print(found)


def _print(found: Steps) -> None:
    from rich.console import Console

    screen = Console()
    width = min(screen.width, WIDEST) if screen.is_terminal else WIDEST
    console = Console(soft_wrap=False, highlight=False, width=width)
    tokens = " ".join(f"{n}:{t!r}" for n, t in enumerate(found.tokens))
    console.print(tokens, markup=False, style="dim")
    for number, root in enumerate(found.roots):
        if len(found.roots) > 1:
            new = found.tokens[found.prompt_length + number]
            console.print(f"\nGenerated token {number + 1}: {new!r}", markup=False, style="bold")
        console.print(_tree(found, root))
    what = "Unexplained" if found.roots[0].way == "backward" else "Left out by holding norms"
    say(f"{found.note} {what}: at most {found.unexplained:.1e} of a step.")


def _tree(found: Steps, root: Step) -> Tree:
    from rich.tree import Tree

    tree = Tree(_heading(found, root), guide_style="dim")
    _fill(found, tree, root)
    return tree


def _fill(found: Steps, tree: Tree, step: Step) -> None:
    from rich.text import Text

    largest = max((abs(_size(step, link)) for link in step.links), default=0.0)
    for link in step.links:
        node = tree.add(_line(found, step, link, largest))
        for below in step.steps:
            if below.explains == f"{link.part}@{link.pos}":
                _fill(found, node.add(_heading(found, below)), below)
    if step.hidden:
        amount = f"{step.hidden_value:+10.3f}" if step.way == "backward" else ""
        tree.add(Text(f"{f'{step.hidden} more':<24}{amount}", style="dim"))
    if step.way == "backward" and step.constant:
        tree.add(Text(f"{'constant':<24}{step.constant:+10.3f}", style="dim"))
    if step.unexplained > 1e-3:
        why = "unexplained" if step.way == "backward" else "of the change is left out: norms held"
        tree.add(Text(f"{step.unexplained:.1%} {why}", style="dark_orange"))


def _heading(found: Steps, step: Step) -> Text:
    from rich.text import Text

    text = Text(_at(found, step.place, step.pos), style="bold")
    text.append(f"  {step.label} = ", style="default not bold")
    text.append(f"{step.value:+.3f}" if step.way == "backward" else f"{step.value:.3f}")
    if step.held:
        text.append(f"  ({step.held} held)", style="dim not bold")
    return text


def _size(step: Step, link: Link) -> float:
    return link.value if step.way == "backward" else link.share


def _line(found: Steps, step: Step, link: Link, largest: float) -> Text:
    from rich.text import Text

    name = _at(found, link.part, link.pos)
    text = Text(f"{name:<24}")
    size = _size(step, link)
    positive = size >= 0
    text.append(f"{size:+10.3f} " if step.way == "backward" else f"{size:9.1%} ")
    filled = "█" * round(BAR * abs(size) / max(largest, 1e-30))
    text.append(f"{filled:<{BAR}} ", style="blue" if positive else "dark_orange")
    text.append(_remark(found, step, link), style="dim")
    return text


def _remark(found: Steps, step: Step, link: Link) -> str:
    if step.way == "backward":
        if link.other is None:
            return ""
        return f"from {_token(found, link.other)} {link.other_value:+.3f}"
    kind = link.part.rsplit("<", 1)[-1]
    if link.other is None:
        return link.detail
    where = _token(found, link.other)
    if kind == "v>":
        return f"to {where}, attention {link.other_value:.2f}"
    ask = "on" if kind == "q>" else "of"
    return f"score {ask} {where} {link.value:+.2f}, attention {link.other_value:+.3f}"


def _at(found: Steps, part: str, pos: int) -> str:
    return part if pos < 0 else f"{part} @ {_token(found, pos)}"


def _token(found: Steps, pos: int) -> str:
    text = repr(found.token(pos))
    return f"{pos} {text if len(text) <= 12 else text[:10] + '…' + text[0]}"
