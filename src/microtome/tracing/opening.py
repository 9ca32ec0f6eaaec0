"""``microtome.load``: open a model and find its anatomy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from microtome.errors import ModelSupportError
from microtome.models import hf
from microtome.models.discovery import discover
from microtome.models.loading import open_module
from microtome.models.precision import in_float32
from microtome.models.readout import Readout, readout_of
from microtome.tracing.model import Model


def load(
    source: str | Path | nn.Module,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    bos: bool | None = None,
    readout: Readout | None = None,
) -> Model:
    """Open a model: find its parts by one probe and make its sites available.

    Args:
        source: A folder with ``config.json`` and safetensors (of Hugging Face, or the state dict
            and settings of a TransformerLens model), a hub id, the name of a specimen, or any
            ``nn.Module`` (used as it is and put into evaluation mode).
        tokenizer: A tokenizer, its folder or hub id; by default the one in the folder.
        device: Where the model goes; it stays where it is by default.
        dtype: Type of the weights: float32 by default for folders, unchanged for modules.
        bos: Whether texts get a beginning-of-sequence token; by default whether the tokenizer
            adds one.
        readout: Where the answer is read, and what the logits stand for; by default what the
            configuration says under ``readout``, and else the prompt's end and tokens.

    Returns:
        The model. A module that is not a transformer has only ``module:`` sites.

    Raises:
        ModelError: If the model cannot be opened; the message says why.
        TokenizerError: If the tokenizer cannot be read.

    Example:
        >>> import microtome as mt
        >>> from microtome.models.families import build
        >>> mt.load(build("llama")).anatomy.causal
        True
    """
    opened = open_module(source, tokenizer=tokenizer, device=device, dtype=dtype)
    if hf.is_encoder_decoder(opened.module):
        raise ModelSupportError(
            f"{opened.name} has an encoder and a decoder with cross-attention; microtome opens one "
            "stack of blocks. Open its encoder alone, as in load(model.get_encoder())."
        )
    try:
        with in_float32(opened.module):
            anatomy = discover(opened.module)
    except ModelSupportError:
        if not isinstance(source, nn.Module) and isinstance(opened.module, PreTrainedModel):
            raise
        anatomy = None
    answers = readout or readout_of(opened.module)
    if answers.place == "first" and anatomy is not None and anatomy.causal:
        raise ModelSupportError(
            f"{opened.name} is to be read at its first position, which sees no other token: its "
            "attention is causal. Leave out readout, or take a model that sees both ways."
        )
    chosen = adds_bos(opened.tokenizer) if bos is None else bos
    return Model(
        opened.module,
        tokenizer=opened.tokenizer,
        anatomy=anatomy,
        name=opened.name,
        bos=chosen,
        readout=answers,
    )


def adds_bos(tokenizer: Any) -> bool:
    """Return whether a tokenizer puts its beginning-of-sequence token in front by itself."""
    start = getattr(tokenizer, "bos_token_id", None)
    if tokenizer is None or start is None:
        return False
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == start
