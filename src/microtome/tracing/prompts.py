"""Prompts as a padded batch of token ids: text, lists of ids or a tensor."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from microtome.errors import PromptError, TokenizerError

Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | torch.Tensor

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False)
class Batch:
    """Token ids, padded on one side.

    Attributes:
        tokens: ``[batch, pos]``.
        lengths: Tokens of each row.
        left: Whether the padding is on the left (for generation).
    """

    tokens: torch.Tensor
    lengths: tuple[int, ...]
    left: bool = False

    @property
    def padded(self) -> bool:
        """Whether any row is shorter than the batch."""
        return any(n != self.tokens.shape[1] for n in self.lengths)

    @property
    def mask(self) -> torch.Tensor:
        """Boolean mask ``[batch, pos]``, true at real tokens."""
        width = self.tokens.shape[1]
        column = torch.arange(width).unsqueeze(0)
        length = torch.tensor(self.lengths).unsqueeze(1)
        real = column >= width - length if self.left else column < length
        return real.to(self.tokens.device)


def tokenize(tokenizer: Any, text: str, *, bos: bool) -> tuple[int, ...]:
    """Return the token ids of a text, with the beginning-of-sequence token if asked.

    Raises:
        TokenizerError: If there is no tokenizer, or no such token.
        PromptError: If the text is empty, or holds half of a surrogate pair.
    """
    if tokenizer is None:
        raise TokenizerError(
            "A text was given but the model has no tokenizer. Pass tokenizer=... to load, or token "
            "ids."
        )
    if not text:
        raise PromptError("The prompt is empty; expected at least one token.")
    require_unicode(text)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if bos:
        start = tokenizer.bos_token_id
        if start is None:
            raise TokenizerError("bos=True, but the tokenizer has no beginning-of-sequence token.")
        ids.insert(0, start)
    if not ids:
        raise PromptError(f"The prompt {text!r} has no tokens.")
    return tuple(int(i) for i in ids)


def batch_of(
    prompts: Prompts,
    *,
    tokenizer: Any,
    bos: bool,
    vocab: int | None,
    context: int | None,
    device: torch.device,
    left: bool = False,
) -> Batch:
    """Turn prompts into one padded batch.

    Args:
        prompts: A text, texts, token ids, lists of token ids, or a tensor ``[batch, pos]``.
        tokenizer: For texts.
        bos: Whether texts get a beginning-of-sequence token.
        vocab: Number of tokens, to check ids; None skips the check.
        context: Longest input, None if not limited.
        device: Where the batch goes.
        left: Pad on the left instead of the right.

    Raises:
        PromptError: If a prompt is empty, too long, of a wrong type, or an id is out of range.
    """
    rows = _rows(prompts, tokenizer, bos)
    for number, row in enumerate(rows):
        if not row:
            raise PromptError(f"Prompt {number} is empty; expected at least one token.")
        if context is not None and len(row) > context:
            raise PromptError(
                f"Prompt {number} has {len(row)} tokens, but the model's context is {context}. "
                "Shorten it."
            )
        if vocab is not None and not 0 <= min(row) <= max(row) < vocab:
            wrong = next(i for i in row if not 0 <= i < vocab)
            raise PromptError(
                f"Prompt {number}: token id {wrong} is outside the vocabulary (0 to {vocab - 1})."
            )
    lengths = tuple(len(row) for row in rows)
    width = max(lengths)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        start = width - len(row) if left else 0
        tokens[number, start : start + len(row)] = torch.tensor(row)
    return Batch(tokens.to(device), lengths, left)


def _rows(prompts: Prompts, tokenizer: Any, bos: bool) -> list[list[int]]:
    if isinstance(prompts, str):
        return [list(tokenize(tokenizer, prompts, bos=bos))]
    if isinstance(prompts, torch.Tensor):
        if prompts.dtype not in _INTEGERS or prompts.ndim not in (1, 2):
            raise PromptError(
                f"A prompt tensor holds token ids [batch, pos]; got {prompts.dtype} of shape "
                f"{tuple(prompts.shape)}."
            )
        if not prompts.numel():
            raise PromptError(f"A prompt tensor of shape {tuple(prompts.shape)} holds no tokens.")
        ids = prompts.unsqueeze(0) if prompts.ndim == 1 else prompts
        return [[int(i) for i in row] for row in ids.tolist()]
    try:
        if isinstance(prompts, bytes | bytearray):
            raise TypeError
        items = list(prompts)
    except TypeError:
        raise PromptError(
            f"Prompts are texts or token ids; got {type(prompts).__name__}."
        ) from None
    if not items:
        raise PromptError("There are no prompts; expected at least one.")
    numbers = [i for i in items if isinstance(i, int) and not isinstance(i, bool)]
    if len(numbers) == len(items):
        return [numbers]
    return [_row(item, number, tokenizer, bos) for number, item in enumerate(items)]


def _row(item: Any, number: int, tokenizer: Any, bos: bool) -> list[int]:
    if isinstance(item, str):
        return list(tokenize(tokenizer, item, bos=bos))
    try:
        return [operator.index(i) for i in item]
    except TypeError:
        raise PromptError(
            f"Prompt {number} is neither text nor a list of token ids: {type(item).__name__}."
        ) from None


def require_tokenizer(tokenizer: Any) -> None:
    """Refuse to go on without a tokenizer.

    Raises:
        TokenizerError: If there is none.
    """
    if tokenizer is None:
        raise TokenizerError("The model has no tokenizer. Pass tokenizer=... to load.")


def require_unicode(text: str) -> None:
    """Refuse a text that no tokenizer can read, as JSON can spell it.

    Raises:
        PromptError: It holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The prompt {text[:60]!r} holds half of a surrogate pair at character {error.start}, "
            "which stands for nothing; leave it out."
        ) from None


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return one display text for each token id; spaces and line ends are kept as characters."""
    texts = []
    for token in ids:
        piece = tokenizer.convert_ids_to_tokens(int(token))
        text = tokenizer.decode([int(token)])
        if isinstance(piece, str) and piece.startswith("\u2581") and not text.startswith(" "):
            text = " " + text
        texts.append(text)
    return texts
