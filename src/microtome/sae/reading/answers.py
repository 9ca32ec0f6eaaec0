"""Questions to a language model about latents, and who answers them: a local model, or a file.

Questions are plain text. A question that asks for words is answered by greedy text; one that asks
yes or no by the difference of two logits, so that nothing has to be parsed. Questions and answers
go to JSON lines, and answers that another model gave come back the same way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from microtome.core.progress import Progress, quiet
from microtome.errors import (
    ConfigError,
    DataError,
    EmptyDataError,
    PromptError,
    ShapeError,
    TokenizerError,
)
from microtome.models.loading import open_module
from microtome.store.atomic import write_text

T = TypeVar("T")

YES, NO = ("Yes", " Yes", "yes", " yes"), ("No", " No", "no", " no")


@dataclass(frozen=True)
class Question:
    """A question about a latent.

    Attributes:
        id: Its name, the same for the same index, latent, explanation and seed.
        latent: Number of the latent.
        prompt: What is asked.
        yes_no: Whether it is answered by yes or no, and not in words.
    """

    id: str
    latent: int
    prompt: str
    yes_no: bool


class Answerer(Protocol):
    """Whoever answers questions."""

    @property
    def name(self) -> str:
        """Who it is."""

    def texts(self, questions: Sequence[Question], progress: Progress) -> list[str]:
        """Return the answers in words."""

    def margins(self, questions: Sequence[Question], progress: Progress) -> NDArray[np.float64]:
        """Return how much likelier yes is than no, in nats ``[question]``."""


class LanguageModel:
    """A causal language model that answers, such as a local Hugging Face folder.

    Args:
        source: Its folder (or hub id), or the module itself.
        tokenizer: Its tokenizer; by default the one in the folder.
        device: Where it runs.
        dtype: Type of its weights.
        max_new_tokens: Longest answer in words.
        batch_size: Questions in a pass.

    Raises:
        ModelError: It cannot be opened.
        TokenizerError: It has no tokenizer.
        ConfigError: A number is out of range.
    """

    def __init__(
        self,
        source: str | Path | torch.nn.Module,
        *,
        tokenizer: Any = None,
        device: str | None = None,
        dtype: str | None = None,
        max_new_tokens: int = 40,
        batch_size: int = 8,
    ) -> None:
        if max_new_tokens < 1 or batch_size < 1:
            raise ConfigError(
                f"max_new_tokens={max_new_tokens}, batch_size={batch_size}; expected 1 or more"
            )
        opened = open_module(source, tokenizer=tokenizer, device=device, dtype=dtype)
        self.module: Any = opened.module
        if opened.tokenizer is None:
            raise TokenizerError(f"{opened.name} has no tokenizer; an explainer reads and writes")
        if not hasattr(self.module, "generate"):
            raise ConfigError(f"{opened.name} does not generate; take a causal language model")
        self.tokenizer, self.name = opened.tokenizer, opened.name
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size

    def texts(self, questions: Sequence[Question], progress: Progress = quiet) -> list[str]:
        """Return the first line of the greedy continuation of each prompt.

        Raises:
            PromptError: A prompt is longer than the model's context.
        """
        found = []
        for number, question in enumerate(questions):
            ids = torch.tensor([self._ids(question, self.max_new_tokens)])
            ids = ids.to(self.module.device)
            with torch.no_grad():
                out = self.module.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=self.max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    pad_token_id=self._pad,
                )
            text = self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            lines = text.strip().splitlines()
            found.append(lines[0].strip() if lines else "")
            progress.step(number + 1, len(questions), "answers in words")
        return found

    @torch.no_grad()
    def margins(
        self, questions: Sequence[Question], progress: Progress = quiet
    ) -> NDArray[np.float64]:
        """Return the log odds of yes against no as the next token ``[question]``, in nats.

        All spellings of a word count together; each is read by its first token.

        Raises:
            PromptError: A prompt is longer than the model's context.
            TokenizerError: Yes and no begin with the same token.
            ShapeError: A logit is not finite.
        """
        yes, no = self.words()
        found = np.zeros(len(questions))
        rows = [self._ids(question, 1) for question in questions]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            longest = max(len(rows[i]) for i in part)
            ids = torch.full((len(part), longest), self._pad)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(part):
                ids[row, : len(rows[i])] = torch.tensor(rows[i])
                mask[row, : len(rows[i])] = 1
            device = self.module.device
            logits = self.module(ids.to(device), attention_mask=mask.to(device)).logits
            last = logits[torch.arange(len(part)), mask.sum(1) - 1].double().cpu()
            odds = last[:, yes].logsumexp(1) - last[:, no].logsumexp(1)
            found[part] = odds.numpy()
            progress.step(start + len(part), len(order), "yes or no")
        if not np.isfinite(found).all():
            raise ShapeError(f"{self.name} gives logits that are NaN or infinite; check its dtype")
        return found

    def words(self) -> tuple[list[int], list[int]]:
        """Return the tokens that yes begins with, and those that no begins with.

        Raises:
            TokenizerError: They share one.
        """
        found = [
            {ids[0] for w in words if (ids := self.tokenizer.encode(w, add_special_tokens=False))}
            for words in (YES, NO)
        ]
        yes, no = sorted(found[0] - found[1]), sorted(found[1] - found[0])
        if not yes or not no:
            raise TokenizerError(
                f"{self.name} writes yes and no with the same first token; take a model with a "
                "vocabulary of words"
            )
        return yes, no

    @property
    def _pad(self) -> int:
        for name in ("pad_token_id", "eos_token_id"):
            if (found := getattr(self.tokenizer, name, None)) is not None:
                return int(found)
        return 0

    def _ids(self, question: Question, room: int) -> list[int]:
        tokenizer, text = self.tokenizer, question.prompt
        if getattr(tokenizer, "chat_template", None):
            chat = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            ids = tokenizer.encode(text, add_special_tokens=False)
        else:
            ids = tokenizer.encode(text)
        longest = getattr(self.module.config, "max_position_embeddings", None)
        if longest is not None and len(ids) + room > longest:
            raise PromptError(
                f"the question {question.id} has {len(ids)} tokens, and {self.name} reads "
                f"{longest} with the answer; show fewer or shorter examples"
            )
        return [int(i) for i in ids]


@dataclass(frozen=True)
class Recorded:
    """Answers that were given elsewhere.

    Attributes:
        answers: What a file says of each question, by its id: ``answer`` (words, or yes or no) or
            ``margin`` (log odds of yes against no, in nats).
        name: Where they come from.
    """

    answers: Mapping[str, Mapping[str, Any]]
    name: str = "recorded answers"

    @staticmethod
    def load(path: str | Path) -> Recorded:
        """Read JSON lines, ``{"id": ..., "answer": ...}`` or ``{"id": ..., "margin": ...}``.

        Raises:
            DataError: The file cannot be read, a line is not of this form, or a question has two
                answers.
        """
        place = Path(path)
        try:
            lines = place.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{place} cannot be read: {error}; give a file of answers") from None
        found: dict[str, Mapping[str, Any]] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                name, given = row["id"], (row.get("answer"), row.get("margin"))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise DataError(
                    f'{place}, line {number}: expected {{"id": ..., "answer": ...}}; got '
                    f"{line[:60]!r}"
                ) from None
            if given == (None, None):  # a question that nobody answered yet
                continue
            before = found.setdefault(str(name), row)
            if (before.get("answer"), before.get("margin")) != given:
                raise DataError(
                    f"{place}, line {number}: {name} was answered otherwise before; give one answer"
                )
        return Recorded(found, place.name)

    def missing(self, questions: Sequence[Question]) -> list[Question]:
        """Return the questions without an answer."""
        return [q for q in questions if q.id not in self.answers]

    def texts(self, questions: Sequence[Question], progress: Progress = quiet) -> list[str]:
        """Return the answers in words.

        Raises:
            EmptyDataError: One is missing.
            DataError: One is no text.
        """
        return self._all(questions, _words)

    def margins(
        self, questions: Sequence[Question], progress: Progress = quiet
    ) -> NDArray[np.float64]:
        """Return the log odds of yes; a bare yes or no counts as 1 or -1 ``[question]``.

        Raises:
            EmptyDataError: One is missing.
            DataError: One is neither yes nor no.
        """
        return np.array(self._all(questions, _margin), dtype=np.float64)

    def _all(
        self, questions: Sequence[Question], read: Callable[[Mapping[str, Any]], T]
    ) -> list[T]:
        if missing := self.missing(questions):
            raise EmptyDataError(
                f"{len(missing)} of {len(questions)} questions have no answer in {self.name}, "
                f"{missing[0].id} first; write the questions out and answer them"
            )
        return [read(self.answers[q.id]) for q in questions]


@dataclass
class Record:
    """Answers by somebody, and a record of what was asked and answered.

    Attributes:
        answerer: Who answers.
        rows: Questions with answers, as they go to JSON lines.
    """

    answerer: Answerer
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Who answers."""
        return self.answerer.name

    def texts(self, questions: Sequence[Question], progress: Progress = quiet) -> list[str]:
        """Return the answers in words."""
        found = self.answerer.texts(questions, progress)
        self.rows += [_row(q, answer=a) for q, a in zip(questions, found, strict=True)]
        return found

    def margins(
        self, questions: Sequence[Question], progress: Progress = quiet
    ) -> NDArray[np.float64]:
        """Return the log odds of yes ``[question]``."""
        found = self.answerer.margins(questions, progress)
        self.rows += [_row(q, margin=float(m)) for q, m in zip(questions, found, strict=True)]
        return found

    def save(self, path: str | Path) -> None:
        """Write the record as JSON lines.

        Raises:
            OutputError: The file could not be written.
        """
        _write_lines(path, self.rows)


