"""Trained models with a behavior each: what ``benchmarks trained`` runs on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microtome.behaviors import bracket_balance, get
from microtome.behaviors.behavior import Behavior
from microtome.behaviors.registry import CODE
from microtome.models.readout import Readout
from microtome.models.transformer_lens import LensSettings, load_state_dict
from microtome.tracing.model import Model
from microtome.tracing.opening import load

FOLDER = Path(
    os.environ.get("MICROTOME_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data")
)
"""Where the shared data are."""

BRACKETS = LensSettings(
    "relu", "bidirectional", readout=Readout("first", ("unbalanced", "balanced"))
)
"""What the bracket classifier's state dict does not say of itself."""


@dataclass(frozen=True)
class Case:
    """A trained model and a behavior of it.

    Attributes:
        model: Name of the model.
        needs: File of the shared data without which it cannot be opened, or empty.
        open: Opens it.
        behavior: Makes the behavior of so many examples.
        small: Whether every finder is run and compared with exact edge patching.
        gate: Whether the verdict asks for more than simple baselines reach. Which letter follows
            in order is decided by how many there are of each, so a bag of words knows it, too.
    """

    model: str
    needs: str
    open: Callable[[], Model]
    behavior: Callable[[int], Behavior]
    small: bool = False
    gate: bool = True

    @property
    def missing(self) -> str:
        """Why the case cannot be run, empty where it can."""
        path = FOLDER / self.needs
        return "" if not self.needs or path.is_file() else f"shared data not found: {path}"


def brackets() -> Model:
    """Return the bracket classifier, whose words are brackets and the ends of the input."""
    module = load_state_dict(FOLDER / "models/brackets/model.safetensors", BRACKETS)
    words = ("[start]", "[pad]", "[end]", "(", ")")
    return load(module, tokenizer=words_tokenizer(words, start="[start]"), bos=True)


def sorter() -> Model:
    """Return the sorter, whose words are letters."""
    return load(FOLDER / "models/sorter", tokenizer=words_tokenizer(("a", "b", "c")))


def stories() -> Model:
    """Return the story model."""
    return load(FOLDER / "models/stories260K")


def words_tokenizer(words: Sequence[str], *, start: str | None = None) -> Any:
    """Return a tokenizer of words between blanks."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=start)


def _named(name: str) -> Callable[[int], Behavior]:
    return lambda n: get(name, n=n)


CASES = (
    Case(
        "brackets",
        "models/brackets/model.safetensors",
        brackets,
        lambda n: bracket_balance(n, end=" [end]"),
        small=True,
    ),
    Case(
        "sorter",
        "models/sorter/config.json",
        sorter,
        _named("letter-sorting"),
        small=True,
        gate=False,
    ),
    *(Case("python-code", "", lambda: load("python-code"), _named(name)) for name in CODE),
    *(
        Case("stories260K", "models/stories260K/config.json", stories, _named(name))
        for name in ("induction", "gendered-pronoun")
    ),
)
"""What is run, smallest models first."""
