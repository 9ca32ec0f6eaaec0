"""Finding a transformer's anatomy from one recorded forward pass.

Parts are recognized by their values: the output projection is the matrix product whose input is z;
what attention adds is the tensor whose sum with the block's input another module receives. Class
names only break ties. Each block is handled by :mod:`microtome.models.blocks`.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from microtome.errors import ModelSupportError
from microtome.models import hf
from microtome.models.anatomy import Anatomy, BlockAnatomy, Tail
from microtome.models.blocks import find_block
from microtome.models.compare import fitted_scale, relative_error, tolerance
from microtome.models.probe import Call, Recording, first_tensor, record
from microtome.models.softmax import count_softmaxes

PROBE_TOKENS = 11


def discover(module: nn.Module) -> Anatomy:
    """Find the anatomy of a transformer by running it on a few tokens.

    Args:
        module: A model whose forward takes token ids ``[batch, pos]`` and returns logits.

    Returns:
        The anatomy.

    Raises:
        ModelSupportError: If there is no token embedding or no list of like blocks.
    """
    embed = token_embedding(module)
    if embed is None:
        raise ModelSupportError(
            f"{type(module).__name__} has no token embedding, so it has no anatomy of a "
            "transformer. Its parts can be reached as module:PATH:in and module:PATH:out."
        )
    embed_path, table = embed
    context = context_length(module)
    tokens = probe_tokens(table.num_embeddings, context, table.weight.device)
    blocks = block_paths(module)
    with quiet_state(module):
        recording = record(module, tokens, **plain_call(module))
        changed = record_changed(module, tokens)
        found = tuple(find_block(module, recording, path) for path in blocks)
        found = with_softmax_counts(module, found, tokens)
    logits = logits_of(recording.output)
    last = last_stream(recording, found)
    final_norm = find_final_norm(recording, blocks[-1], last)
    return Anatomy(
        blocks=found,
        embed_token=embed_path,
        embed_pos=position_embedding(module, recording, embed_path, blocks[0]),
        final_norm=final_norm,
        tail=find_tail(module, recording, final_norm, logits),
        d_model=int(last.shape[-1]) if last is not None else int(table.embedding_dim),
        vocab=int(logits.shape[-1]),
        context=context,
        causal=is_causal(logits, changed),
        overwritten=recording.overwritten(),
        position_ids="position_ids" in inspect.signature(module.forward).parameters,
    )


class quiet_state:
    """Evaluation mode for the time of a probe, restored afterwards."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._training = [part for part in module.modules() if part.training]

    def __enter__(self) -> None:
        self._module.eval()

    def __exit__(self, *_: object) -> None:
        for part in self._training:
            part.training = True


def plain_call(module: nn.Module) -> dict[str, Any]:
    """Return the keyword arguments of a forward pass without a cache."""
    parameters = inspect.signature(module.forward).parameters
    return {"use_cache": False} if "use_cache" in parameters else {}


def logits_of(output: Any) -> torch.Tensor:
    """Return the logits in a model's output.

    Raises:
        ModelSupportError: If the output holds no logits.
    """
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, torch.Tensor):
        logits = output
    if logits is None:
        logits = getattr(output, "last_hidden_state", None)
    if logits is None:
        logits = first_tensor(output)
    if logits is None:
        raise ModelSupportError(
            f"The model returned {type(output).__name__}, which holds no logits."
        )
    return logits


def probe_tokens(vocab: int, context: int | None, device: torch.device) -> torch.Tensor:
    """Return two rows of distinct random token ids; the same ones for the same vocabulary."""
    generator = torch.Generator().manual_seed(0)
    length = min(PROBE_TOKENS, context or PROBE_TOKENS)
    # special tokens come first in most vocabularies; the smallest have few others
    low = 5 if vocab > 6 else 0
    return torch.randint(low, vocab, (2, length), generator=generator).to(device)


def context_length(module: nn.Module) -> int | None:
    """Return the longest input that the configuration allows, if it says so."""
    config: Any = getattr(module, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            offset = 2 if getattr(text, "model_type", "") in _PADDED_POSITIONS else 0
            return value - offset
    return None


_PADDED_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl"})


def token_embedding(module: nn.Module) -> tuple[str, nn.Embedding] | None:
    """Return path and module of the token embedding, or None."""
    names = {id(part): path for path, part in module.named_modules()}
    getter = getattr(module, "get_input_embeddings", None)
    if callable(getter):
        try:
            embedding = getter()
        except NotImplementedError:
            embedding = None
        if isinstance(embedding, nn.Embedding) and id(embedding) in names:
            return names[id(embedding)], embedding
    tables = [(p, m) for p, m in module.named_modules() if isinstance(m, nn.Embedding)]
    return max(tables, key=lambda item: item[1].num_embeddings) if tables else None


def block_paths(module: nn.Module) -> tuple[str, ...]:
    """Return the paths of the blocks, in order.

    Hugging Face models name their block class; otherwise the list of like modules with the most
    parameters is taken.

    Raises:
        ModelSupportError: If there is no such list.
    """
    named = hf.recorded_classes(module).get("hidden_states", set())
    lists = [
        (path, part)
        for path, part in module.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) > 0
    ]
    labelled = [(p, m) for p, m in lists if any(type(child).__name__ in named for child in m)]
    candidates = labelled or [(p, m) for p, m in lists if len({type(c) for c in m}) <= 2]
    if not candidates:
        raise ModelSupportError(
            f"{type(module).__name__} has no list of like blocks. Use module:PATH:in and "
            "module:PATH:out, or open the part of the model that has one."
        )
    path, blocks = max(candidates, key=lambda item: sum(w.numel() for w in item[1].parameters()))
    return tuple(f"{path}.{i}" for i in range(len(blocks)))


