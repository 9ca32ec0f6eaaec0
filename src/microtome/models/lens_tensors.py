"""The tensors of a TransformerLens state dict: reading them, and checking names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from microtome.errors import ModelFileError, ModelNotFoundError, ModelSupportError, UnsafeFileError

BUFFERS = ("attn.mask", "attn.IGNORE")
"""What attention saves beside its weights. The mask is causal whatever the attention is."""

ELSEWHERE: Mapping[str, str] = {
    "attn.rotary_": "rotary positions",
    "attn._W_K": "key/value heads that queries share",
    "attn.alibi": "a bias by distance",
    "mlp.W_gate": "gated MLPs",
    "mlp.experts": "experts",
    "embed.ln": "a norm behind the embedding",
    "attn.q_norm": "norms of queries and keys",
}
"""Tensors of models that are no GPT-2, and what they mean."""

_BLOCK = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True)
class Shape:
    """Sizes that the tensors tell.

    Attributes:
        layers: Blocks.
        heads: Heads of each block.
        size: Size of a head.
        width: Size of the residual stream.
        neurons: Neurons of each MLP, 0 without MLPs.
        context: Positions.
        vocab: Tokens.
        labels: Logits.
    """

    layers: int
    heads: int
    size: int
    width: int
    neurons: int
    context: int
    vocab: int
    labels: int


@dataclass(frozen=True, eq=False)
class LensTensors:
    """The tensors by name.

    Attributes:
        name: Where they come from, for errors.
        tensors: By TransformerLens's names, as they were saved.
    """

    name: str
    tensors: Mapping[str, torch.Tensor]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name].float()

    def check(self, *, norms: bool) -> Shape:
        """Return the sizes, after comparing names and shapes of all tensors.

        Args:
            norms: Whether norms have weights.

        Raises:
            ModelFileError: If tensors are missing, unknown or of a wrong shape; all are named.
            ModelSupportError: If the tensors are those of another kind of model.
        """
        for name in self.tensors:
            for part, meaning in ELSEWHERE.items():
                if part in name:
                    raise ModelSupportError(
                        f"{self.name} holds {name}: {meaning}, which are not opened from a state "
                        "dict. If the model comes from the Hugging Face hub, open it from there."
                    )
        shape = self._shape()
        expected = expected_shapes(shape, norms=norms)
        own = {k: tuple(v.shape) for k, v in self.tensors.items() if not k.endswith(BUFFERS)}
        missing = sorted(set(expected) - set(own))
        unknown = sorted(set(own) - set(expected))
        wrong = [k for k in sorted(own) if k in expected and own[k] != expected[k]]
        problems = []
        if missing:
            problems.append(f"{len(missing)} missing: {_some(missing)}")
        if unknown:
            problems.append(f"{len(unknown)} unknown: {_some(unknown)}")
        if wrong:
            shown = [f"{k} is {own[k]}, expected {expected[k]}" for k in wrong]
            problems.append(f"{len(wrong)} of a wrong shape: {_some(shown)}")
        if problems:
            raise ModelFileError(
                f"{self.name} does not fit its settings. Tensors {'; '.join(problems)}."
                f"{_hint(missing, unknown, own, expected)}"
            )
        return shape

    def _shape(self) -> Shape:
        """Return the sizes by a few tensors, which have to be there."""
        wanted = {
            "embed.W_E": 2, "pos_embed.W_pos": 2, "unembed.W_U": 2, "blocks.0.attn.W_Q": 3,
        }  # fmt: skip
        for name, axes in wanted.items():
            if name not in self.tensors or self.tensors[name].ndim != axes:
                what = (
                    f"of shape {tuple(self.tensors[name].shape)}"
                    if name in self.tensors
                    else "missing"
                )
                raise ModelFileError(
                    f"{self.name}: {name} is {what}; a TransformerLens state dict with learned "
                    f"positions has one of {axes} axes. There are {_some(sorted(self.tensors))}."
                )
        blocks = {int(m.group(1)) for name in self.tensors if (m := _BLOCK.match(name))}
        neurons = self.tensors.get("blocks.0.mlp.W_in", torch.zeros(0, 0))
        heads, _, size = self.tensors["blocks.0.attn.W_Q"].shape
        return Shape(
            layers=max(blocks) + 1,
            heads=heads,
            size=size,
            width=self.tensors["pos_embed.W_pos"].shape[1],
            neurons=neurons.shape[-1],
            context=self.tensors["pos_embed.W_pos"].shape[0],
            vocab=self.tensors["embed.W_E"].shape[0],
            labels=self.tensors["unembed.W_U"].shape[1],
        )


def read_tensors(source: str | Path | Mapping[str, torch.Tensor]) -> LensTensors:
    """Return the tensors of a safetensors or npz file, or those that are given.

    Raises:
        ModelNotFoundError: If there is no such file.
        UnsafeFileError: If it is neither: it may be a pickle, which could run foreign code.
        ModelFileError: If it is corrupt.
    """
    if isinstance(source, Mapping):
        return LensTensors("The state dict", dict(source))
    file = Path(source)
    if not file.is_file():
        raise ModelNotFoundError(f"There is no file {file}.")
    if file.suffix not in (".safetensors", ".npz"):
        raise UnsafeFileError(
            f"{file} is no *.safetensors or *.npz; other files may be pickles, which could run "
            "foreign code, so they are refused. Convert it on a machine you trust."
        )
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return LensTensors(str(file), load_file(file))
        with np.load(file, allow_pickle=False) as opened:
            return LensTensors(str(file), {k: torch.from_numpy(opened[k]) for k in opened.files})
    except (SafetensorError, OSError, ValueError, TypeError, EOFError) as error:
        raise ModelFileError(
            f"{file} cannot be read: {' '.join(str(error).split())[:200]}. It may be truncated: "
            "fetch it again."
        ) from None


def expected_shapes(shape: Shape, *, norms: bool) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a model, by name."""
    d, h, k, m = shape.width, shape.heads, shape.size, shape.neurons
    found: dict[str, tuple[int, ...]] = {
        "embed.W_E": (shape.vocab, d),
        "pos_embed.W_pos": (shape.context, d),
        "unembed.W_U": (d, shape.labels),
        "unembed.b_U": (shape.labels,),
    }
    named = ["ln_final"] if norms else []
    for number in range(shape.layers):
        start = f"blocks.{number}"
        found |= {f"{start}.attn.W_{port}": (h, d, k) for port in "QKV"}
        found |= {f"{start}.attn.b_{port}": (h, k) for port in "QKV"}
        found |= {f"{start}.attn.W_O": (h, k, d), f"{start}.attn.b_O": (d,)}
        named += [f"{start}.ln1"] * norms
        if m:
            found |= {f"{start}.mlp.W_in": (d, m), f"{start}.mlp.b_in": (m,)}
            found |= {f"{start}.mlp.W_out": (m, d), f"{start}.mlp.b_out": (d,)}
            named += [f"{start}.ln2"] * norms
    return found | {f"{name}.{part}": (d,) for name in named for part in "wb"}


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _hint(
    missing: list[str],
    unknown: list[str],
    own: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
) -> str:
    """Return what is probably the matter."""
    if missing and all(".ln" in n or n.startswith("ln") for n in missing):
        return (
            " With weights folded into what follows, say normalization_type=LNPre; without, None."
        )
    if unknown and all(".ln" in n or n.startswith("ln") for n in unknown):
        return " They are weights of norms: say normalization_type=LN."
    tables = [n for n in ("embed.W_E", "unembed.W_U") if n in own]
    if any(own[n] != expected[n] and own[n][::-1] == expected[n] for n in tables) or (
        own["embed.W_E"][0] == expected["pos_embed.W_pos"][1]
        and own["embed.W_E"][1] != expected["pos_embed.W_pos"][1]
    ):
        return (
            " The matrices look transposed: W_E is [d_vocab, d_model], W_Q [head, d_model, d_head]."
        )
    return ""
