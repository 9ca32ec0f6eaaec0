"""The tokenizer: byte-level BPE in which every punctuation mark is a token of its own."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SIZE = 2048
END = "<|endoftext|>"

# a line end with its indentation, a word with its leading space, one digit, one mark, one space
PIECES = r"\n[ ]*| ?[A-Za-z]+|[0-9]|[^A-Za-z0-9\s]|\s"


def train_tokenizer(texts: Iterable[str], size: int = SIZE) -> PreTrainedTokenizerFast:
    """Train the tokenizer.

    Args:
        texts: The training texts.
        size: Number of tokens.

    Returns:
        A tokenizer whose quotes, brackets, commas, colons, dots and equals signs never merge, and
        whose round trip of any text is exact.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
