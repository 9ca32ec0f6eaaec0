"""What a part's write is read by directly: forward steps.

A write ``w`` at a position changes every later port by ``w / scale @ W``, with norms frozen. Which
score, which neuron and which logit that moves follows without another pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from microtome.circuits.graph import EMBED
from microtome.circuits.stepping.results import Link, Step
from microtome.circuits.stepping.turns import MASKED
from microtome.errors import ModelSupportError

if TYPE_CHECKING:
    from microtome.circuits.stepping.recorded import Recorded

SHOWN = 3
"""Neurons and tokens that a link names."""


@dataclass(frozen=True, eq=False)
class Write:
    """What a part adds to the stream at one position.

    Attributes:
        part: Its name.
        pos: The position.
        order: When it is written; parts that read later can see it.
        value: ``[d_model]``.
    """

    part: str
    pos: int
    order: int
    value: torch.Tensor


def write_of(recorded: Recorded, part: str, pos: int) -> Write:
    """Return what a head ``a0.h1``, an MLP ``m0``, a neuron ``m0.n5`` or an embedding writes."""
    if part in recorded.embeddings:
        return Write(part, pos, -1, recorded.embeddings[part][pos])
    if part == EMBED:
        return Write(part, pos, -1, torch.stack(list(recorded.embeddings.values())).sum(0)[pos])
    layer = int(part[1:].split(".")[0])
    if part.startswith("a"):
        head = int(part.split(".h")[1])
        z = recorded.value(f"blocks.{layer}.attn.z")[pos, head]
        return Write(part, pos, recorded.order(layer, "attn"), z @ recorded.written(layer, head))
    order = recorded.order(layer, "mlp")
    if ".n" not in part:
        return Write(part, pos, order, recorded.value(f"blocks.{layer}.mlp.out")[pos])
    neuron = int(part.split(".n")[1])
    active = recorded.value(f"blocks.{layer}.mlp.act")[pos, neuron]
    return Write(part, pos, order, active * recorded.neuron_writer(layer)[neuron])


def forward_step(
    recorded: Recorded, write: Write, *, top: int, neurons: bool, explains: str = ""
) -> Step:
    """Return the step from a write to what reads it."""
    links: list[Link] = []
    missing = ""
    for layer in range(recorded.anatomy.n_layers):
        if recorded.order(layer, "attn") > write.order:
            for head in range(recorded.attention(layer).n_heads):
                links.append(_moved(recorded, write, layer, head))
                try:
                    links += [_asked(recorded, write, layer, head)]
                    links += [_found(recorded, write, layer, head)]
                except ModelSupportError as error:
                    missing = f"; q and k are left out: {error}"
        if recorded.anatomy.blocks[layer].mlp and recorded.order(layer, "mlp") > write.order:
            links += _mlp(recorded, write, layer, neurons)
    try:
        links += _logits(recorded, write)
    except ModelSupportError as error:
        missing += f"; logits are left out: {error}"
    ranked = sorted(links, key=lambda link: -link.share)
    return Step(
        "forward", write.part, write.pos, "length of what it writes", float(write.value.norm()),
        0.0, tuple(ranked[:top]), max(0, len(ranked) - top), 0.0, _left_out(recorded, write),
        f"norm scales{missing}", explains=explains,
    )  # fmt: skip


def _read(recorded: Recorded, write: Write, layer: int, kind: str) -> torch.Tensor:
    """Return a write over the divisor that a later part reads it with."""
    return write.value / recorded.scale(layer, kind)[write.pos]


def _share(part: torch.Tensor, whole: torch.Tensor) -> float:
    return float(part.norm() / whole.norm().clamp(min=1e-30))


def _weights(recorded: Recorded, layer: int, head: int) -> torch.Tensor:
    """Return logits of a head's attention ``[query, key + 1]``, behind the keys those of a sink."""
    scores = recorded.value(f"blocks.{layer}.attn.scores")[head]
    scores = torch.where(scores > MASKED, scores, -torch.inf)
    kept = recorded.value(f"blocks.{layer}.attn.pattern")[head].sum(-1).clamp(max=1)
    # a sink takes what the pattern lacks to one; below this it is rounding
    kept = torch.where(kept > 1 - 1e-5, 1.0, kept)
    sink = scores.logsumexp(-1) + torch.log1p(-kept) - kept.log()
    return torch.cat([scores, sink[:, None]], -1)


def _asked(recorded: Recorded, write: Write, layer: int, head: int) -> Link:
    """Return what a head's query at the position gets, at the key whose attention moves most."""
    part = _read(recorded, write, layer, "attn") @ recorded.port(layer, "q", head)[0]
    turned = part @ recorded.turn(layer, "q", head)[write.pos] * recorded.score_scale(layer)
    keys = recorded.value(f"blocks.{layer}.attn.k")[:, recorded.group(layer, head)]
    weights = _weights(recorded, layer, head)[write.pos]
    change = torch.where(weights.isfinite(), torch.cat([keys @ turned, torch.zeros(1)]), 0.0)
    left = weights - change
    moved = (weights.softmax(-1) - left.softmax(-1))[:-1]
    best = int(moved.abs().argmax())
    return Link(
        f"a{layer}.h{head}<q>", write.pos, float(change[best]), abs(float(moved[best])), best,
        float(moved[best]), f"score on {best}",
    )  # fmt: skip