def write_questions(questions: Sequence[Question], path: str | Path) -> None:
    """Write questions as JSON lines, to be answered elsewhere.

    Raises:
        OutputError: The file could not be written.
    """
    _write_lines(path, [_row(question) for question in questions])


def _row(question: Question, **given: Any) -> dict[str, Any]:
    asks = "yes or no" if question.yes_no else "words"
    head = {"id": question.id, "latent": question.latent, "asks": asks, "prompt": question.prompt}
    return {**head, **(given or {"answer": None})}


def _write_lines(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    write_text(Path(path), "".join(lines))


def _words(row: Mapping[str, Any]) -> str:
    said = row.get("answer")
    if not isinstance(said, str):
        raise DataError(f"the answer to {row.get('id')} is {str(said)[:60]!r}; expected a text")
    return said.strip()


def _margin(row: Mapping[str, Any]) -> float:
    margin = row.get("margin")
    if isinstance(margin, int | float) and math.isfinite(margin):
        return float(margin)
    said = str(row.get("answer", "")).strip().casefold().strip(".!\"'* ")
    for word, value in (("yes", 1.0), ("no", -1.0)):
        if said == word or said.startswith((f"{word} ", f"{word},", f"{word}.", f"{word}\n")):
            return value
    raise DataError(
        f"the answer to {row.get('id')} is {said[:60]!r}; expected yes or no, or a finite margin"
    )
