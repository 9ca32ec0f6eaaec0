"""The rows of one shard: what a model does at each token of some documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microtome.core.seeds import rng
from microtome.errors import DataError, ShapeError
from microtome.sae.harvesting.documents import Piece
from microtome.sae.harvesting.settings import Settings
from microtome.tracing.passes import one_pass

if TYPE_CHECKING:
    from microtome.tracing.model import Model


@dataclass
class Collected:
    """The rows of one shard.

    Attributes:
        values: Site to ``[rows, width]``.
        columns: ``token_id``, ``doc`` and ``pos``, int32 ``[rows]``.
        tokens: Tokens read.
        special: Tokens left out because they are special ones.
        outliers: Tokens left out because of their norm.
    """

    values: dict[str, Tensor]
    columns: dict[str, Tensor]
    tokens: int
    special: int
    outliers: int

    @property
    def rows(self) -> int:
        """Rows that are kept."""
        return len(self.columns["doc"])


def collect(
    model: Model,
    pieces: Sequence[Piece],
    settings: Settings,
    *,
    number: int,
    special: frozenset[int],
    step: Callable[[int], None],
) -> Collected:
    """Run a model over pieces of documents and return their rows in a random order.

    Args:
        model: The model.
        pieces: What it reads.
        settings: Of the harvest.
        number: Number of the shard, which names its random stream.
        special: Ids of special tokens.
        step: Told the tokens read so far.

    Raises:
        ShapeError: If the model's values are not finite.
        DataError: If a value is too large for the stored type.
    """
    rows = _Rows(settings, sum(len(p.ids) + settings.bos for p in pieces))
    # texts of like length share a pass, so that few positions are padding
    ordered = sorted(pieces, key=lambda p: -len(p.ids))
    done = 0
    for start in range(0, len(ordered), settings.batch_size):
        part = ordered[start : start + settings.batch_size]
        rows.take(model, part, special)
        done += sum(len(p.ids) for p in part)
        step(done)
    kept = rows.within(settings.outliers)
    stream = rng(settings.seed, "rows of shard", str(number))
    order = torch.from_numpy(kept[stream.permutation(len(kept))])
    return Collected(
        values={site: v.index_select(0, order) for site, v in rows.values.items()},
        columns={n: torch.from_numpy(c).index_select(0, order) for n, c in rows.columns.items()},
        tokens=sum(len(p.ids) for p in pieces),
        special=rows.special,
        outliers=rows.filled - len(kept),
    )


@dataclass
class _Rows:
    """Rows as they come from the model, in buffers for all tokens of a shard."""

    settings: Settings
    size: int
    values: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)
    filled: int = 0
    special: int = 0

    def __post_init__(self) -> None:
        dtype = getattr(torch, self.settings.dtype)
        for site, width in self.settings.sites.items():
            self.values[site] = torch.empty(self.size, width, dtype=dtype)
            self.norms[site] = torch.empty(self.size)
        self.columns = {n: np.empty(self.size, np.int32) for n in ("token_id", "doc", "pos")}

    def take(self, model: Model, pieces: Sequence[Piece], special: frozenset[int]) -> None:
        """Run the model on pieces and keep the rows of tokens that are not masked."""
        bos = int(self.settings.bos)
        front = [int(model.tokenizer.bos_token_id)] if bos else []
        texts = [front + p.ids.tolist() for p in pieces]
        trace = one_pass(
            model, texts, capture=list(self.values), interventions=(), logits=None, to=None,
            dtype=None, grad=False, stop=True,
        )  # fmt: skip
        keep = trace.mask.cpu()
        if self.settings.mask_special:
            is_special = torch.isin(trace.tokens.cpu(), torch.tensor(sorted(special)))
            is_special[:, :bos] = True
            self.special += int((keep & is_special).sum())
            keep &= ~is_special
        text, place = (i.numpy() for i in keep.nonzero(as_tuple=True))
        stop = self.filled + len(text)
        here = slice(self.filled, stop)
        self.columns["token_id"][here] = trace.tokens.cpu().numpy()[text, place]
        self.columns["doc"][here] = np.array([p.document for p in pieces])[text]
        start = np.array([p.start for p in pieces])[text]
        self.columns["pos"][here] = np.where(place < bos, -1, start + place - bos)
        for site, buffer in self.values.items():
            value = trace[site]
            rows = value.flatten(2)[keep.to(value.device)]
            exact = torch.promote_types(rows.dtype, torch.float32)
            norms = torch.linalg.vector_norm(rows, dim=1, dtype=exact)
            # finite rows can have a norm beyond float32; those are outliers
            if not torch.isfinite(norms).all() and not torch.isfinite(rows).all():
                self._refuse(site, rows)
            buffer[here] = rows.to("cpu", buffer.dtype)
            self.norms[site][here] = norms.cpu()
        self.filled = stop

    def within(self, outliers: float | None) -> np.ndarray:
        """Return the rows whose norm is not far above the median at any site.

        Raises:
            DataError: If a value of those is too large for the stored type.
        """
        kept = torch.ones(self.filled, dtype=torch.bool)
        if outliers is not None and self.filled:
            for norms in self.norms.values():
                median = float(norms[: self.filled].median())
                # where half of the rows are zero, no norm is far above the others
                if median > 0:
                    kept &= norms[: self.filled] <= outliers * median
        for site, values in self.values.items():
            too_large = ~torch.isfinite(values[: self.filled]).all(1) & kept
            if too_large.any():
                norm = float(self.norms[site][: self.filled][too_large].max())
                raise DataError(
                    f"{site} has values too large for {self.settings.dtype} in "
                    f"{int(too_large.sum())} rows (norm up to {norm:.3g}); harvest with "
                    "dtype='bfloat16' or 'float32'."
                )
        return kept.nonzero()[:, 0].numpy()

    def _refuse(self, site: str, rows: Tensor) -> None:
        """Say where the model's values are not finite."""
        bad = (~torch.isfinite(rows).all(1)).nonzero()[:, 0]
        row = self.filled + int(bad[0])
        where = {name: int(column[row]) for name, column in self.columns.items()}
        raise ShapeError(
            f"The model gives NaN or infinities at {site} for {len(bad)} tokens, first for token "
            f"{where['pos']} of document {where['doc']} (id {where['token_id']}). Leave that "
            "document out, or run the model in float32."
        )
