"""The settings of a dissection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from microtome.circuits.ablation import ABLATIONS, Ablation
from microtome.circuits.finding import METHODS, Method
from microtome.circuits.verdict import NULLS
from microtome.errors import ConfigError

Edges = Literal["off", "cut", "judged"]


@dataclass(frozen=True)
class Config:
    """What a dissection is asked for.

    Attributes:
        faithfulness: The circuit is the smallest whose faithfulness on validation lies within this
            much of 1, counted from 0: 0.9 asks for 0.9 to 1.1.
        ablation: What ablated nodes give.
        method: The finder.
        nulls: Twins, and permutations of the answers; fewer than 20 cannot pass the rule.
        edges: ``cut`` to cut the circuit edge by edge as well, ``judged`` to hold it against nulls
            for a verdict of its own (minutes), ``off`` for neither.
        names: Whether the parts are held against the taxonomy of heads and neurons.
        gate: Whether a behavior that the model does not show ends the dissection.
        seed: For everything that is drawn.
    """

    faithfulness: float = 0.9
    ablation: Ablation = "resample"
    method: Method = "attribution"
    nulls: int = NULLS
    edges: Edges = "cut"
    names: bool = True
    gate: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.faithfulness < 1.0:
            raise ConfigError(
                f"faithfulness={self.faithfulness}; expected a share between 0 and 1."
            )
        if self.ablation not in ABLATIONS:
            raise ConfigError(
                f"ablation={self.ablation!r}; expected one of {', '.join(ABLATIONS)}."
            )
        if self.method not in METHODS:
            raise ConfigError(f"method={self.method!r}; expected one of {', '.join(METHODS)}.")
        if self.edges not in get_args(Edges):
            raise ConfigError(
                f"edges={self.edges!r}; expected one of {', '.join(get_args(Edges))}."
            )
        if self.nulls < 1:
            raise ConfigError(f"nulls={self.nulls}; expected at least 1.")
