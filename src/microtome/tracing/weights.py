"""Weights by head and neuron: views for analysis, never copied back into the model.

Everything is ``x @ W`` with the input axis first, whatever class the model's projections have.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from microtome.errors import SelectorError, SiteAbsentError
from microtome.models import hf
from microtome.models.anatomy import (
    Anatomy,
    AttentionAnatomy,
    BlockAnatomy,
    HeadColumns,
    MLPAnatomy,
)
from microtome.tracing.catalog import require_anatomy
from microtome.tracing.norms import centers, divisor


@dataclass(frozen=True, eq=False)
class Weights:
    """Views of a transformer's weights by head and neuron.

    Attributes:
        module: The model.
        anatomy: Where its parts are.
        fold_norm: Whether the matrices that read a norm's output have that norm's weight folded in
            (and, for a norm that subtracts the mean, are centered), so that they read the
            normalized stream directly. The model itself is not changed.
    """

    module: nn.Module
    anatomy: Anatomy | None
    fold_norm: bool = False

    def view(self, *, fold_norm: bool) -> Weights:
        """Return the same weights with the norms folded in or not."""
        return Weights(self.module, self.anatomy, fold_norm)

    @property
    def W_E(self) -> torch.Tensor:
        """Token embedding ``[vocab, d_model]``."""
        return self._table(self._anatomy().embed_token, "a token embedding")

    @property
    def W_pos(self) -> torch.Tensor:
        """Position embedding ``[pos, d_model]``.

        Raises:
            SiteAbsentError: If the model has none.
        """
        return self._table(self._anatomy().embed_pos, "a learned position embedding")

    @property
    def W_U(self) -> torch.Tensor:
        """Unembedding ``[d_model, vocab]``; with folding it reads the normalized stream."""
        anatomy = self._anatomy()
        if anatomy.tail.head is None:
            raise SiteAbsentError(f"W_U: {anatomy.tail.reason}.")
        weight = (
            hf.projection_weight(self.module.get_submodule(anatomy.tail.head)) * anatomy.tail.scale
        )
        return self._folded(weight, anatomy.final_norm)

    def W_Q(self, layer: int, head: int) -> torch.Tensor:
        """Query matrix of a head ``[d_model, d_head]``."""
        return self._port(layer, head, "q")

    def W_K(self, layer: int, head: int) -> torch.Tensor:
        """Key matrix of a head ``[d_model, d_head]``; grouped heads share one."""
        return self._port(layer, self._group(layer, head), "k")

    def W_V(self, layer: int, head: int) -> torch.Tensor:
        """Value matrix of a head ``[d_model, d_head]``; grouped heads share one."""
        return self._port(layer, self._group(layer, head), "v")

    def W_O(self, layer: int, head: int) -> torch.Tensor:
        """Output matrix of a head ``[d_head, d_model]``, with the branch's multiplier.

        Raises:
            SiteAbsentError: If the output projection was not found.
        """
        attention = self._attention(layer)
        if attention.out_proj is None:
            raise SiteAbsentError(f"W_O of block {layer}: the output projection was not found.")
        self._check(head, attention.n_heads, "head")
        weight = hf.projection_weight(self.module.get_submodule(attention.out_proj))
        by_head = weight.reshape(attention.n_heads, -1, *weight.shape[1:])
        return by_head[head] * attention.scale

    def OV(self, layer: int, head: int) -> torch.Tensor:
        """What a head writes for what it reads, ``W_V @ W_O`` ``[d_model, d_model]``."""
        return self.W_V(layer, head) @ self.W_O(layer, head)

    def QK(self, layer: int, head: int) -> torch.Tensor:
        """What a head looks for, ``W_Q @ W_K^T`` ``[d_model, d_model]``, without rotary."""
        return self.W_Q(layer, head) @ self.W_K(layer, head).T

    def neuron_in(self, layer: int) -> torch.Tensor:
        """Input vectors of the neurons ``[d_model, neuron]`` (the linear branch of a gated MLP)."""
        mlp = self._mlp(layer)
        return self._neurons(layer, mlp, mlp.up, "up", first=mlp.fused == "up-gate")

    def neuron_gate(self, layer: int) -> torch.Tensor:
        """Gate vectors of the neurons ``[d_model, neuron]``.

        Raises:
            SiteAbsentError: If the MLP is not gated.
        """
        mlp = self._mlp(layer)
        return self._neurons(layer, mlp, mlp.gate, "gate", first=mlp.fused == "gate-up")

    def neuron_out(self, layer: int) -> torch.Tensor:
        """Output vectors of the neurons ``[neuron, d_model]``."""
        mlp = self._mlp(layer)
        if mlp.down is None:
            raise SiteAbsentError(
                f"neuron_out of block {layer}: no projection from its neurons was found."
            )
        return hf.projection_weight(self.module.get_submodule(mlp.down)) * mlp.scale

    def _anatomy(self) -> Anatomy:
        return require_anatomy(self.anatomy, "A view of the weights")

    def _table(self, path: str | None, what: str) -> torch.Tensor:
        if path is None:
            raise SiteAbsentError(f"The model has no {what.split(' ', 1)[1]}.")
        weight = self.module.get_submodule(path).weight
        if not isinstance(weight, torch.Tensor):
            raise SiteAbsentError(f"{path} is not {what}.")
        return weight

    def _block(self, layer: int) -> BlockAnatomy:
        blocks = self._anatomy().blocks
        self._check(layer, len(blocks), "layer")
        return blocks[layer]

    def _attention(self, layer: int) -> AttentionAnatomy:
        attention = self._block(layer).attention
        if attention is None:
            raise SiteAbsentError(f"Block {layer} has no attention.")
        return attention

    def _mlp(self, layer: int) -> MLPAnatomy:
        mlp = self._block(layer).mlp
        if mlp is None:
            raise SiteAbsentError(f"Block {layer} has no MLP.")
        return mlp

    def _group(self, layer: int, head: int) -> int:
        attention = self._attention(layer)
        self._check(head, attention.n_heads, "head")
        return head // (attention.n_heads // attention.n_kv_heads)

    def _port(self, layer: int, head: int, name: str) -> torch.Tensor:
        found = self._attention(layer).projections.get(name)
        if found is None:
            raise SiteAbsentError(f"W_{name.upper()} of block {layer}: its columns were not found.")
        self._check(head, len(found.columns), "head")
        weight = self._columns(found, head)
        return self._folded(weight, self._block(layer).norms.get("attn.norm"))

    def _columns(self, found: HeadColumns, head: int) -> torch.Tensor:
        weight = hf.projection_weight(self.module.get_submodule(found.path))
        columns = torch.as_tensor(found.columns[head], device=weight.device)
        return weight[:, columns] * found.scale

    def _neurons(
        self, layer: int, mlp: MLPAnatomy, path: str | None, what: str, *, first: bool
    ) -> torch.Tensor:
        if path is None:
            raise SiteAbsentError(f"The {what} projection of block {layer} was not found.")
        weight = hf.projection_weight(self.module.get_submodule(path))
        if mlp.fused is not None:
            weight = weight.chunk(2, dim=1)[0 if first else 1]
        return self._folded(weight, self._block(layer).norms.get("mlp.norm"))

    def _folded(self, weight: torch.Tensor, norm: str | None) -> torch.Tensor:
        if not self.fold_norm or norm is None:
            return weight
        part = self.module.get_submodule(norm)
        gain = getattr(part, "weight", None)
        if isinstance(gain, torch.Tensor):
            weight = weight * norm_gain(part).unsqueeze(1)
        return weight - weight.mean(0, keepdim=True) if centers(part) else weight

    @staticmethod
    def _check(number: int, size: int, what: str) -> None:
        if not 0 <= number < size:
            raise SelectorError(
                f"{what} {number} is out of range; there are {size} (0 to {size - 1})."
            )


def norm_gain(norm: nn.Module) -> torch.Tensor:
    """Return what a norm multiplies the normalized stream with, found by a unit input.

    Some families store the gain minus one; running the norm tells without knowing the family.
    """
    weight = norm.weight
    if not isinstance(weight, torch.Tensor):
        raise SiteAbsentError(f"{type(norm).__name__} has no weight.")
    size = weight.shape[-1]
    probe = torch.ones(2, size, device=weight.device, dtype=weight.dtype)
    probe[:, ::2] = -1.0
    if size % 2:
        probe[:, -1] = 0.0
    probe[1] *= -1.0
    with torch.no_grad():
        up, down = norm.forward(probe)
        bias = (up + down) / 2
        scale = divisor(norm, probe)[0].to(probe.dtype)
        gain: torch.Tensor = (up - bias) * scale / torch.where(probe[0] == 0, 1.0, probe[0])
        if size % 2:
            gain[-1] = weight[-1] + (gain[0] - weight[0]).round()
    return gain
