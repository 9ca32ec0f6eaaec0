"""What training a sparse coder gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from microtome.core.provenance import Provenance
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class TrainingSummary(Result, schema="sae-training"):
    """What a training run came to.

    Attributes:
        fvu: Fraction of variance unexplained, 1 - R^2 about the data's mean, every target scaled
            alike, on rows in an order of their own, by the coder as at inference.
        l0: Active latents of a row on them.
        dead_share: Share of the latents that count as dead.
        alive_share: Share of the latents that fired on the evaluation rows.
        eval_rows: Number of evaluation rows; they are drawn from the data trained on.
        steps: Batches trained on.
        rows: Rows trained on.
        seconds: Wall time of training, over all parts of a resumed run.
        history: One row of metrics every so often.
        sources: Source sites.
        targets: Target sites.
        architecture: The coder's make.
        precision: Of the products that proposed which latents to keep: what ``"auto"`` came to.
        provenance: Settings, versions, seed, threads.
    """

    fvu: float
    l0: float
    dead_share: float
    alive_share: float
    eval_rows: int
    steps: int
    rows: int
    seconds: float
    history: pd.DataFrame
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    architecture: Mapping[str, Any]
    precision: str
    provenance: Provenance | None = None
