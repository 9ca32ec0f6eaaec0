"""One forward pass with everything that steps read: values, frozen norms and what ports compute.

A port reads the stream through a norm and a projection. With the norm's divisor frozen at its value
both are linear: ``x @ W + c``, where ``W`` has the norm's gain and centering folded in and ``c``
holds the biases of norm and projection.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from microtome.errors import ModelSupportError
from microtome.models import hf
from microtome.models.compare import relative_error
from microtome.tracing.catalog import require_anatomy, require_sums
from microtome.tracing.norms import divisor
from microtome.tracing.sites import Site, at

if TYPE_CHECKING:
    from microtome.models.anatomy import Anatomy, AttentionAnatomy, BlockAnatomy, MLPAnatomy
    from microtome.tracing.model import Model
    from microtome.tracing.trace import Trace


@dataclass(frozen=True, eq=False)
class Recorded:
    """A recorded pass of one prompt.

    Attributes:
        model: The model.
        anatomy: Where its parts are.
        tokens: Token ids ``[1, pos]``.
        trace: The pass.
    """

    model: Model
    anatomy: Anatomy
    tokens: torch.Tensor
    trace: Trace
    _turns: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _scales: dict[int, float] = field(default_factory=dict)
    _values: dict[str, torch.Tensor] = field(default_factory=dict)

    @staticmethod
    def of(model: Model, tokens: list[int]) -> Recorded:
        """Run a prompt.

        Raises:
            ModelSupportError: If the model is no transformer, or what its parts write is not added
                to one residual stream as it is.
        """
        anatomy = require_anatomy(model.anatomy, "Stepping")
        for block in anatomy.blocks:
            require_sums(block, "stepping")
            if block.attention is None or (block.mlp is not None and block.mlp.added is None):
                raise ModelSupportError(
                    f"{block.path}: what its {'MLP' if block.attention else 'layer'} adds to the "
                    "stream is not seen as a head's or an MLP's, and stepping needs that."
                )
        trace = model.trace([tokens], capture=_sites(anatomy))
        return Recorded(model, anatomy, trace.tokens, trace)

    @property
    def length(self) -> int:
        """Number of positions."""
        return int(self.tokens.shape[1])

    def value(self, site: str) -> torch.Tensor:
        """Return a captured value without the batch axis, in float64 on the CPU."""
        if site not in self._values:
            self._values[site] = self.trace.value(site)[0].detach().double().cpu()
        return self._values[site]

    def attention(self, layer: int) -> AttentionAnatomy:
        """Return a block's attention, which every block has."""
        found = self.anatomy.blocks[layer].attention
        if found is None:
            raise ModelSupportError(f"Block {layer} has no attention.")
        return found

    def mlp(self, layer: int) -> MLPAnatomy:
        """Return a block's MLP.

        Raises:
            ModelSupportError: If it has none, or one whose neurons are not seen.
        """
        found = self.anatomy.blocks[layer].mlp
        if found is None or not found.neurons_add_up:
            raise ModelSupportError(
                f"Block {layer} has no MLP whose neurons' writes add up to what it adds."
            )
        return found

    def order(self, layer: int, kind: str) -> int:
        """Return when a part (``attn`` or ``mlp``) reads and writes; it sees what came before."""
        late = kind == "mlp" and self.anatomy.blocks[layer].placement == "sequential"
        return 2 * layer + int(late)

    def stream(self, layer: int, kind: str) -> torch.Tensor:
        """Return what ``attn`` or ``mlp`` of a block reads, before the norm ``[pos, d_model]``."""
        if layer == self.anatomy.n_layers:
            return self.value(f"blocks.{layer - 1}.resid_post")
        mid = kind == "mlp" and self.anatomy.blocks[layer].placement == "sequential"
        return self.value(f"blocks.{layer}.{'resid_mid' if mid else 'resid_pre'}")

    def norm_of(self, layer: int, kind: str) -> str | None:
        """Return the path of the norm before a part, or before the logits for the last layer."""
        if layer == self.anatomy.n_layers:
            return self.anatomy.final_norm
        return self.anatomy.blocks[layer].norms.get(f"{kind}.norm")

    def scale(self, layer: int, kind: str) -> torch.Tensor:
        """Return the divisor of the norm before a part ``[pos]``, 1 without a norm."""
        path = self.norm_of(layer, kind)
        if path is None:
            return torch.ones(self.length, dtype=torch.float64)
        norm = self.model.module.get_submodule(path)
        stream = self.stream(layer, kind).float().to(self.tokens.device)
        return divisor(norm, stream.unsqueeze(0))[0, :, 0].double().cpu()

    def shift(self, layer: int, kind: str) -> torch.Tensor:
        """Return the bias of the norm before a part ``[d_model]``: its value for a zero input."""
        zero = torch.zeros(self.anatomy.d_model, dtype=self.model.dtype, device=self.model.device)
        path = self.norm_of(layer, kind)
        if path is None:
            return zero.double().cpu()
        with torch.no_grad():
            shift: torch.Tensor = self.model.module.get_submodule(path).forward(zero[None])[0]
        return shift.double().cpu()

    def port(self, layer: int, name: str, head: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what a head's ``q``, ``k`` or ``v`` projection does with the stream.

        Returns:
            ``W [d_model, d_head]`` for the stream over the frozen divisor, and ``c [d_head]``; both
            before any rotary embedding.
        """
        attention = self.attention(layer)
        if name not in attention.projections:
            raise ModelSupportError(
                f"Block {layer}: the columns of the {name} projection were not found."
            )
        found = attention.projections[name]
        number = head if name == "q" else self.group(layer, head)
        raw, folded = (self._matrix(layer, name, head, fold) for fold in (False, True))
        constant = self.shift(layer, "attn") @ raw
        bias = getattr(self.model.module.get_submodule(found.path), "bias", None)
        if isinstance(bias, torch.Tensor):
            columns = torch.as_tensor(found.columns[number])
            constant = constant + bias.detach().double().cpu()[columns] * found.scale
        return folded, constant

    def _matrix(self, layer: int, name: str, head: int, fold: bool) -> torch.Tensor:
        view = self.model.weights.view(fold_norm=fold)
        reader = {"q": view.W_Q, "k": view.W_K, "v": view.W_V}[name]
        return reader(layer, head).detach().double().cpu()

    def group(self, layer: int, head: int) -> int:
        """Return the key/value head of a query head."""
        attention = self.attention(layer)
        return head // (attention.n_heads // attention.n_kv_heads)

    def written(self, layer: int, head: int) -> torch.Tensor:
        """Return a head's output matrix ``[d_head, d_model]``."""
        return self.model.weights.W_O(layer, head).detach().double().cpu()

    def neuron_reader(self, layer: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the neurons' ``pre`` or ``gate`` projection does with the stream.

        Returns:
            ``W [d_model, neuron]`` for the stream over the frozen divisor, and ``c [neuron]``.
        """
        mlp = self.mlp(layer)
        gate = name == "gate"
        raw, folded = (
            (view.neuron_gate(layer) if gate else view.neuron_in(layer)).detach().double().cpu()
            for view in (self.model.weights.view(fold_norm=f) for f in (False, True))
        )
        constant = self.shift(layer, "mlp") @ raw
        path = mlp.gate if gate else mlp.up
        bias = getattr(self.model.module.get_submodule(path or ""), "bias", None)
        if isinstance(bias, torch.Tensor):
            given = bias.detach().double().cpu()
            if mlp.fused is not None:
                first = mlp.fused == ("gate-up" if gate else "up-gate")
                given = given.chunk(2)[0 if first else 1]
            constant = constant + given
        return folded, constant

    def neuron_writer(self, layer: int) -> torch.Tensor:
        """Return the neurons' output vectors ``[neuron, d_model]``."""
        self.mlp(layer)
        return self.model.weights.neuron_out(layer).detach().double().cpu()

    def unembedding(self, ids: list[int] | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what chosen logits do with the last stream: ``W [d_model, id]``, ``c [id]``.

        Raises:
            ModelSupportError: If the logits are not the unembedding of the normed stream.
        """
        tail = self.anatomy.tail
        if not tail.exact or tail.softcap is not None or tail.head is None:
            why = tail.reason or "a soft cap bends the logits"
            raise ModelSupportError(f"The logits of {self.model.name} cannot be split: {why}.")
        raw, folded = (
            self.model.weights.view(fold_norm=f).W_U[:, ids].detach().double().cpu()
            for f in (False, True)
        )
        constant = self.shift(self.anatomy.n_layers, "logits") @ raw
        bias = getattr(self.model.module.get_submodule(tail.head), "bias", None)
        if isinstance(bias, torch.Tensor):
            constant = constant + bias.detach().double().cpu()[ids] * tail.scale
        return folded, constant

    @cached_property
    def embeddings(self) -> dict[str, torch.Tensor]:
        """What the stream begins with, ``[pos, d_model]`` by name.

        Token and position apart where they add up to it, else one value ``embed``.
        """
        start = self.value("blocks.0.resid_pre")
        parts = {}
        for name in ("embed.token", "embed.pos"):
            if name not in self.trace:
                continue
            written = self.trace.value(name).detach().double().cpu()
            if written.shape[-1] == start.shape[-1]:
                parts[name] = written.reshape(-1, start.shape[-1])
        total = sum(parts.values(), torch.zeros_like(start))
        if parts and total.shape == start.shape and relative_error(total, start) < 1e-5:
            return parts
        return {"embed": start}

    def turn(self, layer: int, name: str, head: int) -> torch.Tensor:
        """Return what stands between a head's projection and ``attn.q`` or ``attn.k``.

        A norm of queries and keys is frozen at its divisor.

        Args:
            layer: The block.
            name: ``q`` or ``k``.
            head: The query head.

        Returns:
            ``[pos, d_head, d_head]``: the identity, or a rotary embedding, found by sending unit
            vectors through the model.

        Raises:
            ModelSupportError: If it is not linear (clipping).
        """
        if (layer, name) not in self._turns:
            from microtome.circuits.stepping.turns import find_turns

            self._turns.update(find_turns(self))
        matrix, factor = self._turns[layer, name]
        number = head if name == "q" else self.group(layer, head)
        return matrix * factor[:, number, None, None]

    def score_scale(self, layer: int) -> float:
        """Return the factor between the product of query and key and the score.

        Raises:
            ModelSupportError: If scores do not rise linearly with that product (a soft cap).
        """
        if layer not in self._scales:
            from microtome.circuits.stepping.turns import find_score_scale

            self._scales[layer] = find_score_scale(self, layer)
        return self._scales[layer]


def _sites(anatomy: Anatomy) -> list[str | Site]:
    sites = [s for n, block in enumerate(anatomy.blocks) for s in _block_sites(n, block)]
    sites.append(f"blocks.{anatomy.n_layers - 1}.resid_post")
    sites += ["embed.token"] if anatomy.embed_token else []
    sites += ["embed.pos"] if anatomy.embed_pos else []
    return [at(s) for s in sites]


def _block_sites(layer: int, block: BlockAnatomy) -> list[str]:
    names = ["resid_pre", "attn.q", "attn.k", "attn.v", "attn.scores", "attn.pattern", "attn.z"]
    names.append("attn.out")
    if block.mlp is not None:
        names.append("mlp.out")
        names += ["resid_mid"] if block.placement == "sequential" else []
        if block.mlp.neurons_add_up:
            names += ["mlp.pre", "mlp.act", *(["mlp.gate"] if block.mlp.gate else [])]
    return [f"blocks.{layer}.{name}" for name in names]


def projection_bias(recorded: Recorded, layer: int) -> torch.Tensor:
    """Return what attention of a block adds besides its heads ``[pos, d_model]``."""
    z = recorded.value(f"blocks.{layer}.attn.z")
    path = recorded.attention(layer).out_proj or ""
    weight = hf.projection_weight(recorded.model.module.get_submodule(path)).detach()
    heads = z.flatten(1) @ weight.double().cpu() * recorded.attention(layer).scale
    return recorded.value(f"blocks.{layer}.attn.out") - heads
