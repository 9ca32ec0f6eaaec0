"""Explanations in words by a language model, and their scores by its own yes and no.

The explainer sees excerpts from all quantiles of a latent's activation on one half of the texts.
Detection asks of excerpts of the other half whether the description fits one of their tokens,
fuzzing whether it fits the marked token (Bills et al., 2023; Paulo et al., 2024). The same is asked
with the explanation of another latent, and of the latent's activations at random places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from microtome.core.progress import Progress, quiet
from microtome.core.seeds import rng
from microtome.errors import ConfigError, EmptyDataError
from microtome.sae.reading.answers import Answerer, Question
from microtome.sae.reading.examples import Example, around, quantiles
from microtome.sae.reading.index import Activity, LatentIndex
from microtome.sae.reading.scoring import half, scattered
from microtome.sae.reading.trials import NAN, Trial, auc, balanced
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd

BEFORE, AFTER = 20, 8
"""Tokens of an excerpt before and behind the one it is about."""

LARGEST = 10
"""Activation that is written for a latent's largest one."""

EXPLAIN = """A unit inside a language model is active on some tokens of a text and silent on the \
others. In each excerpt below, the tokens on which it is active stand between << and >>; after it \
they are listed with their strength from 1 to {largest}.

{excerpts}

What do the marked tokens, or the places where they stand, have in common? Answer in one short \
sentence.
Answer: The unit is active on"""

DETECT = """A unit inside a language model is active on: {words}

Excerpt: {excerpt}

Is the unit active on any token of this excerpt? Answer Yes or No.
Answer:"""

FUZZ = """A unit inside a language model is active on: {words}

Excerpt: {excerpt}

Is the unit active on the token between << and >>? Answer Yes or No.
Answer:"""


@dataclass(frozen=True, eq=False)
class WordScores(Result, schema="sae-word-scores"):
    """How well a description lets a language model tell where a latent is active; chance is 0.5.

    Attributes:
        detection: Area under the ROC curve over excerpts, by the log odds of yes.
        detection_accuracy: Balanced accuracy of yes being likelier than no.
        fuzzing: Area under the ROC curve over marked tokens.
        fuzzing_accuracy: Balanced accuracy of yes being likelier than no.
        n_contexts: Excerpts of the detection, half of them with the latent active.
        n_tokens: Marked tokens of the fuzzing, half of them active.
    """

    detection: float
    detection_accuracy: float
    fuzzing: float
    fuzzing_accuracy: float
    n_contexts: int
    n_tokens: int


@dataclass(frozen=True, eq=False)
class InWords(Result, schema="sae-in-words"):
    """A latent described in words, with scores beside those of the baselines.

    Attributes:
        latent: Number of the latent.
        text: What it is active on.
        explainer: Who said so.
        scores: Of this description.
        random: Of the description of another latent, on the same questions.
        shuffled: Of the description of the same activations at random places, asked about these.
    """

    latent: int
    text: str
    explainer: str
    scores: WordScores
    random: WordScores
    shuffled: WordScores


