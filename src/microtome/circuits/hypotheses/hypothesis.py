"""A hypothesis about a circuit, written in a small TOML file: which parts carry which variable.

.. code-block:: toml

    [hypothesis]
    name = "the opening quote is copied"
    predicts = 'opener'                      # the token of the answer, for interchange

    [variables]
    opener = 'token("opening quote")'        # an expression over the item

    [claims.mover]
    parts = ["a2.*", "m3"]                   # heads and MLPs; * stands for anything
    carries = 'opener'                       # a variable, or an expression of variables
    at = "end"                               # only at this role; everywhere by default
    reads = ["finder", "tokens"]             # claims it reads, and the prompt's own tokens

    [claims.finder]
    parts = ["a1.h2"]
    carries = 'opener'

    [output]
    reads = ["mover"]                        # by default the claims that no other one reads

A claim without ``reads`` may read whatever a prompt brings that agrees on what it carries.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microtome.circuits.hypotheses.expressions import FIELDS, FUNCTIONS, Expression, Value, parse
from microtome.circuits.hypotheses.situations import Situation
from microtome.errors import DataError, FormatError, UnknownNameError, nearest
from microtome.tracing.components import head_of, layer_of

TOKENS = "tokens"
"""What a claim names in ``reads`` to read the embedding of the prompt."""

_SECTIONS = ("hypothesis", "variables", "claims", "output")
_HYPOTHESIS = ("name", "description", "predicts")
_CLAIM = ("parts", "carries", "at", "reads")


@dataclass(frozen=True)
class Claim:
    """What some parts are said to do.

    Attributes:
        name: Its name.
        parts: Heads and MLPs, or patterns of them.
        carries: What their outputs depend on, and nothing else.
        at: The role at whose positions they do; None for everywhere.
        reads: Claims, and ``tokens``, that they read; None for whatever agrees on ``carries``.
    """

    name: str
    parts: tuple[str, ...]
    carries: Expression
    at: str | None
    reads: tuple[str, ...] | None


@dataclass(frozen=True)
class Hypothesis:
    """Claims about the parts of a model, and what they make the model say.

    Attributes:
        name: Its name.
        variables: Expressions by name; each may name those before it.
        claims: The claims.
        reads: Claims, and ``tokens``, that the logits read.
        predicts: The token of the answer, from the variables; None where nothing is predicted.
        description: In words.
    """

    name: str
    variables: Mapping[str, Expression]
    claims: tuple[Claim, ...]
    reads: tuple[str, ...]
    predicts: Expression | None
    description: str = ""

    def claim(self, name: str) -> Claim:
        """Return a claim by its name."""
        return next(c for c in self.claims if c.name == name)

    @property
    def names_features(self) -> bool:
        """Whether anything depends on features, which only clean prompts have."""
        return any("feature" in e.calls for e in self._expressions())

    def values(
        self, one: Situation, tokenizer: Any, given: Mapping[str, Value] | None = None
    ) -> dict[str, Value]:
        """Return fields and variables of a situation.

        Args:
            one: The situation.
            tokenizer: For ``token_id``.
            given: Variables whose values are set instead of computed; later ones follow from them.

        Raises:
            DataError: If an expression cannot be computed.
        """
        found, functions = one.fields(), one.functions(tokenizer)
        for name, expression in self.variables.items():
            found[name] = given[name] if given and name in given else expression(found, functions)
        return found

    def resolved(self, universe: Sequence[str]) -> Hypothesis:
        """Return the hypothesis with patterns replaced by the parts of a model.

        Raises:
            UnknownNameError: If a name or pattern matches no part of the model.
            DataError: If a part is in two claims, or a claim reads parts that come after its own.
        """
        claims, owner = [], dict[str, str]()
        for claim in self.claims:
            parts = tuple(dict.fromkeys(p for t in claim.parts for p in _match(t, universe, claim)))
            for part in parts:
                if part in owner:
                    raise DataError(
                        f"{part} is in two claims, {owner[part]!r} and {claim.name!r}; a part "
                        "belongs to one."
                    )
                owner[part] = claim.name
            claims.append(Claim(claim.name, parts, claim.carries, claim.at, claim.reads))
        found = Hypothesis(
            self.name, self.variables, tuple(claims), self.reads, self.predicts, self.description
        )
        for claim in claims:
            for name in claim.reads or ():
                if name != TOKENS:
                    _check_before(found.claim(name), claim)
        return found

    def _expressions(self) -> Iterable[Expression]:
        yield from self.variables.values()
        yield from (c.carries for c in self.claims)
        if self.predicts is not None:
            yield self.predicts


def load_hypothesis(path: str | Path) -> Hypothesis:
    """Read a hypothesis from a TOML file.

    Raises:
        FormatError: If the file cannot be read or is no TOML.
        DataError: If it says something that is not understood; the message names the place.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} cannot be read: {error}. Give an existing TOML file.") from None
    return parse_hypothesis(text, place=str(path))


