"""What the arguments of a model's blocks depend on: rows of the batch, positions, or neither.

A replay hands each block the arguments it was recorded with, one entry for each row and position
that runs. Which axis counts rows cannot be told from one recorded pass (a bias with one entry for
each head looks like one entry for each row in a batch of as many rows), so two passes of different
batch and length are compared, once for each module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from microtome.models import hf
from microtome.tracing.condition import Remembered

if TYPE_CHECKING:
    from microtome.tracing.model import Model
    from microtome.tracing.replay import BaseRun

Rows = Literal["row", "flat", "shared"]
"""First axis of an argument: one entry for each row, one for each row and head, or neither."""

LONGEST, SHORTEST = 16, 6
"""Tokens of the longer pass at most, and tokens below which lengths are not compared."""


@dataclass(frozen=True, eq=False)
class ArgumentFacts:
    """What the arguments of each block depend on, by path (``position_embeddings.0``).

    Attributes:
        rows: What the first axis of each argument counts.
        positions: The axis that counts the positions that are computed, where there is one.
        shared: Why blocks cannot run apart from one another; empty where they can. Blocks that
            hand a dictionary to one another (of keys that later blocks use again) need every
            earlier block to have run on the same rows.
    """

    rows: tuple[Mapping[str, Rows], ...]
    positions: tuple[Mapping[str, int], ...]
    shared: str


_known: Remembered[ArgumentFacts] = Remembered()


def argument_facts(model: Model) -> ArgumentFacts:
    """Return what the arguments of a model's blocks depend on; measured once per module.

    Raises:
        ModelSupportError: If a pass of the model cannot be recorded.
    """
    return _known.of(model.module, lambda: _measured(model))


def shared_state(model: Model) -> str:
    """Return why blocks cannot run apart from one another; empty where they can."""
    return argument_facts(model).shared


def _measured(model: Model) -> ArgumentFacts:
    from microtome.tracing.replay import record

    anatomy = model.anatomy
    longest = min((anatomy.context if anatomy is not None else None) or LONGEST, LONGEST)
    shorter = longest - 2 if longest >= SHORTEST else longest
    vocab = anatomy.vocab if anatomy is not None else 1
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab, (3, longest), generator=generator)
    first = record(model, ids[:2], logits="last")
    second = record(model, ids[:, :shorter], logits="last")
    names = {k for a in first.arguments for k, v in a.items() if hasattr(v, "keys") and len(v)}
    shared = f"its blocks share a dictionary, {', '.join(sorted(names))}" if names else ""
    heads = anatomy.n_heads if anatomy is not None else 0
    pairs = list(zip(first.arguments, second.arguments, strict=True))
    return ArgumentFacts(
        tuple({p: _rows(a, b, heads) for p, a, b in _tensors(x, y)} for x, y in pairs),
        tuple(_positions(x, y, longest, shorter) for x, y in pairs) if shorter < longest else (),
        shared,
    )


def _tensors(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Return path and value of the tensors that two blocks' arguments have in common."""
    found: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    def visit(path: str, a: Any, b: Any) -> None:
        if isinstance(a, tuple | list) and isinstance(b, tuple | list):
            for number, (x, y) in enumerate(zip(a, b, strict=False)):
                visit(f"{path}.{number}", x, y)
        elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.ndim == b.ndim > 0:
            found.append((path, a, b))

    for name, value in one.items():
        visit(name, value, other.get(name))
    return found


def _rows(two: torch.Tensor, three: torch.Tensor, heads: int) -> Rows:
    sizes = two.shape[0], three.shape[0]
    if sizes == (2, 3):
        return "row"
    return "flat" if sizes == (2 * heads, 3 * heads) else "shared"


def _positions(
    longer: Mapping[str, Any], shorter: Mapping[str, Any], length: int, less: int
) -> dict[str, int]:
    """Return the axis of every argument that counts the positions that are computed."""
    found = {}
    for path, a, b in _tensors(longer, shorter):
        pairs = enumerate(zip(a.shape, b.shape, strict=True))
        varying = [i for i, (x, y) in pairs if x == length and y == less]
        if len(varying) > 1 or (varying and varying[0] < a.ndim - 1):
            # the queries' axis of a mask, or the positions of a table of angles
            found[path] = varying[0]
        elif varying and not a.is_floating_point() and int(a.max()) > 1:
            # position numbers; a last axis of another kind is that of the keys
            found[path] = varying[0]
    return found


def for_rows(
    value: Any, path: str, facts: Mapping[str, Rows], base: BaseRun, rows: torch.Tensor
) -> Any:
    """Return an argument of a block with one entry for each of some rows of a recorded run.

    A cache that the model made although none was asked for holds the recorded run's keys and is
    left out.

    Args:
        value: The argument.
        path: Its path.
        facts: What the block's arguments count; what is not in it is told by its size.
        base: The recorded run.
        rows: Rows of it, one for each row that runs.
    """
    if hf.is_cache(value):
        return None
    if isinstance(value, tuple | list):
        inner = (for_rows(v, f"{path}.{n}", facts, base, rows) for n, v in enumerate(value))
        return type(value)(inner)
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return value
    batch = base.tokens.shape[0]
    counts = facts.get(path) or ("row" if value.shape[0] == batch > 1 else "shared")
    if counts == "row" and value.shape[0] == batch:
        return value[rows.to(value.device)]
    if counts == "flat":
        # ALiBi biases are flattened over batch and head
        return value.unflatten(0, (batch, -1))[rows.to(value.device)].flatten(0, 1)
    if value.shape[0] == 1 and value.ndim == 4:
        return value.expand(len(rows), *value.shape[1:])
    return value


def cut(value: Any, path: str, axes: Mapping[str, int], first: int) -> Any:
    """Return an argument without the positions before ``first``."""
    if isinstance(value, tuple | list):
        return type(value)(cut(v, f"{path}.{n}", axes, first) for n, v in enumerate(value))
    if isinstance(value, torch.Tensor) and path in axes:
        axis = axes[path]
        return value.narrow(axis, first, value.shape[axis] - first)
    return value
