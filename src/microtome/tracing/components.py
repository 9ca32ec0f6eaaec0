"""Names of the heads and MLPs of a model: the nodes that attribution and circuits speak of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microtome.errors import ModelSupportError

if TYPE_CHECKING:
    from microtome.tracing.model import Model


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
