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
class ComponentScores(Result, version=2):
    """A number for every head and MLP, per example.

    Attributes:
        names: Components, ``"a3.h1"`` for heads, ``"m3"`` for MLPs and ``"m3.n17"`` for neurons.
        values: ``[example, component]``.
        method: How they were computed.
        metric: Name of the metric they are about.
        meaning: What a value says, in one sentence.
        by_part: ``[example, component, part]``, or None.
        parts: Names of roles, or numbers of positions, that the effect is kept apart by.
        provenance: Model, seed, versions.
    """

    names: tuple[str, ...]
    values: np.ndarray
    method: str
    metric: str
    meaning: str
    by_part: np.ndarray | None = None
    parts: tuple[str, ...] = ()
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


@dataclass(frozen=True, eq=False)
class InputAttribution(Result):
    """How much each token of the clean prompt speaks for the answer over the wrong one.

    Attributes:
        tokens: Display texts of each example's tokens.
        roles: Role of each token in its example, empty where it has none.
        values: ``[example, pos]`` in the metric's unit, NaN behind a prompt's end.
        total: The metric of each clean prompt ``[example]``.
        baseline_total: The metric at the baseline ``[example]``, for integrated gradients.
        completeness_error: Sum of an example's values minus (total - baseline_total)
            ``[example]``, in the metric's unit, for the method that has this axiom; else None.
        representation_change: Cosine distance by which taking the token's values away moves the
            last residual stream at the prompt's end ``[example, pos]``, for value zeroing.
        method: How they were computed.
        metric: Name of the metric they are about.
        baseline: What stood for an absent token, None where nothing had to.
        meaning: What a value says, in one sentence.
        provenance: Model, settings, versions.
    """

    tokens: tuple[tuple[str, ...], ...]
    roles: tuple[tuple[str, ...], ...]
    values: np.ndarray
    total: np.ndarray
    baseline_total: np.ndarray | None
    completeness_error: np.ndarray | None
    representation_change: np.ndarray | None
    method: str
    metric: str
    baseline: str | None
    meaning: str
    provenance: Provenance | None = None

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each token: example, pos, token, role, value."""
        import pandas as pd

        rows: list[dict[str, object]] = []
        for number, tokens in enumerate(self.tokens):
            for p, token in enumerate(tokens):
                row: dict[str, object] = {"example": number, "pos": p, "token": token}
                row |= {"role": self.roles[number][p], "value": float(self.values[number, p])}
                if self.representation_change is not None:
                    row["representation_change"] = float(self.representation_change[number, p])
                rows.append(row)
        return pd.DataFrame(rows)

    def by_role(self) -> pd.DataFrame:
        """Return the mean over examples of the sum over each role's tokens, strongest first."""
        frame = self.to_frame()
        frame["role"] = frame["role"].replace("", "rest")
        sums = frame.pivot_table("value", "example", "role", aggfunc="sum", fill_value=0)
        mean = sums.mean().rename("mean").reset_index()
        return mean.reindex(mean["mean"].abs().sort_values(ascending=False).index)
