"""Facts: prompts about attributes of entities, with the answer that each should get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.errors import DataError
from microtome.sae.evaluation.rows import read_rows
from microtome.tracing.prompts import require_tokenizer

if TYPE_CHECKING:
    from microtome.tracing.model import Model


@dataclass(frozen=True)
class Fact:
    """One attribute of one entity, asked for in one prompt.

    Attributes:
        entity: The entity, as the prompt has it.
        attribute: Name of the attribute.
        prompt: A text that holds the entity and ends where the answer is predicted.
        answer: How the text goes on, with its leading space.
    """

    entity: str
    attribute: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Located:
    """A fact as token ids.

    Attributes:
        fact: The fact.
        ids: Token ids of its prompt.
        position: Place of the entity's last token.
        answer: The first token of the answer.
    """

    fact: Fact
    ids: tuple[int, ...]
    position: int
    answer: int


def facts_of(
    entities: Mapping[str, Mapping[str, str]], templates: Mapping[str, Sequence[str]]
) -> list[Fact]:
    """Return a fact for each entity, attribute and template.

    Args:
        entities: Entity to attribute to answer; an attribute may be missing.
        templates: Attribute to prompts with ``{entity}``.

    Raises:
        DataError: A template has no ``{entity}``.

    Example:
        >>> from microtome.sae.evaluation.facts import facts_of
        >>> facts_of({"Paris": {"country": " France"}}, {"country": ["{entity} is in"]})[0].prompt
        'Paris is in'
    """
    for attribute, texts in templates.items():
        for text in texts:
            if "{entity}" not in text:
                raise DataError(
                    f"the template {text!r} of {attribute!r} has no {{entity}}; say where it goes"
                )
    return [
        Fact(entity, attribute, text.replace("{entity}", entity), values[attribute])
        for entity, values in entities.items()
        for attribute, texts in templates.items()
        if attribute in values
        for text in texts
    ]


def read_facts(path: str | Path) -> list[Fact]:
    """Read facts from a file with one JSON object on each line: the fields of :class:`Fact`.

    Raises:
        DataError: The file cannot be read, or a line is no fact.
    """
    return [Fact(*row) for row in read_rows(path, [field.name for field in fields(Fact)])]


def locate(model: Model, facts: Sequence[Fact]) -> list[Located]:
    """Return facts as token ids, with the place of each entity.

    Raises:
        TokenizerError: The model has no tokenizer.
        DataError: A prompt does not hold its entity, or an answer adds no token.
    """
    require_tokenizer(model.tokenizer)
    found = []
    for fact in facts:
        begin = fact.prompt.find(fact.entity)
        if begin < 0 or not fact.entity:
            raise DataError(f"the prompt {fact.prompt!r} does not hold {fact.entity!r}; correct it")
        ids = model.tokenize(fact.prompt)
        front = model.tokenize(fact.prompt[: begin + len(fact.entity)])
        shared = _shared(ids, front)
        # Where the entity's end and what follows are one token, that token is the entity's last.
        position = len(front) - 1 if shared == len(front) else min(shared, len(ids) - 1)
        whole = model.tokenize(fact.prompt + fact.answer)
        answer = _shared(ids, whole)
        if answer < len(ids) or len(whole) == answer:
            raise DataError(
                f"{fact.answer!r} does not go on from the tokens of {fact.prompt!r}; give answers "
                "that begin a new token, with their leading space"
            )
        found.append(Located(fact, tuple(ids), position, int(whole[answer])))
    return found


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many tokens two texts share at their beginning."""
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count
