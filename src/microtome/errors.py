"""Every error microtome raises, as one tree.

    MicrotomeError                 MT000
    ├── UsageError                 MT001   an option or argument is wrong
    │   ├── UnknownNameError       MT002   no such behavior, method, metric, family ...
    │   └── ConfigError            MT003   a setting has a bad value
    ├── ModelError                 MT010   a model could not be opened
    │   ├── ModelNotFoundError     MT011
    │   ├── ModelFileError         MT012   corrupt, truncated or incomplete weights
    │   ├── UnsafeFileError        MT013   a pickle or remote code
    │   ├── ModelSupportError      MT014   the anatomy was not found or not verified
    │   └── TokenizerError         MT015
    ├── SiteError                  MT020   unknown or unmatched site
    │   ├── SiteAbsentError        MT021   the model does not have it; says why
    │   ├── SelectorError          MT022   a layer, head, neuron or position out of range
    │   ├── SiteWriteError         MT023   the site cannot be written, or the write did not take
    │   └── HookError              MT024   a hook that did not fire, or fired more than once
    ├── ShapeError                 MT030   a tensor of the wrong shape, dtype or with NaN
    ├── PromptError                MT031   empty, too long or malformed prompt
    ├── DataError                  MT040   a data file or an item in it is wrong
    │   ├── EmptyDataError         MT041
    │   ├── PairError              MT042   a clean/corrupt pair that cannot be compared
    │   └── MetricError            MT043   a metric that cannot be computed here
    ├── SweepError                 MT050   a plan that cannot be run
    ├── TrainingError              MT060   training stopped making sense
    └── StoreError                 MT070   reading or writing results
        ├── FormatError            MT071   an unknown, truncated or newer file
        └── OutputError            MT072   a folder that cannot be written, a full disk

A message says what happened, with which values, what was expected and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class MicrotomeError(Exception):
    """Base of all errors that microtome raises on purpose.

    Attributes:
        code: Stable code, documented on the errors page.
        exit_code: Exit status of the command line when this error ends it.
        meaning: What the error says, in one sentence, for the documentation.
        remedy: What to do about it, for the documentation.
    """

    code: ClassVar[str] = "MT000"
    exit_code: ClassVar[int] = 2
    meaning: ClassVar[str] = "Something microtome checks for went wrong."
    remedy: ClassVar[str] = "Read the message; it names the values and what was expected."


class UsageError(MicrotomeError, ValueError):
    """An option or argument is wrong."""

    code = "MT001"
    meaning = "An option or argument does not fit the call."
    remedy = "Compare the call with the function's documentation or the command's --help."


class UnknownNameError(UsageError, LookupError):
    """A name of a behavior, method, metric or family is not known."""

    code = "MT002"
    meaning = "A behavior, method, metric, family or specimen of this name does not exist."
    remedy = "Take one of the nearest names that the message lists."


class ConfigError(UsageError):
    """A setting has a value outside its range."""

    code = "MT003"
    meaning = "A setting has a value outside the range it allows."
    remedy = "Set it to a value in the range that the message states."


class ModelError(MicrotomeError):
    """A model could not be opened."""

    code = "MT010"
    meaning = "A model could not be opened."
    remedy = "Check the folder or hub id, and read the specific message."


class ModelNotFoundError(ModelError, FileNotFoundError):
    """No model at the given folder or hub id."""

    code = "MT011"
    meaning = "There is no model at the given folder or hub id."
    remedy = "Give an existing folder with config.json and *.safetensors, or a hub id in the cache."


class ModelFileError(ModelError):
    """The model's files are corrupt, truncated or incomplete."""

    code = "MT012"
    meaning = "A model file is corrupt, truncated, missing or does not fit its configuration."
    remedy = "Fetch or export the model again; compare file sizes with the source."


class UnsafeFileError(ModelError):
    """The file could run code when read, and is refused."""

    code = "MT013"
    meaning = "The file is a pickle or asks for remote code; reading it could run foreign code."
    remedy = "Convert the weights to safetensors on a machine you trust."


class ModelSupportError(ModelError):
    """The model's anatomy was not found or did not pass verification."""

    code = "MT014"
    meaning = "The parts of the model were not found, or an identity they must obey fails."
    remedy = "Run `microtome models verify MODEL`; sites of any module remain as module:PATH:out."


class TokenizerError(ModelError):
    """A tokenizer is missing or cannot express a text."""

    code = "MT015"
    meaning = "Text was given without a tokenizer, or a token is not in the vocabulary."
    remedy = "Pass tokenizer=..., give token ids, or take another answer word."


