"""Stability: which latents are found again by coders that were trained alike from other seeds.

Sparse coders of one model that differ in their seed alone share only a part of their latents
(Paulo & Belrose, 2025, arXiv 2501.16615), so a latent that one coder has is not yet a fact about
the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microtome.core.seeds import torch_generator
from microtome.errors import ConfigError, EmptyDataError, ShapeError
from microtome.sae.evaluation.dictionaries import best_matches
from microtome.sae.model_passes import require_finite
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from microtome.sae.coder import SAE

DRAWS = 3
"""Random dictionaries of each size that the null is the mean of."""


@dataclass(frozen=True, eq=False)
class Stability(Result, schema="sae-stability"):
    """How far coders agree on their latents' directions.

    Attributes:
        names: Names of the coders.
        n_latents: Latents of each that were compared.
        mmcs: Mean over a coder's latents of the largest cosine in another ``[coder, other]``; 1 on
            the diagonal.
        null_mmcs: The same in a random dictionary of the other's size ``[coder, other]``.
        recall: Share of a coder's latents with a cosine above ``at`` in another
            ``[coder, other]``.
        mutual: Share of a coder's latents whose match in another has the latent as its own match,
            with a cosine above ``at`` ``[coder, other]``.
        in_all: Share of each coder's latents found, with a cosine above ``at``, in all others.
        null_in_all: The same for random dictionaries.
        found: In how many of the others each latent of the first coder is found, -1 for those left
            out ``[latent]``.
        at: Cosine above which a latent counts as found.
    """

    names: tuple[str, ...]
    n_latents: tuple[int, ...]
    mmcs: NDArray[np.float64]
    null_mmcs: NDArray[np.float64]
    recall: NDArray[np.float64]
    mutual: NDArray[np.float64]
    in_all: tuple[float, ...]
    null_in_all: tuple[float, ...]
    found: NDArray[np.int64]
    at: float

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each ordered pair of coders."""
        import pandas as pd

        rows = [
            {
                "coder": self.names[i],
                "in": self.names[j],
                "mmcs": self.mmcs[i, j],
                "mmcs_random": self.null_mmcs[i, j],
                "recall": self.recall[i, j],
                "mutual": self.mutual[i, j],
            }
            for i, j in permutations(range(len(self.names)), 2)
        ]
        return pd.DataFrame(rows).set_index(["coder", "in"])


@torch.no_grad()
def stability(
    coders: Sequence[SAE],
    *,
    names: Sequence[str] | None = None,
    sample: Tensor | None = None,
    at: float = 0.7,
    seed: int = 0,
) -> Stability:
    """Compare coders of one site, latent by latent, with random dictionaries beside them.

    Args:
        coders: At least two coders that write the same values, of any sizes; they are compared by
            the directions of their decoders.
        names: Their names, numbers unless given.
        sample: Inputs ``[row, d_in]``; latents that are active on none of them are left out, as
            dead latents keep the direction they were drawn with.
        at: Cosine above which a latent counts as found again.
        seed: Seed of the random dictionaries.

    Raises:
        ConfigError: There are fewer than two coders, names do not fit, or ``at`` is no cosine.
        ShapeError: The coders' outputs, or the sample, differ in width, or weights are not finite.
        EmptyDataError: No latent of a coder is active on the sample.
    """
    called = tuple(names) if names is not None else tuple(map(str, range(len(coders))))
    if len(coders) < 2 or len(called) != len(coders) or len(set(called)) != len(called):
        raise ConfigError(
            f"{len(coders)} coders named {list(called)}; expected at least two, each with a name "
            "of its own"
        )
    if len({coder.d_out for coder in coders}) > 1:
        raise ShapeError(
            f"the coders write {[coder.d_out for coder in coders]} wide values; expected coders of "
            "one site"
        )
    if not 0 <= at <= 1:
        raise ConfigError(f"at is {at}; expected a cosine from 0 to 1")
    for coder, name in zip(coders, called, strict=True):
        require_finite(coder, name)
    kept = [_alive(coder, name, sample) for coder, name in zip(coders, called, strict=True)]
    device = coders[0].weights["W_dec"].device
    rows = [
        coder.weights["W_dec"].detach()[k].to(device).float()
        for coder, k in zip(coders, kept, strict=True)
    ]
    matches = {(i, j): best_matches(rows[i], rows[j]) for i, j in _pairs(rows)}
    n = len(rows)
    shape = (n, n)
    mmcs, recall, mutual = np.eye(n), np.eye(n), np.eye(n)
    for (i, j), (cosine, which) in matches.items():
        back = matches[j, i][1]
        own = back[which] == torch.arange(len(which), device=which.device)
        mmcs[i, j] = float(cosine.mean())
        recall[i, j] = float((cosine > at).double().mean())
        mutual[i, j] = float((own & (cosine > at)).double().mean())
    counts = [sum((matches[i, j][0] > at).long() for j in range(n) if j != i) for i in range(n)]
    nulls = [_null(rows, at, seed, draw) for draw in range(DRAWS)]
    found = np.full(coders[0].d_sae, -1, dtype=np.int64)
    found[kept[0].cpu().numpy()] = torch.as_tensor(counts[0]).cpu().numpy()
    return Stability(
        called,
        tuple(map(len, rows)),
        mmcs.reshape(shape),
        np.mean([null[0] for null in nulls], axis=0),
        recall,
        mutual,
        tuple(float((torch.as_tensor(c) == n - 1).double().mean()) for c in counts),
        tuple(np.mean([null[1] for null in nulls], axis=0).tolist()),
        found,
        at,
    )


def _pairs(rows: Sequence[Tensor]) -> list[tuple[int, int]]:
    return list(permutations(range(len(rows)), 2))


def _alive(coder: SAE, name: str, sample: Tensor | None) -> Tensor:
    """Return which latents are compared ``[latent]``."""
    if sample is None:
        return torch.ones(coder.d_sae, dtype=torch.bool, device=coder.weights["W_dec"].device)
    rows = sample.to(coder.weights["b_dec"])
    alive = torch.bincount(coder.encode_sparse(rows).indices, minlength=coder.d_sae) > 0
    if not bool(alive.any()):
        raise EmptyDataError(
            f"no latent of coder {name!r} is active on the {len(sample)} rows of the sample; give "
            "rows of its own site"
        )
    return alive


def _null(
    rows: Sequence[Tensor], at: float, seed: int, draw: int
) -> tuple[NDArray[np.float64], list[float]]:
    """Return MMCS of each coder in random dictionaries of the others' sizes, and shares in all."""
    generator = torch_generator(seed, "sae stability", str(draw))
    drawn = [torch.randn(r.shape, generator=generator).to(r) for r in rows]
    mmcs = np.eye(len(rows))
    shares = []
    for i, own in enumerate(rows):
        everywhere = torch.ones(len(own), dtype=torch.bool, device=own.device)
        for j, other in enumerate(drawn):
            if i != j:
                cosine, _ = best_matches(own, other)
                mmcs[i, j] = float(cosine.mean())
                everywhere &= cosine > at
        shares.append(float(everywhere.double().mean()))
    return mmcs, shares
