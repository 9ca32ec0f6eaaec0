"""Texts measured: a unit's activation at the end, and the model's own cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.attribution.units import Unit
from microtome.errors import ModelSupportError
from microtome.tracing.catalog import require_anatomy
from microtome.tracing.gradients import frozen, graph_started
from microtome.tracing.model import Model
from microtome.tracing.prompts import require_tokenizer
from microtome.tracing.sites import at
from microtome.tracing.trace import Trace

_EMBEDDING = at("embed.token")


def require_causal(model: Model, what: str) -> None:
    """Refuse a model whose logits do not predict the next token.

    Raises:
        ModelSupportError: If it is not a causal transformer.
    """
    if not require_anatomy(model.anatomy, what).causal:
        raise ModelSupportError(
            f"{what} measures fluency by the next token's probability; {model.name} is not causal."
        )


def measure(
    model: Model, unit: Unit, rows: Int[Tensor, "batch pos"], *, batch_size: int = 256
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Return the unit's activation at the last token, and the mean cross-entropy, of each row.

    Args:
        model: A causal model.
        unit: What is read.
        rows: Token ids without a beginning-of-sequence token; the model's own rule adds it.
        batch_size: Rows per pass.

    Returns:
        Activations, and cross-entropies in nats per token over all tokens that the model predicts
        (without a beginning-of-sequence token not the first).
    """
    found = []
    for part in rows.split(batch_size):
        trace = model.trace(with_bos(model, part), capture=unit.captured)
        activation, entropy = _both(model, unit, trace)
        found.append((activation.cpu(), entropy.cpu()))
    return torch.cat([a for a, _ in found]), torch.cat([e for _, e in found])


def token_slopes(
    model: Model,
    unit: Unit,
    rows: Int[Tensor, "batch pos"],
    weights: Float[Tensor, " batch"],
    table: Float[Tensor, "vocab d_model"],
) -> Float[Tensor, "batch pos vocab"]:
    """Return the slope of activation - weight x cross-entropy in every token's indicator.

    A token counts twice: as what later positions read (through its embedding) and as what the
    position before has to predict.

    Args:
        model: A causal model.
        unit: What is read at the last token.
        rows: Token ids without a beginning-of-sequence token.
        weights: Weight of the cross-entropy, in activation per nat.
        table: Embedding of every token.
    """
    shift = int(model.bos)
    with frozen(model.module), graph_started(model), torch.enable_grad():
        captures = [_EMBEDDING, unit.captured]
        trace = model.trace(with_bos(model, rows), capture=captures, grad=True)
        activation, entropy = _both(model, unit, trace)
        goal = (activation - weights.to(entropy) * entropy).sum()
        (slope,) = torch.autograd.grad(goal, [trace.kept()[str(_EMBEDDING)].raw])
    slopes = slope[:, shift:].float() @ table.float().T
    predicted = torch.log_softmax(_logits(trace)[:, :-1].detach().float(), dim=-1)
    share = weights.to(predicted) / predicted.shape[1]
    slopes[:, 1 - shift :] += share[:, None, None] * predicted
    return slopes


def with_bos(model: Model, rows: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch longer"]:
    """Return token ids with what the model's rule of beginning a text puts in front."""
    if not model.bos:
        return rows
    start = torch.full((len(rows), 1), int(model.tokenizer.bos_token_id), dtype=rows.dtype)
    return torch.cat([start, rows], dim=1)


def survivors(model: Model, rows: Int[Tensor, "batch pos"]) -> list[bool]:
    """Return which rows come back unchanged when they are decoded and tokenized again.

    Raises:
        TokenizerError: If the model has no tokenizer.
    """
    require_tokenizer(model.tokenizer)
    lists: list[list[int]] = rows.tolist()
    texts = [model.decode(row) for row in lists]
    filled = [text or " " for text in texts]
    again: Sequence[Sequence[int]] = model.tokenizer(
        filled, add_special_tokens=False, verbose=False
    )["input_ids"]
    return [
        bool(text) and list(ids) == row for text, ids, row in zip(texts, again, lists, strict=True)
    ]


def _both(model: Model, unit: Unit, trace: Trace) -> tuple[Tensor, Tensor]:
    activation = unit.read(trace[unit.captured])[:, -1].float()
    predicted = torch.log_softmax(_logits(trace)[:, :-1].float(), dim=-1)
    entropy = -predicted.gather(-1, trace.tokens[:, 1:, None])[..., 0].mean(-1)
    return activation, entropy


def _logits(trace: Trace) -> Tensor:
    if trace.logits is None:
        raise ModelSupportError("The model returned no logits, so fluency cannot be measured.")
    return trace.logits