class SiteError(MicrotomeError, LookupError):
    """A site is unknown or matches nothing."""

    code = "MT020"
    meaning = "No site of the model has this name, or a pattern matched none."
    remedy = "Take one of the nearest names; `microtome models verify MODEL` lists all."


class SiteAbsentError(SiteError):
    """The model does not have this site; the message says why."""

    code = "MT021"
    meaning = "The site exists in the vocabulary but not in this model, for a stated reason."
    remedy = "Use the alternative that the message names."


class SelectorError(SiteError, IndexError):
    """A layer, head, neuron, position or row is out of range."""

    code = "MT022"
    meaning = "A selector asks for a layer, head, neuron, position or row that does not exist."
    remedy = "Stay inside the range that the message states."


class SiteWriteError(SiteError):
    """The site cannot be written, or a write did not take."""

    code = "MT023"
    meaning = "The site is read-only in this model, or a write was not seen downstream."
    remedy = "Write at the site that the message names instead."


class HookError(SiteError, RuntimeError):
    """A hook did not fire, or fired more than once."""

    code = "MT024"
    meaning = "A site that should be passed exactly once in a forward pass was not."
    remedy = "The model skips or repeats this part for such input; choose another site."


class ShapeError(MicrotomeError, ValueError):
    """A tensor has the wrong shape or dtype, or holds NaN."""

    code = "MT030"
    meaning = "A tensor has the wrong shape or dtype, or holds values that are not finite."
    remedy = "Bring it to the shape that the message states."


class PromptError(MicrotomeError, ValueError):
    """A prompt is empty, too long or malformed."""

    code = "MT031"
    meaning = "A prompt is empty, longer than the model's context, or not text or token ids."
    remedy = "Shorten or correct the prompt."


class DataError(MicrotomeError, ValueError):
    """A data file, or an item in it, is wrong."""

    code = "MT040"
    meaning = "A data file or one of its items does not have the expected form."
    remedy = "Correct the row that the message names."


class EmptyDataError(DataError):
    """A file or selection holds no items."""

    code = "MT041"
    meaning = "There is nothing to work on: the file or the selection is empty."
    remedy = "Check the file, the split and how many items were dropped and why."


class PairError(DataError):
    """A clean/corrupt pair cannot be compared."""

    code = "MT042"
    meaning = "The two prompts of a pair differ in length, or the answers do not differ."
    remedy = "Make both prompts the same number of tokens and the answers distinct."


class MetricError(DataError):
    """A metric cannot be computed on these data."""

    code = "MT043"
    meaning = "The metric needs something that the items or outputs do not have."
    remedy = "Choose another metric, or give the items what it reads."


class SweepError(MicrotomeError):
    """A sweep cannot be planned or run."""

    code = "MT050"
    meaning = "A sweep cannot be planned or run as asked."
    remedy = "Change the sites, the rules or the memory budget as the message says."


class TrainingError(MicrotomeError, ArithmeticError):
    """Loss or gradients of a training run stopped being finite."""

    code = "MT060"
    meaning = "The loss or a gradient is no longer finite; the state before that step is kept."
    remedy = "Train again with a lower learning rate, or look at the activations of that batch."


class StoreError(MicrotomeError):
    """Reading or writing results failed."""

    code = "MT070"
    meaning = "Results could not be read or written."
    remedy = "Check the path, its permissions and the free space."


class FormatError(StoreError):
    """A file is of an unknown, newer or truncated format."""

    code = "MT071"
    meaning = "A results file is truncated, of another kind, or newer than this version."
    remedy = "Write it again, or update microtome."


class OutputError(StoreError, OSError):
    """A folder cannot be written, or the disk is full."""

    code = "MT072"
    meaning = "The output folder cannot be written, or the disk is full; nothing is half-written."
    remedy = "Choose another folder with --out, or free some space."


def nearest(name: str, candidates: Iterable[str], *, n: int = 3) -> str:
    """Return a phrase that lists the candidates closest to a mistyped name.

    Args:
        name: What was asked for.
        candidates: What exists.
        n: How many to list at most.

    Returns:
        ``"; nearest: a, b, c"``, or the first candidates when none is close, or ``""``.
    """
    known = [str(c) for c in candidates]
    close = difflib.get_close_matches(name, known, n=n, cutoff=0.5)
    if close:
        return "; nearest: " + ", ".join(close)
    return "; known: " + ", ".join(sorted(known)[: 4 * n]) if known else ""
