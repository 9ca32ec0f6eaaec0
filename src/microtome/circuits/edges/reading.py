"""What targets of edges read: the stream before their norm, the norm, the projection's columns.

A port of a head is some columns of the query, key or value projection; what it reads is the
residual stream, normed by the block's own norm. That this is so is measured once for each module,
not assumed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from microtome.circuits.graph import ComponentGraph
from microtome.errors import ModelSupportError
from microtome.models import hf
from microtome.tracing.catalog import require_anatomy

if TYPE_CHECKING:
    from microtome.models.anatomy import Anatomy, BlockAnatomy, HeadColumns
    from microtome.tracing.model import Model

Norm = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Ports:
    """The q, k or v ports of one block.

    Attributes:
        columns: Which columns of which projection belong to each head.
        targets: Numbers of the ports among the graph's targets.
    """

    columns: HeadColumns
    targets: range


@dataclass(frozen=True, eq=False)
class Stage:
    """One block as the graph numbers it; what a target sees is always the first so many sources.

    Attributes:
        layer: The block.
        heads: Numbers of its heads among the sources.
        mlp_source: Number of its MLP among the sources, None without.
        ports: Its q, k and v ports.
        mlp_target: Number of its MLP's input among the targets, None without.
        seen: Number of sources that its ports see.
        mlp_seen: Number of sources that its MLP sees.
        attn_norm: Path of the norm before attention, ``""`` for none.
        mlp_norm: Path of the norm before the MLP, ``""`` for none.
        mlp_stream: Site where the stream that the MLP's norm reads can be seen.
    """

    layer: int
    heads: range
    mlp_source: int | None
    ports: tuple[Ports, ...]
    mlp_target: int | None
    seen: int
    mlp_seen: int
    attn_norm: str
    mlp_norm: str
    mlp_stream: str

    @property
    def stream(self) -> str:
        """Site of the residual stream into the block."""
        return f"blocks.{self.layer}.resid_pre"

    @property
    def attn_read(self) -> str:
        """Site of what attention reads before its norm; where there is none, of what it reads."""
        return f"module:{self.attn_norm}:in" if self.attn_norm else f"blocks.{self.layer}.attn.in"

    @property
    def mlp_read(self) -> str:
        """Site of what the MLP reads before its norm; where there is none, of what it reads."""
        return f"module:{self.mlp_norm}:in" if self.mlp_norm else f"blocks.{self.layer}.mlp.in"


@dataclass(frozen=True, eq=False)
class Reading:
    """How every target of a model's graph reads the residual stream.

    Attributes:
        model: The model.
        graph: Its component graph.
        stages: Its blocks.
    """

    model: Model
    graph: ComponentGraph
    stages: tuple[Stage, ...]

    @staticmethod
    def of(model: Model) -> Reading:
        """Return how a model's targets read; found once for each module.

        Raises:
            ModelSupportError: If a head's port or an MLP's input cannot be written, or what they
                read is not the stream behind one norm.
        """
        known = _known.get(model.module)
        if known is None:
            anatomy = require_anatomy(model.anatomy, "A circuit of edges")
            from microtome.circuits.edges.premises import check

            graph = ComponentGraph.of(model)
            known = graph, _stages(model, anatomy, graph)
            check(Reading(model, *known))
            _known[model.module] = known
        return Reading(model, *known)

    @property
    def anatomy(self) -> Anatomy:
        """The model's anatomy."""
        return require_anatomy(self.model.anatomy, "A circuit of edges")

    def norm(self, path: str) -> Norm:
        """Return a norm of the model as a function; the identity for ``""``."""
        # forward, not call: hooks of the pass may be on the norm
        return self.module(path).forward if path else _same

    def module(self, path: str) -> nn.Module:
        """Return a part of the model."""
        return self.model.module.get_submodule(path)

    @property
    def final_norm(self) -> Norm:
        """The norm before the unembedding."""
        return self.norm(self.anatomy.final_norm or "")

    @property
    def last_stream(self) -> str:
        """Site of the residual stream that the logits are read from."""
        return f"blocks.{len(self.stages) - 1}.resid_post"

    def weight(self, ports: Ports) -> torch.Tensor:
        """Return the weights of a block's ports of one kind ``[head, d_model, d_head]``."""
        weight = hf.projection_weight(self.module(ports.columns.path)).detach()
        columns = torch.as_tensor(ports.columns.columns, device=weight.device)
        return weight[:, columns].permute(1, 0, 2)


_known: weakref.WeakKeyDictionary[nn.Module, tuple[ComponentGraph, tuple[Stage, ...]]] = (
    weakref.WeakKeyDictionary()
)


def _same(value: torch.Tensor) -> torch.Tensor:
    return value


def _stages(model: Model, anatomy: Anatomy, graph: ComponentGraph) -> tuple[Stage, ...]:
    seen = graph.possible.sum(0)
    source, target = 1, 0
    found = []
    for layer, block in enumerate(anatomy.blocks):
        if block.attention is None and block.mixed is not None:
            raise ModelSupportError(
                f"{block.path}: a layer that is no attention writes to the stream between heads "
                "and MLPs, and a circuit of edges has no part for it; use circuits of nodes."
            )
        heads, ports = range(source, source), []
        reads = target
        if block.attention is not None:
            heads = range(source, source + block.attention.n_heads)
            for name in "qkv":
                _require_writable(model, layer, f"attn.in.{name}")
                columns = block.attention.projections[name]
                count = len(columns.columns)
                ports.append(Ports(columns, range(target, target + count)))
                target += count
        source = heads.stop
        if block.mlp is not None:
            _require_writable(model, layer, "mlp.in")
        has_mlp = block.mlp is not None
        stage = Stage(
            layer=layer,
            heads=heads,
            mlp_source=source if has_mlp else None,
            ports=tuple(ports),
            mlp_target=target if has_mlp else None,
            seen=int(seen[reads]),
            mlp_seen=int(seen[target]),
            attn_norm=block.norms.get("attn.norm", ""),
            mlp_norm=block.norms.get("mlp.norm", ""),
            mlp_stream=_mlp_stream(block, layer),
        )
        found.append(stage)
        source, target = source + int(has_mlp), target + int(has_mlp)
    return tuple(found)


def _mlp_stream(block: BlockAnatomy, layer: int) -> str:
    if block.placement == "parallel" or block.mid is None:
        return f"blocks.{layer}.resid_pre"
    return f"module:{block.mid.path}:{block.mid.side}"


def _require_writable(model: Model, layer: int, name: str) -> None:
    info = model.catalog.info(name, layer)
    if not info.writable:
        raise ModelSupportError(
            f"{info.name} cannot be written ({info.reason}), so edges into it cannot be cut; "
            "use circuits of nodes."
        )