@dataclass(frozen=True, eq=False)
class Interview:
    """What is asked about some latents.

    Attributes:
        index: An index of active latents.
        latents: Which latents.
        bins: Bins of a latent's range that excerpts are drawn from.
        per_bin: Excerpts of each.
        n: Excerpts, and marked tokens, that a description is scored on at most.
        seed: Decides the halves and what is drawn.

    Raises:
        ConfigError: A latent is given twice, or a number is out of range.
        EmptyDataError: A latent is never active, or there are fewer than two contexts.
    """

    index: LatentIndex
    latents: Sequence[int]
    bins: int = 5
    per_bin: int = 2
    n: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the latents and numbers."""
        if not self.latents or len(set(self.latents)) < len(self.latents):
            raise ConfigError(f"the latents are {list(self.latents)}; give each once")
        if self.bins < 1 or self.per_bin < 1 or self.n < 2:
            raise ConfigError(
                f"bins={self.bins}, per_bin={self.per_bin}, n={self.n}; expected at least 1, 1, 2"
            )
        for latent in self.latents:
            self.index.require_active(latent)
        half(self.index, self.seed)
        if len(self.described) < 2:
            raise EmptyDataError("no other latent is active; index more text")

    @property
    def described(self) -> tuple[int, ...]:
        """The latents that are described: with a single one, one more to compare it with."""
        if len(self.latents) > 1:
            return tuple(self.latents)
        others = np.argsort(-self.index.counts, kind="stable")
        more = [int(n) for n in others if self.index.counts[n] and n != self.latents[0]]
        return (self.latents[0], *more[:1])

    def explaining(self) -> list[Question]:
        """Return the questions that ask for descriptions: of each latent, and of it shuffled."""
        learned = half(self.index, self.seed)
        found = []
        for latent in self.described:
            for kind, activity in self._activities(latent).items():
                kept = learned[activity[0]]
                part = (activity[0][kept], activity[1][kept])
                stream = rng(self.seed, f"excerpts {kind}", str(latent))
                shown = quantiles(self.index, part, self.bins, self.per_bin, stream)
                excerpts = "\n\n".join(
                    _listed(n, around(self.index, part, position, BEFORE, AFTER), part)
                    for n, (position, _) in enumerate(shown, 1)
                )
                prompt = EXPLAIN.format(largest=LARGEST, excerpts=excerpts)
                found.append(_question(f"{latent}-{kind}-explain", latent, prompt, False))
        return found

    def scoring(self, words: Mapping[str, str]) -> list[Question]:
        """Return the questions that score descriptions, as :meth:`descriptions` names them."""
        return [q for latent in self.latents for q, _ in self._asked(latent, words)]

    def descriptions(self, texts: Sequence[str]) -> dict[str, str]:
        """Return the answers to :meth:`explaining` by latent and kind."""
        names = [f"{n}-{kind}" for n in self.described for kind in ("own", "shuffled")]
        return dict(zip(names, texts, strict=True))

    def results(
        self, words: Mapping[str, str], margins: NDArray[np.float64], explainer: str
    ) -> list[InWords]:
        """Return the descriptions with their scores from the answers to :meth:`scoring`."""
        found, start = [], 0
        for latent in self.latents:
            asked = [key for _, key in self._asked(latent, words)]
            part = margins[start : start + len(asked)]
            start += len(asked)
            scores = [_scores(kind, asked, part) for kind in ("own", "random", "shuffled")]
            found.append(InWords(latent, words[f"{latent}-own"], explainer, *scores))
        return found

    def _activities(self, latent: int) -> dict[str, Activity]:
        activity = self.index.positions(latent)
        stream = rng(self.seed, "shuffled words", str(latent))
        return {"own": activity, "shuffled": scattered(self.index, activity, stream)}

    def _asked(
        self, latent: int, words: Mapping[str, str]
    ) -> list[tuple[Question, tuple[str, str, bool]]]:
        """Return the questions about a latent with their kind, protocol and right answer."""
        other = self.described[(self.described.index(latent) + 1) % len(self.described)]
        held = ~half(self.index, self.seed)
        found = []
        for kind, activity in self._activities(latent).items():
            stream = rng(self.seed, f"asked {kind}", str(latent))
            trial = Trial.of(self.index, activity, held, stream, n_contexts=self.n)
            shown = [("detection", *e) for e in self._contexts(trial, stream)]
            shown += [("fuzzing", *e) for e in self._tokens(trial)]
            described = {kind: words[f"{latent}-{kind}"]}
            if kind == "own":
                described["random"] = words[f"{other}-own"]
            for name, text in described.items():
                for number, (protocol, excerpt, truth) in enumerate(shown):
                    form = DETECT if protocol == "detection" else FUZZ
                    prompt = form.format(words=text, excerpt=excerpt)
                    question = _question(f"{latent}-{name}-{number}", latent, prompt, True)
                    found.append((question, (name, protocol, truth)))
        return found

    def _contexts(self, trial: Trial, stream: np.random.Generator) -> list[tuple[str, bool]]:
        """Return excerpts, of active contexts around their strongest token, and the truth."""
        found = []
        sizes = np.zeros(len(self.index.ids))
        sizes[trial.positions] = np.abs(trial.values)
        for context, truth in zip(trial.contexts, trial.truth, strict=True):
            start, end = (int(i) for i in self.index.contexts[context : context + 2])
            best = int(sizes[start:end].argmax()) if truth else int(stream.integers(end - start))
            nowhere = (trial.positions[:0], np.empty(0, dtype=np.float32))
            example = around(self.index, nowhere, start + best, BEFORE, AFTER)
            found.append(("".join(example.tokens), bool(truth)))
        return found

    def _tokens(self, trial: Trial) -> list[tuple[str, bool]]:
        """Return excerpts with one marked token, and whether the latent is active on it."""
        count = len(trial.tokens) // 2
        m = min(count, self.n // 2)
        found = []
        for place in (*range(m), *range(count, count + m)):
            position = trial.tokens[place]
            one = (np.array([position], dtype=np.int32), np.ones(1, dtype=np.float32))
            example = around(self.index, one, int(position), BEFORE, AFTER)
            found.append((_marked(example), place < count))
        return found


def explain_in_words(
    interview: Interview, answerer: Answerer, *, progress: Progress = quiet
) -> list[InWords]:
    """Have latents described and the descriptions scored.

    Args:
        interview: What is asked about which latents.
        answerer: Who answers, such as a :class:`~microtome.sae.reading.answers.LanguageModel`.
        progress: Told how many answers there are.

    Raises:
        EmptyDataError: A recorded answer is missing.
        PromptError: A question is too long for the model.
    """
    words = interview.descriptions(answerer.texts(interview.explaining(), progress))
    margins = answerer.margins(interview.scoring(words), progress)
    return interview.results(words, margins, answerer.name)


def words_frame(found: Sequence[InWords]) -> pd.DataFrame:
    """Return descriptions and scores as a table, one latent a row."""
    import pandas as pd

    rows = []
    for e in found:
        row: dict[str, object] = {"latent": e.latent, "explanation": e.text}
        for name, s in (("", e.scores), ("_random", e.random), ("_shuffled", e.shuffled)):
            row |= {f"detection{name}": s.detection, f"fuzzing{name}": s.fuzzing}
        rows.append(row)
    return pd.DataFrame(rows).set_index("latent")


def _scores(
    kind: str, asked: Sequence[tuple[str, str, bool]], margins: NDArray[np.float64]
) -> WordScores:
    def figures(protocol: str) -> tuple[float, float, int]:
        chosen = [i for i, (name, how, _) in enumerate(asked) if (name, how) == (kind, protocol)]
        truth, there = np.array([asked[i][2] for i in chosen], dtype=bool), margins[chosen]
        if not chosen:
            return NAN, NAN, 0
        return auc(there, truth), balanced(there > 0, truth), len(chosen)

    (detection, told, n_contexts), (fuzzing, marked, n_tokens) = map(
        figures, ("detection", "fuzzing")
    )
    return WordScores(detection, told, fuzzing, marked, n_contexts, n_tokens)


def _question(name: str, latent: int, prompt: str, yes_no: bool) -> Question:
    """Return a question under a name that changes with what is asked."""
    digest = hashlib.sha256(prompt.encode("utf-8")).hexdigest()[:12]
    return Question(f"{name}-{digest}", latent, prompt, yes_no)


def _marked(example: Example) -> str:
    """Return an excerpt with its active tokens between << and >>."""
    return "".join(
        f"<<{token}>>" if value else token
        for token, value in zip(example.tokens, example.values, strict=True)
    )


def _listed(number: int, example: Example, activity: Activity) -> str:
    """Return an excerpt with its active tokens marked and listed with their strength."""
    largest = float(np.abs(activity[1]).max())
    strengths = [
        f'"{token}" {max(1, round(abs(float(value)) / largest * LARGEST))}'
        for token, value in zip(example.tokens, example.values, strict=True)
        if value
    ]
    return f"Excerpt {number}: {_marked(example)}\nActive: {', '.join(strengths)}"
