"""Build the tiny random models of the family table."""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from microtome.errors import UnknownNameError, nearest
from microtome.models.families.table import TOKENS, VOCAB, Changes, Family

if TYPE_CHECKING:
    import torch
    from torch import nn

# Spread of the random weights. The default of 0.02 would leave a transformer nearly linear and
# its attention uniform, so that most options changed nothing.
GAIN, EMBEDDING_SPREAD, NORM_SPREAD, BIAS_SPREAD = 1.5, 0.5, 0.3, 0.2
FIRST_ORDINARY_TOKEN = 5


@cache
def _rows() -> dict[str, Family]:
    from microtome.models.families import (
        alibi,
        classic,
        decoders,
        encoders,
        gemma,
        hybrids,
        moe,
        routed,
        state_space,
        windowed,
    )

    rows = (
        *classic.FAMILIES,
        *alibi.FAMILIES,
        *decoders.FAMILIES,
        *windowed.FAMILIES,
        *gemma.FAMILIES,
        *moe.FAMILIES,
        *routed.FAMILIES,
        *hybrids.FAMILIES,
        *state_space.FAMILIES,
        *encoders.FAMILIES,
    )
    return {row.name: row for row in rows}


def names() -> tuple[str, ...]:
    """Return the names of all families of the table, in the table's order."""
    return tuple(_rows())


def family(name: str) -> Family:
    """Return a family's row.

    Raises:
        UnknownNameError: No row has this name.
    """
    rows = _rows()
    if name not in rows:
        message = f"no model family {name!r} in the table of {len(rows)} families"
        raise UnknownNameError(f"{message}{nearest(name, rows)}")
    return rows[name]


def probe(*, rows: int = 1, seed: int = 0) -> torch.Tensor:
    """Return token ids to try a family with, ``[rows, 11]``, none of them a special token."""
    import torch

    generator = _generator(seed, "probe")
    return torch.randint(FIRST_ORDINARY_TOKEN, VOCAB, (rows, TOKENS), generator=generator)


def build(
    name: str, *, seed: int = 0, neutral: str | None = None, attn_implementation: str | None = None
) -> nn.Module:
    """Build a family's tiny random model, in evaluation mode and float32.

    The weights of a parameter depend on the seed and on its name alone: two builds are bit-equal,
    and a build with one option neutralized has the same weights wherever it has the parameter.
    Nothing is read from disk or network and the global random state is left as it was.

    Args:
        name: A family of the table.
        seed: Seed of the weights.
        neutral: An option of the family to neutralize.
        attn_implementation: Attention implementation of transformers; None takes its default.

    Raises:
        UnknownNameError: No such family, or the family has no such option.
    """
    row = family(name)
    changes = _neutral_changes(row, neutral) if neutral is not None else {}
    model = _construct(row, changes, attn_implementation)
    _fill(model, seed)
    for key, value in changes.items():
        if key.startswith("weight:"):
            _set_constant(model, key.removeprefix("weight:"), value)
    return model.eval()


def _neutral_changes(row: Family, option: str) -> Changes:
    if option not in row.options:
        raise UnknownNameError(
            f"family {row.name!r} has no option {option!r}{nearest(option, row.options)}"
        )
    return row.options[option]


def _construct(row: Family, changes: Changes, attn_implementation: str | None) -> nn.Module:
    import torch
    import transformers

    settings = {**row.special_tokens, **_plain(row.config)}
    for key, value in changes.items():
        if not key.startswith("weight:"):
            _set_deep(settings, key, _plain(value))
    config = transformers.AutoConfig.for_model(row.model_type, **settings)
    auto: Any = {
        "causal": transformers.AutoModelForCausalLM,
        "masked": transformers.AutoModelForMaskedLM,
    }[row.kind]
    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    with torch.random.fork_rng(devices=[]):
        # The constructor draws initial values, some of which the filling below starts from.
        torch.default_generator.manual_seed(0)
        model: nn.Module = auto.from_config(config, dtype=torch.float32, **options)
    return model


def _plain(value: Any) -> Any:
    """Return a copy in plain dicts and lists, which configurations may change in place."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def _set_deep(settings: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        settings = settings[parent]
    settings[last] = value


def _fill(model: nn.Module, seed: int) -> None:
    """Draw every parameter and stored buffer anew from the seed and its name."""
    import torch

    owners = dict(model.named_modules())
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    tensors = model.state_dict(keep_vars=True)
    # A tied unembedding is drawn as the embedding that it is.
    embeddings = {name for name in tensors if _is_embedding(owners[name.rpartition(".")[0]])}
    seen: set[int] = set()
    with torch.no_grad():
        for name in sorted(tensors, key=lambda name: (name not in embeddings, name)):
            tensor = tensors[name]
            if id(tensor) in seen or not tensor.is_floating_point():
                continue
            seen.add(id(tensor))
            if id(tensor) not in trained and not _is_constant(tensor):
                continue  # a table that the model computes, such as sinusoids
            noise = torch.randn(tensor.shape, generator=_generator(seed, name))
            center, spread = _center_and_spread(name, tensor, owners[name.rpartition(".")[0]])
            tensor.copy_(center + spread * noise)


def _center_and_spread(name: str, tensor: torch.Tensor, owner: nn.Module) -> tuple[Any, float]:
    """Return around which value and how widely to draw a tensor."""
    kind = type(owner).__name__
    if name.endswith("A_log") and tensor.ndim > 1:
        return tensor.clone(), BIAS_SPREAD  # decay rates, one of each size: not random
    if _is_constant(tensor) and (tensor.ndim == 1 or tensor.numel() == 1 or tensor.min() != 0):
        center = float(tensor.flatten()[0])
        return center, BIAS_SPREAD if name.endswith("bias") else NORM_SPREAD
    if _is_embedding(owner):
        return 0.0, EMBEDDING_SPREAD
    if tensor.ndim == 1:
        return 0.0, 1.0  # drawn by the model itself, such as attention sinks
    if kind == "Conv1D":  # the GPT-2 layer, stored as [in, out]
        fan_in = tensor.shape[0]
    elif tensor.ndim == 3 and kind != "Conv1d":  # one matrix per expert
        fan_in = tensor.shape[-1]
    else:
        fan_in = math.prod(tensor.shape[1:])
    return 0.0, GAIN / math.sqrt(fan_in)


def _is_embedding(owner: nn.Module) -> bool:
    return "Embedding" in type(owner).__name__


def _is_constant(tensor: torch.Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


def _set_constant(model: nn.Module, pattern: str, value: float) -> None:
    import torch

    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if fnmatch.fnmatchcase(name, pattern):
                tensor.fill_(value)


def _generator(seed: int, name: str) -> torch.Generator:
    import torch

    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
