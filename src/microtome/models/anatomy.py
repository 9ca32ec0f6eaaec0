"""Where a transformer keeps its parts: data, found by a probe and never by model name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Placement = Literal["sequential", "parallel", "post-addition", "unknown"]


@dataclass(frozen=True)
class Seam:
    """A value that a module receives or returns.

    Attributes:
        path: Dotted path of the module.
        side: ``"in"`` for its first tensor argument, ``"out"`` for its (first) returned tensor.
    """

    path: str
    side: Literal["in", "out"]


@dataclass(frozen=True, eq=False)
class HeadColumns:
    """Which output columns of a projection make up each head.

    Attributes:
        path: Dotted path of the projection.
        columns: Column numbers ``[head, d_head]``.
        scale: What the projection's output is multiplied with on its way to the head.
        exact: Whether the columns were matched by value (not only by name and size).
    """

    path: str
    columns: np.ndarray
    scale: float = 1.0
    exact: bool = True


@dataclass(frozen=True, eq=False)
class AttentionAnatomy:
    """The attention of one block.

    Attributes:
        path: The module that computes attention (the one that reaches the registry entry).
        dispatches: Whether it goes through transformers' attention registry.
        out_proj: The projection whose input is z, or None.
        added: Where the value that is added to the residual stream can be seen.
        scale: Multiplier on that value (1 in most families).
        projections: Head columns for ``"q"``, ``"k"``, ``"v"`` where they were found.
        n_heads: Query heads.
        n_kv_heads: Key/value heads.
        d_head: Size of a query head.
        d_head_v: Size of a value head, and of z per head.
        heads_add_up: Whether z per head times the output projection, plus its bias, is the value
            that is added (false where that value is normed or gated first).
        softmax: Whether exactly one softmax is seen in it, so that scores and pattern exist.
        sink: Whether the softmax has a sink column behind the keys.
    """

    path: str
    dispatches: bool
    out_proj: str | None
    added: Seam | None
    scale: float
    projections: Mapping[str, HeadColumns]
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_head_v: int
    heads_add_up: bool
    softmax: bool = True
    sink: bool = False


@dataclass(frozen=True)
class MLPAnatomy:
    """The feed-forward part of one block.

    Attributes:
        path: The module, or None where its projections sit in the block itself.
        input: Where its input can be seen and replaced.
        added: Where the value that is added to the residual stream can be seen.
        scale: Multiplier on that value.
        up: Projection to the neurons (the linear branch where the MLP is gated).
        gate: Projection of the gate, if gated.
        fused: ``"gate-up"`` or ``"up-gate"`` where one projection holds both halves.
        down: Projection from the neurons back to the stream; its input is the activation.
        activation: The module of the non-linearity, if it is one.
        router: The module that routes tokens to experts, if any.
        d_mlp: Number of neurons, 0 where there are experts.
        neurons_add_up: Whether activations times the down projection is the value that is added.
    """

    path: str | None
    input: Seam | None
    added: Seam | None
    scale: float = 1.0
    up: str | None = None
    gate: str | None = None
    fused: str | None = None
    down: str | None = None
    activation: str | None = None
    router: str | None = None
    d_mlp: int = 0
    neurons_add_up: bool = False


@dataclass(frozen=True, eq=False)
class BlockAnatomy:
    """One block of the residual stream.

    Attributes:
        path: The block.
        placement: ``"sequential"`` (attention, then MLP), ``"parallel"`` (both read the block's
            input), ``"post-addition"`` (the stream itself is normed after each addition) or
            ``"unknown"``.
        attention: Its attention, or None (state-space and convolution layers).
        mlp: Its MLP, or None.
        mid: Where the residual stream between attention and MLP can be read, or None.
        mixed: Where the value that attention (or the layer in its place) adds can be seen.
        mixed_scale: Multiplier on that value.
        norms: ``{"attn.norm": path, "mlp.norm": path, "attn.post_norm": path, ...}``.
        reasons: Why a site is absent, by its name within the block.
    """

    path: str
    placement: Placement
    attention: AttentionAnatomy | None
    mlp: MLPAnatomy | None
    mid: Seam | None
    mixed: Seam | None = None
    mixed_scale: float = 1.0
    norms: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Tail:
    """How logits come from the last residual stream.

    Attributes:
        head: The unembedding module, or None.
        scale: Factor between the unembedding's output and the logits.
        softcap: Soft cap ``c`` in ``c * tanh(x / c)``, or None.
        exact: Whether unembedding(final norm(stream)) with these gives the logits.
        reason: Why not, where ``exact`` is false.
    """

    head: str | None
    scale: float = 1.0
    softcap: float | None = None
    exact: bool = False
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Where a transformer keeps its embedding, blocks, norms, attention, MLPs and unembedding.

    Attributes:
        blocks: The blocks in order.
        embed_token: Path of the token embedding.
        embed_pos: Path of the position embedding, or None (rotary, ALiBi, none).
        final_norm: Path of the final norm, or None.
        tail: How the logits are made.
        d_model: Width of the residual stream.
        vocab: Number of logits.
        context: Longest input in tokens, or None if not limited.
        causal: Whether a later token leaves earlier positions unchanged.
        position_ids: Whether the model's forward accepts ``position_ids``.
        overwritten: Modules whose returned tensor the model changes in place afterwards.
        reasons: Why a site outside the blocks is absent.
    """

    blocks: tuple[BlockAnatomy, ...]
    embed_token: str | None
    embed_pos: str | None
    final_norm: str | None
    tail: Tail
    d_model: int
    vocab: int
    context: int | None
    causal: bool
    position_ids: bool
    overwritten: frozenset[str] = frozenset()
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def attentions(self) -> tuple[AttentionAnatomy, ...]:
        """The attention of every block that has one."""
        return tuple(b.attention for b in self.blocks if b.attention is not None)

    @property
    def n_heads(self) -> int:
        """Query heads per block (the largest number over the blocks; 0 without attention)."""
        return max((a.n_heads for a in self.attentions), default=0)

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads per block (the largest number over the blocks)."""
        return max((a.n_kv_heads for a in self.attentions), default=0)

    @property
    def d_head(self) -> int:
        """Size of a query head."""
        return max((a.d_head for a in self.attentions), default=0)

    @property
    def d_mlp(self) -> int:
        """Neurons per MLP (0 where there are experts)."""
        return max((b.mlp.d_mlp for b in self.blocks if b.mlp is not None), default=0)

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP run in parallel in any block."""
        return any(b.placement == "parallel" for b in self.blocks)