def record_changed(module: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits after changing the last token of each row."""
    changed = tokens.clone()
    last = tokens[:, -1]
    changed[:, -1] = torch.where(last > 0, last - 1, last + 1)
    with torch.no_grad():
        return logits_of(module(changed, **plain_call(module)))


def is_causal(logits: torch.Tensor, changed: torch.Tensor) -> bool:
    """Return whether a change of the last token left all earlier logits as they were."""
    if logits.ndim != 3 or logits.shape[1] < 2:
        return False
    before = relative_error(changed[:, :-1], logits[:, :-1])
    return before <= max(1e-6, 4 * torch.finfo(logits.dtype).eps)


def with_softmax_counts(
    module: nn.Module, blocks: tuple[BlockAnatomy, ...], tokens: torch.Tensor
) -> tuple[BlockAnatomy, ...]:
    """Mark where the attention of a block that does not dispatch has no or several softmaxes."""
    outside = {
        b.attention.path: number
        for number, b in enumerate(blocks)
        if b.attention is not None and not b.attention.dispatches
    }
    if not outside:
        return blocks
    seen = count_softmaxes(module, tuple(outside), lambda: module(tokens, **plain_call(module)))
    found = list(blocks)
    for path, number in outside.items():
        block, times = found[number], seen[path]
        if times != 1 and block.attention is not None:
            why = f"its softmax runs {times} times in one forward pass"
            attention = replace(block.attention, softmax=False)
            found[number] = replace(
                block, attention=attention, reasons={**block.reasons, "softmax": why}
            )
    return tuple(found)


def last_stream(recording: Recording, blocks: tuple[BlockAnatomy, ...]) -> torch.Tensor | None:
    """Return the residual stream after the last block."""
    call = recording.only(blocks[-1].path)
    return None if call is None else call.result


def is_norm(part: nn.Module) -> bool:
    """Return whether a module is a normalization, by class name."""
    return "norm" in type(part).__name__.lower()


def find_final_norm(
    recording: Recording, last_block: str, stream: torch.Tensor | None
) -> str | None:
    """Return the module that receives the last residual stream and is a norm."""
    end = recording.only(last_block)
    if stream is None or end is None:
        return None
    for path, calls in recording.calls.items():
        call = calls[0]
        if len(calls) != 1 or call.start < end.end or call.input is None:
            continue
        if "norm" not in path.lower().rsplit(".", 1)[-1] and "ln" not in path.rsplit(".", 1)[-1]:
            continue
        if call.input.shape == stream.shape and torch.equal(call.input, stream):
            return path
    return None


def position_embedding(
    module: nn.Module, recording: Recording, token_path: str, first_block: str
) -> str | None:
    """Return the learned position embedding that ran before the first block, if any."""
    first = recording.only(first_block)
    token = recording.only(token_path)
    if first is None or token is None or token.result is None:
        return None
    for path, part in module.named_modules():
        call = recording.only(path) if path else None
        if call is None or path == token_path or call.result is None or call.start > first.start:
            continue
        table = isinstance(part, nn.Embedding) and "type" not in path
        if table and call.result.shape[-2:] == token.result.shape[-2:]:
            return str(path)
    return None


def find_tail(
    module: nn.Module, recording: Recording, final_norm: str | None, logits: torch.Tensor
) -> Tail:
    """Find what happens between the final norm and the logits, and check it."""
    head = output_head(module, recording)
    if head is None:
        return Tail(None, reason="the unembedding was not found")
    path, call = head
    produced = call.result
    norm = recording.only(final_norm) if final_norm else None
    if produced is None or norm is None or norm.result is None or call.input is None:
        return Tail(path, reason="there is no final norm before the unembedding")
    if call.input.shape != norm.result.shape or not torch.equal(call.input, norm.result):
        scale = fitted_scale(call.input, norm.result)
        if scale is None:
            return Tail(path, reason="a transform lies between the final norm and the unembedding")
    else:
        scale = 1.0
    after = fitted_scale(logits, produced)
    if after is not None:
        return Tail(path, scale=after * scale, exact=True)
    config: Any = getattr(module, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    cap = getattr(text, "final_logit_softcapping", None)
    if cap and relative_error(cap * torch.tanh(produced / cap), logits) < tolerance(logits.dtype):
        return Tail(path, scale=scale, softcap=float(cap), exact=True)
    return Tail(path, reason="the logits are not a scaled or soft-capped unembedding")


def output_head(module: nn.Module, recording: Recording) -> tuple[str, Call] | None:
    """Return path and call of the unembedding."""
    getter = getattr(module, "get_output_embeddings", None)
    wanted = getter() if callable(getter) else None
    for path, part in module.named_modules():
        call = recording.only(path) if path else None
        if call is not None and part is wanted:
            return path, call
    logits = logits_of(recording.output)
    projections = [
        (path, call)
        for path, part in module.named_modules()
        if path and hf.is_projection(part) and (call := recording.only(path)) is not None
        if call.result is not None and call.result.shape == logits.shape
    ]
    return projections[-1] if projections else None
