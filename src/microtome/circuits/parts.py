"""What the name of a part says: kind, layer, number, port, place; and scores by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from microtome.circuits.graph import EMBED, LOGITS
from microtome.errors import UnknownNameError

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["embed", "head", "group", "mlp", "neuron", "latent", "logits"]

_NAME = re.compile(
    r"(?P<end>embed|logits)"
    r"|a(?P<attention>\d+)\.(?P<letter>[hg])(?P<head>\d+)"
    r"|m(?P<mlp>\d+)(?:\.n(?P<neuron>\d+)|\.rest)?"
    r"|(?:blocks\.(?P<block>\d+)\.)[\w.]+/(?P<sae>[\w-]+)(?:\[latent=(?P<latent>\d+)\]|\.error|\.rest)"
)


@dataclass(frozen=True)
class Part:
    """One end of an edge, or a node.

    Attributes:
        node: Its name without port: ``a3.h1``, ``a3.g0``, ``m3``, ``m3.n17``, ``m3.rest`` (its
            other neurons), ``embed``, ``blocks.3.mlp.out/NAME[latent=17]``,
            ``blocks.3.mlp.out/NAME.error``, ``blocks.3.mlp.out/NAME.rest`` (its other latents);
            with the place behind ``@`` where there is one.
        kind: What it is; ``group`` is a key/value group.
        layer: Its block; 0 for embeddings and logits.
        index: Number of the head, group, neuron or latent; -1 for an error or a rest.
        port: ``q``, ``k`` or ``v``, or "".
        place: Position or role, or "".
    """

    node: str
    kind: Kind
    layer: int
    index: int
    port: str
    place: str

    @property
    def label(self) -> str:
        """What is written beside it: the name, shortened for latents."""
        if self.kind != "latent":
            return self.node
        name, _, kind = re.split(r"\[", self.node.split("/")[1])[0].partition(".")
        place = f"@{self.place}" if self.place else ""
        return f"{name} {kind or self.index}{place}"


def part(name: str) -> Part:
    """Return what the name of a node or of a target says.

    Raises:
        UnknownNameError: If it is not the name of a part.
    """
    node, _, port = name.partition("<")
    base, _, place = node.partition("@")
    if "@" in port:
        port, _, place = port.partition("@")
        node = f"{base}@{place}"
    found = _NAME.fullmatch(base)
    if found is None or port not in ("", "q>", "k>", "v>"):
        raise UnknownNameError(
            f"{name!r} is no part; expected a name such as a0.h1, a0.h1<q>, a0.g1<k>, m2, m2.n17, "
            "embed or logits, with @ROLE behind it where positions are told apart."
        )
    kind, layer, index = _kind(found)
    return Part(node, kind, layer, index, port[:1], place)


def _kind(found: re.Match[str]) -> tuple[Kind, int, int]:
    if found["end"]:
        return ("embed" if found["end"] == EMBED else "logits"), 0, 0
    if found["attention"]:
        kind: Kind = "head" if found["letter"] == "h" else "group"
        return kind, int(found["attention"]), int(found["head"])
    if found["mlp"]:
        if found["neuron"]:
            return "neuron", int(found["mlp"]), int(found["neuron"])
        return "mlp", int(found["mlp"]), 0
    return "latent", int(found["block"]), int(found["latent"]) if found["latent"] else -1


class MeanScores(Protocol):
    """Scores as results hold them: ``EdgeScores``."""

    @property
    def universe(self) -> tuple[str, ...]:
        """Names of the parts."""

    @property
    def mean(self) -> np.ndarray[Any, Any]:
        """Mean score ``[part]``."""


Scores = Mapping[str, float] | MeanScores


def scores_by_name(scores: Scores | None) -> dict[str, float]:
    """Return scores as a mapping from the name of a part; empty for None."""
    if scores is None:
        return {}
    if isinstance(scores, Mapping):
        return {name: float(value) for name, value in scores.items()}
    return dict(zip(scores.universe, (float(x) for x in scores.mean), strict=True))


__all__ = ["EMBED", "LOGITS", "Kind", "MeanScores", "Part", "Scores", "part", "scores_by_name"]
