"""Names of the heads and MLPs of a model: the nodes that attribution and circuits speak of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from microtome.errors import ModelSupportError

if TYPE_CHECKING:
    from microtome.tracing.model import Model

_HEAD = re.compile(r"a(\d+)\.h(\d+)")


def component_names(model: Model) -> tuple[str, ...]:
    """Return the names of all heads and MLPs: ``a0.h0``, ..., ``m0``, ``a1.h0``, ...

    Raises:
        ModelSupportError: If the model is not a transformer.
    """
    if model.anatomy is None:
        raise ModelSupportError(f"{model.name} is not a transformer, so it has no heads and MLPs.")
    names: list[str] = []
    for layer, block in enumerate(model.anatomy.blocks):
        if block.attention is not None:
            names += [f"a{layer}.h{head}" for head in range(block.attention.n_heads)]
        if block.mlp is not None:
            names.append(f"m{layer}")
    return tuple(names)


def layer_of(component: str) -> int:
    """Return the block of a head or MLP."""
    match = _HEAD.fullmatch(component)
    return int(match.group(1)) if match else int(component[1:])


def head_of(component: str) -> int | None:
    """Return the number of a head, None for an MLP."""
    match = _HEAD.fullmatch(component)
    return int(match.group(2)) if match else None


def site_of(component: str) -> str:
    """Return the site of what a head (with its block's others) or an MLP gives."""
    name = "mlp.out" if head_of(component) is None else "attn.z"
    return f"blocks.{layer_of(component)}.{name}"