def _found(recorded: Recorded, write: Write, layer: int, head: int) -> Link:
    """Return what a head's key at the position gets, at the query whose attention moves most."""
    part = _read(recorded, write, layer, "attn") @ recorded.port(layer, "k", head)[0]
    turned = part @ recorded.turn(layer, "k", head)[write.pos] * recorded.score_scale(layer)
    queries = recorded.value(f"blocks.{layer}.attn.q")[:, head]
    weights = _weights(recorded, layer, head)
    change = torch.where(weights[:, write.pos].isfinite(), queries @ turned, 0.0)
    left = weights.clone()
    left[:, write.pos] -= change
    moved = (weights.softmax(-1) - left.softmax(-1))[:, write.pos]
    best = int(moved.abs().argmax())
    return Link(
        f"a{layer}.h{head}<k>", write.pos, float(change[best]), abs(float(moved[best])), best,
        float(moved[best]), f"score of {best}",
    )  # fmt: skip


def _moved(recorded: Recorded, write: Write, layer: int, head: int) -> Link:
    """Return what a head moves of the write, to the position of whose write it is the most."""
    part = _read(recorded, write, layer, "attn") @ recorded.port(layer, "v", head)[0]
    output = recorded.written(layer, head)
    pattern = recorded.value(f"blocks.{layer}.attn.pattern")[head, :, write.pos]
    whole = (recorded.value(f"blocks.{layer}.attn.z")[:, head] @ output).norm(dim=-1)
    shares = pattern * (part @ output).norm() / whole.clamp(min=1e-30)
    best = int(shares.argmax())
    return Link(
        f"a{layer}.h{head}<v>", write.pos, float(shares[best] * whole[best]), float(shares[best]),
        best, float(pattern[best]), f"moved to {best}",
    )  # fmt: skip


def _mlp(recorded: Recorded, write: Write, layer: int, neurons: bool) -> list[Link]:
    mlp = recorded.anatomy.blocks[layer].mlp
    if mlp is None or not mlp.neurons_add_up:
        return []
    branch = "gate" if mlp.gate else "pre"
    matrix, constant = recorded.neuron_reader(layer, branch)
    part = _read(recorded, write, layer, "mlp") @ matrix
    stream = recorded.stream(layer, "mlp")[write.pos] / recorded.scale(layer, "mlp")[write.pos]
    whole = stream @ matrix + constant
    order = torch.argsort(part.abs(), descending=True, stable=True).tolist()
    if neurons:
        size = max(float(whole.norm()), 1e-30)
        return [
            Link(
                f"m{layer}.n{n}", write.pos, float(part[n]), abs(float(part[n])) / size,
                detail=f"of {float(whole[n]):+.2f}",
            )
            for n in order
        ]  # fmt: skip
    named = ", ".join(f"n{n} {float(part[n]):+.2f}" for n in order[:SHOWN])
    share = _share(part, whole)
    return [Link(f"m{layer}", write.pos, float(part.norm()), share, detail=named)]


def _logits(recorded: Recorded, write: Write) -> list[Link]:
    """Return the tokens that the write raises and lowers most, against the mean of all."""
    last = recorded.anatomy.n_layers
    matrix, constant = recorded.unembedding(slice(None))
    part = _read(recorded, write, last, "logits") @ matrix
    stream = recorded.stream(last, "logits")[write.pos] / recorded.scale(last, "logits")[write.pos]
    whole = stream @ matrix + constant
    part, whole = part - part.mean(), whole - whole.mean()
    order = torch.argsort(part, descending=True, stable=True)
    shown = min(SHOWN, len(order))
    texts = [
        ", ".join(
            f"{t!r} {float(part[i]):+.2f}"
            for t, i in zip(recorded.model.tokens(ids), ids, strict=True)
        )
        for ids in (order[:shown], order.flip(0)[:shown])
    ]
    detail = f"raises {texts[0]}; lowers {texts[1]}"
    return [Link("logits", write.pos, float(part.max()), _share(part, whole), detail=detail)]


def _left_out(recorded: Recorded, write: Write) -> float:
    """Return the largest share of the change of a normed stream that frozen norms leave out.

    The change is that of taking the write away.
    """
    worst = 0.0
    last = recorded.anatomy.n_layers
    kinds = [(n, kind) for n in range(last) for kind in ("attn", "mlp")]
    for layer, kind in [*kinds, (last, "logits")]:
        path = recorded.norm_of(layer, kind)
        if path is None or (layer < last and recorded.order(layer, kind) <= write.order):
            continue
        norm = recorded.model.module.get_submodule(path).forward
        stream = recorded.stream(layer, kind)[write.pos]
        scale = recorded.scale(layer, kind)[write.pos]
        like = torch.empty(0, device=recorded.model.device, dtype=recorded.model.dtype)
        with torch.no_grad():
            with_it, without, doubled = (
                norm(x[None].to(like))[0].double().cpu()
                for x in (stream, stream - write.value, write.value)
            )
            zero = recorded.shift(layer, kind)
        own = _divided(recorded, path, write.value)
        linear = (doubled - zero) * own / scale
        change = with_it - without
        worst = max(worst, float((change - linear).norm() / change.norm().clamp(min=1e-30)))
    return worst


def _divided(recorded: Recorded, path: str, value: torch.Tensor) -> torch.Tensor:
    from microtome.tracing.norms import divisor

    norm = recorded.model.module.get_submodule(path)
    return divisor(norm, value[None, None].float())[0, 0, 0].double()
