"""Latents described in words, for the commands: by a local model, or through files of answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microtome.cli.options import say

if TYPE_CHECKING:
    from microtome.cli.bars import Bars
    from microtome.sae import LatentIndex
    from microtome.sae.reading.answers import Recorded
    from microtome.sae.reading.wording import Interview, InWords

ExplainerPlace = Annotated[
    str | None,
    typer.Option(help="Folder of a causal language model that describes the latents in words."),
]
AskedPlace = Annotated[
    Path | None,
    typer.Option(help="JSON lines for its questions and answers; unanswered without a model."),
]
AnswersPlace = Annotated[
    Path | None, typer.Option(help="JSON lines with answers that were given elsewhere.")
]


def described(
    index: LatentIndex,
    latents: Sequence[int],
    *,
    explainer: str | None,
    asked: Path | None,
    answers: Path | None,
    seed: int,
    device: str | None,
    dtype: str | None,
    bars: Bars,
) -> list[InWords]:
    """Return descriptions with their scores; none if nobody was asked, or answers are missing.

    Raises:
        ConfigError: Both a model and answers were given, or questions would overwrite answers.
    """
    from microtome.cli.places import check_file
    from microtome.errors import ConfigError
    from microtome.sae.reading.answers import LanguageModel, Record, Recorded
    from microtome.sae.reading.wording import Interview, explain_in_words

    if explainer is not None and answers is not None:
        raise ConfigError("give either --explainer, which answers, or --answers")
    if asked is not None:
        check_file(asked)
        if answers is not None and asked.resolve() == answers.resolve():
            raise ConfigError(
                f"--asked and --answers are both {asked}, and writing questions would take the "
                "place of the answers; give two files"
            )
    if (explainer, asked, answers) == (None, None, None):
        return []
    interview = Interview(index, list(latents), seed=seed)
    if explainer is not None:
        record = Record(LanguageModel(explainer, device=device, dtype=dtype))
        found = explain_in_words(interview, record, progress=bars)
        if asked is not None:
            record.save(asked)
        return found
    recorded = Recorded.load(answers) if answers is not None else Recorded({})
    return _from_file(interview, recorded, asked, bars)


def _from_file(
    interview: Interview, recorded: Recorded, asked: Path | None, bars: Bars
) -> list[InWords]:
    """Use recorded answers, or write out the questions that have none yet."""
    from microtome.errors import EmptyDataError
    from microtome.sae.reading.answers import write_questions
    from microtome.sae.reading.wording import explain_in_words

    questions = interview.explaining()
    missing = recorded.missing(questions)
    if not missing:
        words = interview.descriptions(recorded.texts(questions))
        missing = recorded.missing(interview.scoring(words))
    if not missing:
        return explain_in_words(interview, recorded, progress=bars)
    if asked is None:
        raise EmptyDataError(
            f"{len(missing)} questions have no answer in {recorded.name}; --asked FILE writes them"
        )
    write_questions(missing, asked)
    kind = "yes or no" if missing[0].yes_no else "words"
    say(
        f"{asked} holds {len(missing)} questions that ask for {kind}; answer them, put the answers "
        "together in one file, and give it with --answers."
    )
    return []