def parse_hypothesis(text: str, *, place: str = "hypothesis") -> Hypothesis:
    """Return a hypothesis from the text of a TOML file.

    Args:
        text: The text.
        place: What to call it in errors.

    Raises:
        FormatError: If it is no TOML.
        DataError: If it says something that is not understood.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"{place} is no TOML: {error}.") from None
    _keys(data, _SECTIONS, place)
    head = _table(data.get("hypothesis", {}), f"{place}, [hypothesis]", _HYPOTHESIS)
    variables = _variables(_table(data.get("variables", {}), f"{place}, [variables]"), place)
    tables = _table(data.get("claims", {}), f"{place}, [claims]")
    if not tables:
        raise DataError(f"{place}: no claims; expected at least one [claims.NAME].")
    known = (*FIELDS, *variables)
    claims = tuple(
        _claim(name, t, f"{place}, [claims.{name}]", known) for name, t in tables.items()
    )
    output = _table(data.get("output", {}), f"{place}, [output]", ("reads",))
    names = [c.name for c in claims]
    read = {n for c in claims for n in c.reads or ()}
    reads = _texts(output.get("reads", [n for n in names if n not in read]), f"{place}, [output]")
    for where, asked in [("[output]", reads), *((f"[claims.{c.name}]", c.reads) for c in claims)]:
        for name in asked or ():
            if name not in (*names, TOKENS):
                raise DataError(
                    f"{place}, {where}: reads {name!r}, which is no claim"
                    f"{nearest(name, (*names, TOKENS))}."
                )
    _check_circles(claims, place)
    predicts = head.get("predicts")
    return Hypothesis(
        name=str(head.get("name", place)),
        variables=variables,
        claims=claims,
        reads=reads,
        predicts=None if predicts is None else _checked(predicts, f"{place}, predicts", known),
        description=str(head.get("description", "")),
    )


def _variables(table: Mapping[str, Any], place: str) -> dict[str, Expression]:
    found: dict[str, Expression] = {}
    for name, text in table.items():
        if name in (*FIELDS, *FUNCTIONS, TOKENS) or not name.isidentifier():
            raise DataError(f"{place}, [variables]: {name!r} cannot be the name of a variable.")
        found[name] = _checked(text, f"{place}, variable {name}", (*FIELDS, *found))
    return found


def _claim(name: str, table: Any, place: str, known: Sequence[str]) -> Claim:
    fields = _table(table, place, _CLAIM)
    if name == TOKENS:
        raise DataError(f"{place}: {TOKENS!r} stands for the prompt's tokens; name it otherwise.")
    for needed in ("parts", "carries"):
        if needed not in fields:
            raise DataError(f"{place}: {needed} is missing.")
    parts = _texts(fields["parts"], f"{place}, parts")
    if not parts:
        raise DataError(f"{place}: parts is empty; expected names such as a1.h2 and m1.")
    at = fields.get("at")
    if at is not None and not isinstance(at, str):
        raise DataError(f"{place}: at is {at!r}; expected the name of a role.")
    reads = fields.get("reads")
    return Claim(
        name=name,
        parts=parts,
        carries=_checked(fields["carries"], f"{place}, carries", known),
        at=at,
        reads=None if reads is None else _texts(reads, f"{place}, reads"),
    )


def _checked(text: Any, place: str, known: Sequence[str]) -> Expression:
    found = parse(text, place)
    for name in sorted(found.names):
        if name not in known:
            raise DataError(f"{place}: nothing is called {name!r}{nearest(name, known)}.")
    return found


def _table(value: Any, place: str, keys: Sequence[str] | None = None) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{place} is {value!r}; expected a table.")
    if keys is not None:
        _keys(value, keys, place)
    return value


def _keys(table: Mapping[str, Any], keys: Sequence[str], place: str) -> None:
    for key in table:
        if key not in keys:
            raise DataError(
                f"{place}: unknown key {key!r}{nearest(key, keys)}; there are {', '.join(keys)}."
            )


def _texts(value: Any, place: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise DataError(f"{place} is {value!r}; expected a list of texts.")
    return tuple(value)


def _match(text: str, universe: Sequence[str], claim: Claim) -> tuple[str, ...]:
    found = tuple(p for p in universe if fnmatch.fnmatchcase(p, text))
    if not found:
        raise UnknownNameError(
            f"Claim {claim.name!r}: no part {text!r} in this model{nearest(text, universe)}."
        )
    return found


def _check_circles(claims: Sequence[Claim], place: str) -> None:
    left = {c.name: {r for r in c.reads or () if r != TOKENS} for c in claims}
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        if not free:
            raise DataError(f"{place}: the claims {', '.join(left)} read one another in a circle.")
        for name in free:
            del left[name]


def _check_before(source: Claim, reader: Claim) -> None:
    """Refuse a claim none of whose parts can see any part of one that it reads."""
    first = min(_when(p) for p in source.parts)
    if all(_when(p) <= first for p in reader.parts):
        raise DataError(
            f"Claim {reader.name!r} reads {source.name!r}, but none of its parts comes after "
            f"{source.parts[0]}."
        )


def _when(part: str) -> tuple[int, bool]:
    return layer_of(part), head_of(part) is None
