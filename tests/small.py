"""Small models and tokenizers that tests build for themselves."""

from __future__ import annotations

import signal
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from microtome.behaviors.generators import code, english
from microtome.behaviors.generators.words import IDENTIFIERS
from microtome.behaviors.registry import get
from microtome.core.seeds import rng
from microtome.models.lens_tensors import Shape, expected_shapes
from microtome.models.readout import Readout
from microtome.models.transformer_lens import LensSettings, load_state_dict
from microtome.tracing.model import Model
from microtome.tracing.opening import load


def code_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of code in which every mark is a token of its own."""
    words = " ".join(IDENTIFIERS) + "\n" + "\n".join(IDENTIFIERS)
    texts = [words] * 3
    for generator in code.GENERATORS.values():
        texts += [item.clean for item in generator(60).items[:200]]
    return byte_tokenizer(texts, 900)


def english_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that knows most words of the English behaviors."""
    texts: list[str] = []
    for generator in english.GENERATORS.values():
        texts += [item.clean for item in generator(100, seed=9).items]
    return byte_tokenizer(texts, 1024)


@cache
def tokenizer_for(behavior: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that knows most words of a behavior."""
    if behavior in code.GENERATORS:
        return code_tokenizer()
    if behavior in english.GENERATORS:
        return english_tokenizer()
    texts = [item.clean + item.answers[0] for item in get(behavior, n=200, seed=9).items]
    return byte_tokenizer(texts[:2000], 1024)


def byte_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer trained on texts, in which every mark is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    pieces = Regex(r"\n[ ]*| ?[A-Za-z]+|[0-9]|[^A-Za-z0-9\s]|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>"
    )


def code_model(*, layers: int = 2, seed: int = 0) -> Model:
    """A random GPT-2 of two layers with the tokenizer above; it knows nothing."""
    tokenizer = code_tokenizer()
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=32,
        n_layer=layers,
        n_head=4,
        initializer_range=0.4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return load(GPT2LMHeadModel(config), tokenizer=tokenizer)


def save_model(model: Model, folder: Path) -> Path:
    """Write a model and its tokenizer as a Hugging Face folder."""
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def interruptible() -> None:
    """Undo in a child process that a shell in the background makes it ignore interruptions."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def lens_arrays(shape: Shape, *, norms: bool = True) -> dict[str, np.ndarray]:
    """Random tensors of a TransformerLens state dict, biases and norms included."""
    random = rng(0, "transformer lens")
    return {
        name: (0.5 * random.normal(size=size)).astype(np.float32)
        for name, size in expected_shapes(shape, norms=norms).items()
    }


def classifier() -> Model:
    """A random classifier of brackets that sees both ways and answers at its first position."""
    shape = Shape(layers=2, heads=2, size=4, width=8, neurons=12, context=26, vocab=5, labels=2)
    tensors = {name: torch.from_numpy(a) for name, a in lens_arrays(shape).items()}
    readout = Readout("first", ("unbalanced", "balanced"))
    module = load_state_dict(tensors, LensSettings("gelu", "bidirectional", readout=readout))
    words = Tokenizer(
        models.WordLevel({w: n for n, w in enumerate(["[start]", "[pad]", "[end]", "(", ")"])})
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="[start]")
    return load(module, tokenizer=tokenizer, bos=True)
