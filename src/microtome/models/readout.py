"""Where a model's answer is read, and what its logits stand for.

A language model answers at the prompt's end, with a token. A classifier may answer at its first
position, and its logits stand for labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from microtome.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

Place = Literal["last", "first"]


@dataclass(frozen=True)
class Readout:
    """Where a model's answer is read, and what its logits stand for.

    Attributes:
        place: ``last`` for the prompt's end, ``first`` for its first position.
        labels: What each logit stands for, in order; empty where it is the tokenizer's tokens.

    Raises:
        ConfigError: If the place is unknown, or a label is empty or repeats.
    """

    place: Place = "last"
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.place not in get_args(Place):
            raise ConfigError(f"A readout at {self.place!r}; expected last or first.")
        labels = self.labels
        if not all(isinstance(t, str) and t for t in labels) or len(set(labels)) != len(labels):
            raise ConfigError(f"The labels of a readout are {labels}; expected different texts.")

    @property
    def position(self) -> int:
        """The position that is read, from the end where it is negative."""
        return -1 if self.place == "last" else 0

    def positions(self, lengths: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Return the position that is read in each row ``[batch]``, given the rows' lengths."""
        import torch

        ends = torch.as_tensor(lengths) - 1
        return ends if self.place == "last" else torch.zeros_like(ends)


def readout_of(module: nn.Module) -> Readout:
    """Return the readout that a module's configuration names under ``readout``, or the usual one.

    Raises:
        ConfigError: If it is no object with ``place`` and ``labels``.
    """
    named: Any = getattr(getattr(module, "config", None), "readout", None)
    return Readout() if named is None else parse_readout(named)


def parse_readout(given: Any) -> Readout:
    """Return the readout that an object from a configuration file describes.

    Args:
        given: ``{"place": "first", "labels": ["no", "yes"]}``, either key optional.

    Raises:
        ConfigError: If it is something else.
    """
    labels = given.get("labels", []) if isinstance(given, dict) else None
    if not isinstance(labels, list | tuple) or set(given) - {"place", "labels"}:
        raise ConfigError(
            f'readout is {given!r}; expected an object such as {{"place": "first", "labels": '
            '["no", "yes"]}.'
        )
    return Readout(given.get("place", "last"), tuple(labels))
