"""What attributions give: frozen results that can be saved, tabulated and shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microtome.core.provenance import Provenance
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class ComponentScores(Result):
    """A number for every head and MLP, per example.

    Attributes:
        names: Components, ``"a3.h1"`` for heads and ``"m3"`` for MLPs.
        values: ``[example, component]``.
        method: How they were computed.
        metric: Name of the metric they are about.
        meaning: What a value says, in one sentence.
        by_role: ``[example, component, role]``, or None.
        roles: Names of the roles.
        provenance: Model, seed, versions.
    """

    names: tuple[str, ...]
    values: np.ndarray
    method: str
    metric: str
    meaning: str
    by_role: np.ndarray | None = None
    roles: tuple[str, ...] = ()
    provenance: Provenance | None = None

    @property
    def mean(self) -> np.ndarray:
        """Mean over the examples ``[component]``."""
        return np.asarray(self.values.mean(0))

    def ranking(self, *, signed: bool = False) -> tuple[str, ...]:
        """Return the components, strongest first, by magnitude or (``signed``) by value."""
        strength = self.mean if signed else np.abs(self.mean)
        return tuple(self.names[int(i)] for i in np.argsort(-strength, kind="stable"))

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each component: name, mean, standard error over examples."""
        import pandas as pd

        error = (
            self.values.std(0, ddof=1) / np.sqrt(len(self.values))
            if len(self.values) > 1
            else np.nan
        )
        return pd.DataFrame({"component": self.names, "mean": self.mean, "standard_error": error})


@dataclass(frozen=True, eq=False)
class DirectAttribution(Result):
    """What every head and MLP writes directly to the metric, the final norm frozen.

    Attributes:
        heads: ``[example, layer, head]``.
        mlps: ``[example, layer]``.
        embedding: ``[example]``, of token and position embedding.
        biases: ``[example]``, of the attention's output biases.
        constant: ``[example]``, of the final norm's and the unembedding's bias.
        total: ``[example]``, the metric itself.
        completeness_error: Largest ``|sum of parts - total|`` relative to the largest ``|total|``.
        note: What was held fixed.
        provenance: Model, seed, versions.
    """

    heads: np.ndarray
    mlps: np.ndarray
    embedding: np.ndarray
    biases: np.ndarray
    constant: np.ndarray
    total: np.ndarray
    completeness_error: float
    note: str
    provenance: Provenance | None = None

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each component with its mean contribution."""
        import pandas as pd

        rows: list[dict[str, object]] = []
        for layer in range(self.mlps.shape[1]):
            heads = self.heads[:, layer].mean(0)
            rows += [{"component": f"a{layer}.h{h}", "mean": float(v)} for h, v in enumerate(heads)]
            rows.append({"component": f"m{layer}", "mean": float(self.mlps[:, layer].mean())})
        rows.append({"component": "embedding", "mean": float(self.embedding.mean())})
        rows.append({"component": "attention biases", "mean": float(self.biases.mean())})
        rows.append({"component": "constant", "mean": float(self.constant.mean())})
        return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class LogitLens(Result):
    """The next-token distribution read off the residual stream at every layer and position.

    Attributes:
        tokens: Display texts of the prompt's tokens ``[pos]``.
        layers: Names of the streams: ``embedding``, then ``block 0`` and so on.
        top_tokens: Best token at each ``[layer, pos]``.
        top_probabilities: Its probability.
        kl_to_final: Divergence from the final distribution in nats ``[layer, pos]``.
        next_rank: Rank of the token that comes next in the prompt, 0 is best, -1 at the end.
        provenance: Model, versions.
    """

    tokens: tuple[str, ...]
    layers: tuple[str, ...]
    top_tokens: np.ndarray
    top_probabilities: np.ndarray
    kl_to_final: np.ndarray
    next_rank: np.ndarray
    provenance: Provenance | None = None

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each layer and position."""
        import pandas as pd

        rows = [
            {
                "layer": layer,
                "pos": p,
                "token": token,
                "top": str(self.top_tokens[i, p]),
                "probability": float(self.top_probabilities[i, p]),
                "kl_to_final": float(self.kl_to_final[i, p]),
                "next_rank": int(self.next_rank[i, p]),
            }
            for i, layer in enumerate(self.layers)
            for p, token in enumerate(self.tokens)
        ]
        return pd.DataFrame(rows)
