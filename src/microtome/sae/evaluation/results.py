"""What evaluating coders gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microtome.core.provenance import Provenance
from microtome.sae.reconstruction import Reconstruction
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd

DENSITY_EDGES = np.linspace(-10.0, 0.0, 41)
"""Edges of the bins of log10 of the share of rows on which a latent is active."""


@dataclass(frozen=True, eq=False)
class Recovery(Result, schema="sae-recovery"):
    """What a model loses when a site's value is replaced by its reconstruction.

    Cross-entropy in nats per predicted token, and the Kullback-Leibler divergence from the whole
    model's predictions; ``zero`` and ``mean`` replace the value by nothing and by its mean.

    Attributes:
        n_tokens: Predicted tokens; special ones, and those behind one, do not count.
        cross_entropy: By ``"clean"``, ``"spliced"``, ``"zero"`` and ``"mean"``.
        divergence: By ``"spliced"``, ``"zero"`` and ``"mean"``.
    """

    n_tokens: int
    cross_entropy: dict[str, float]
    divergence: dict[str, float]

    def recovered(self, against: str = "zero") -> float:
        """Return the share of the loss in cross-entropy that the reconstruction makes good.

        ``(CE_ablated - CE_spliced) / (CE_ablated - CE_clean)``; NaN where ablation costs nothing.
        """
        worst = self.cross_entropy[against]
        cost = worst - self.cross_entropy["clean"]
        return (worst - self.cross_entropy["spliced"]) / cost if cost > 0 else float("nan")

    def divergence_score(self, against: str = "zero") -> float:
        """Return ``(KL_ablated - KL_spliced) / KL_ablated``; NaN where ablation changes nothing."""
        worst = self.divergence[against]
        return (worst - self.divergence["spliced"]) / worst if worst > 0 else float("nan")


@dataclass(frozen=True, eq=False)
class Evaluated(Result, schema="sae-evaluated"):
    """One coder's figures.

    Attributes:
        name: What it is: ``"sae"``, or the name of a baseline; ``"twin"`` was measured in the twin.
        reconstruction: On the rows of the text.
        recovery: In the model.
    """

    name: str
    reconstruction: Reconstruction
    recovery: Recovery


@dataclass(frozen=True, eq=False)
class SAEEvaluation(Result, schema="sae-evaluation"):
    """A coder's figures beside the same figures of its baselines, on the same tokens.

    Attributes:
        rows: The coder first, then the baselines.
        sites: Sites it reads and writes.
        provenance: Model, text and settings.
    """

    rows: tuple[Evaluated, ...]
    sites: tuple[tuple[str, ...], tuple[str, ...]]
    provenance: Provenance

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each coder: FVU, L0, dead share, what the model loses."""
        import pandas as pd

        return pd.DataFrame([_record(row) for row in self.rows]).set_index("coder")

    def density(self, name: str = "sae") -> tuple[np.ndarray, np.ndarray]:
        """Return the histogram of log10 density: counts ``[bin]`` and edges ``[bin + 1]``."""
        row = next(r for r in self.rows if r.name == name)
        counts, edges = np.histogram(
            np.log10(row.reconstruction.frequency + 1e-10), bins=DENSITY_EDGES
        )
        return counts, edges


def _record(row: Evaluated) -> dict[str, object]:
    made, kept = row.reconstruction, row.recovery
    return {
        "coder": row.name,
        "fvu": made.fvu,
        "l0": made.l0,
        "dead_share": made.dead_share,
        "bias": made.bias,
        "ce_spliced": kept.cross_entropy["spliced"],
        "ce_clean": kept.cross_entropy["clean"],
        "ce_recovered_zero": kept.recovered("zero"),
        "ce_recovered_mean": kept.recovered("mean"),
        "kl_spliced": kept.divergence["spliced"],
        "kl_score_zero": kept.divergence_score("zero"),
        "kl_score_mean": kept.divergence_score("mean"),
        "rows": made.n_rows,
    }
