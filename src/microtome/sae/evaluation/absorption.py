"""Feature absorption: latents that take over a more general latent's part where they are active.

A coder that has a latent for "begins with S" and one for "short" saves a latent by leaving the
first silent at "short" and adding its direction to the second. The first then looks like a latent
for the property and has holes nobody would guess (Chanin et al., 2024, arXiv 2409.14507).
Definitions and thresholds are those of SAEBench (Karvonen et al., 2025), on labels of one's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from microtome.core.seeds import rng
from microtome.errors import ConfigError, EmptyDataError, UnknownNameError, nearest
from microtome.sae.evaluation.labelled import (
    Array,
    Pooled,
    fitted,
    require_own,
    rows_of,
)
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from microtome.sae.coder import SAE

SPLIT = 0.03
"""Rise of F1 by one more latent from which a property counts as split between latents."""

MOST_MAIN = 10
"""Latents that a property can be split between."""

FULL_COSINE = 0.025
"""Cosine with the probe that the one latent of a full absorption has at least."""

COSINE = 0.1
"""Cosine with the probe that absorbing latents have at least."""

SHARE = 0.4
"""Share of the value's projection that absorbing latents supply at least."""

ABSORBERS = 3
"""Absorbing latents that count at a token."""


@dataclass(frozen=True, eq=False)
class Absorption(Result, schema="sae-absorption"):
    """How much of each property other latents than its own supply.

    Attributes:
        classes: The properties whose probe is good enough.
        n: Test examples of each that its probe gets right ``[class]``.
        fraction: Mean share of the property's direction that absorbing latents supply there, 0 to 1
            ``[class]``.
        full: Share of these examples where none of the property's own latents is active and one
            other latent stands in ``[class]``.
        shuffled: Mean of ``fraction`` with the activations of all other latents taken from another
            of these examples: what would be there by chance ``[class]``.
        main: The property's own latents, more than one where it is split.
        absorbers: The latents that absorb it most often, the commonest first.
        probe_f1: F1 of the probe on the test half ``[class]``.
        main_f1: F1 of a probe on the own latents alone ``[class]``.
        left_out: F1 of the probes that were not good enough, by class.
    """

    classes: tuple[str, ...]
    n: tuple[int, ...]
    fraction: tuple[float, ...]
    full: tuple[float, ...]
    shuffled: tuple[float, ...]
    main: tuple[tuple[int, ...], ...]
    absorbers: tuple[tuple[int, ...], ...]
    probe_f1: tuple[float, ...]
    main_f1: tuple[float, ...]
    left_out: dict[str, float]

    @property
    def mean_fraction(self) -> float:
        """Mean over the properties of the share that absorbing latents supply."""
        return float(np.mean(self.fraction))

    @property
    def mean_full(self) -> float:
        """Mean over the properties of the share of fully absorbed examples."""
        return float(np.mean(self.full))

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each property."""
        import pandas as pd

        names = ("n", "fraction", "full", "shuffled", "main", "absorbers", "probe_f1", "main_f1")
        columns = {name: list(getattr(self, name)) for name in names}
        return pd.DataFrame(columns, index=pd.Index(self.classes, name="class"))


def absorption(
    data: Pooled,
    coder: SAE,
    *,
    classes: Sequence[str] | None = None,
    least_f1: float = 0.6,
    seed: int = 0,
) -> Absorption:
    """Measure how far other latents supply what a property's own latents leave out.

    For each class a logistic probe gives the property's direction, and the ``k`` latents that
    differ most in mean are its own, ``k`` being the number from which one more raises F1 by 0.03
    at most. On test examples that the probe gets right, with ``P`` the value's projection on the
    direction, ``M`` the own latents' part of it and ``A`` that of the up to three strongest other
    latents with a cosine of at least 0.1, the fraction is ``A / (A + M)``, ``A`` being ``P - M``
    at most; 0 where ``M >= P`` or the others supply less than 0.4 of ``P``.

    Args:
        data: Encoded labelled tokens; see :func:`~microtome.sae.evaluation.tokens.at_tokens`.
        coder: The coder they were encoded with.
        classes: The properties to measure, all classes by default; of two classes that are a
            property and its absence, name the property.
        least_f1: F1 that a probe has at least on the test half; other classes are left out.
        seed: Seed of the shuffled examples.

    Raises:
        UnknownNameError: There is no such class.
        ConfigError: The coder writes another site than it reads, or is not that of the data; or
            ``least_f1`` is no share.
        EmptyDataError: No probe is good enough.
    """
    if not 0 <= least_f1 <= 1:
        raise ConfigError(f"least_f1 is {least_f1}; expected 0 to 1")
    require_own(data, coder)
    decoder = rows_of(coder.weights["W_dec"])
    rows: list[_Class] = []
    left_out: dict[str, float] = {}
    for name in data.classes if classes is None else classes:
        if name not in data.classes:
            raise UnknownNameError(f"no class {name!r}{nearest(name, data.classes)}")
        truth = data.labels == data.classes.index(name)
        probe = fitted(data.values, truth, data.train)
        right = probe.predict(data.values).astype(bool)
        f1 = _f1(right[~data.train], truth[~data.train])
        if f1 < least_f1 or not f1:  # a probe without a hit has no example to measure at
            left_out[name] = f1
            continue
        chosen = ~data.train & truth & right
        rows.append(_of_class(data, decoder, name, truth, chosen, probe.coef_[0], f1, seed))
    if not rows:
        best = max(left_out.values(), default=0.0)
        raise EmptyDataError(
            f"no probe reaches an F1 of {least_f1:g} on the test half, the best of {len(left_out)} "
            f"has {best:.2f}; the site does not hold these labels, or there are too "
            "few examples"
        )
    return _result(rows, left_out)


@dataclass(frozen=True)
class _Class:
    """The figures of one property, as in :class:`Absorption`."""

    name: str
    n: int
    fraction: float
    full: float
    shuffled: float
    main: list[int]
    absorbers: list[int]
    probe_f1: float
    main_f1: float


def _of_class(
    data: Pooled,
    decoder: Array,
    name: str,
    truth: NDArray[np.bool_],
    chosen: NDArray[np.bool_],
    weight: Array,
    f1: float,
    seed: int,
) -> _Class:
    """Measure one property on the chosen examples, by its probe's weight."""
    direction = weight / np.linalg.norm(weight)
    along = decoder @ direction
    cosine = along / np.maximum(np.linalg.norm(decoder, axis=1), 1e-12)
    main, main_f1 = _own(data.latents, truth, data.train)
    latents, p = data.latents[chosen], data.values[chosen] @ direction
    fraction, full, absorbers = _fractions(latents, p, along, cosine, main)
    elsewhere = latents[rng(seed, "absorption", name).permutation(len(latents))]
    elsewhere[:, main] = latents[:, main]
    shuffled, _, _ = _fractions(elsewhere, p, along, cosine, main)
    return _Class(
        name, len(p), float(fraction.mean()), float(full.mean()), float(shuffled.mean()), main,
        absorbers, f1, main_f1,
    )  # fmt: skip


def _result(rows: Sequence[_Class], left_out: dict[str, float]) -> Absorption:
    return Absorption(
        tuple(r.name for r in rows),
        tuple(r.n for r in rows),
        tuple(r.fraction for r in rows),
        tuple(r.full for r in rows),
        tuple(r.shuffled for r in rows),
        tuple(tuple(r.main) for r in rows),
        tuple(tuple(r.absorbers) for r in rows),
        tuple(r.probe_f1 for r in rows),
        tuple(r.main_f1 for r in rows),
        left_out,
    )


def _own(
    latents: Array, truth: NDArray[np.bool_], train: NDArray[np.bool_]
) -> tuple[list[int], float]:
    """Return a property's own latents and the test F1 of a probe on them."""
    apart = latents[train & truth].mean(0) - latents[train & ~truth].mean(0)
    order = np.argsort(-apart, kind="stable")
    found = 0.0
    for k in range(1, min(MOST_MAIN, latents.shape[1]) + 1):
        features = latents[:, order[:k]]
        probe = fitted(features, truth, train)
        f1 = _f1(probe.predict(features[~train]).astype(bool), truth[~train])
        if k > 1 and f1 - found <= SPLIT:
            return [int(i) for i in order[: k - 1]], found
        found = f1
    return [int(i) for i in order[:MOST_MAIN]], found


def _fractions(
    latents: Array, p: Array, along: Array, cosine: Array, main: Sequence[int]
) -> tuple[Array, NDArray[np.bool_], list[int]]:
    """Return absorbed fractions and full absorption by example, and the absorbing latents.

    Args:
        latents: ``[example, latent]``.
        p: Projections of the values ``[example]``.
        along: Projection of each decoder row ``[latent]``.
        cosine: Its cosine with the direction ``[latent]``.
        main: The property's own latents.
    """
    parts = latents * along
    own = parts[:, main].sum(1)
    parts[:, main] = 0.0
    top = parts.argmax(1)
    strongest = parts[np.arange(len(parts)), top]
    silent = (latents[:, main] == 0).all(1)
    positive = p > 0
    enough = strongest >= SHARE * p
    full = silent & positive & enough & (cosine[top] >= FULL_COSINE)
    fit = np.where(cosine >= COSINE, np.maximum(parts, 0.0), 0.0)
    count = min(ABSORBERS, fit.shape[1])
    first = np.argpartition(-fit, count - 1, axis=1)[:, :count]
    raw = np.take_along_axis(fit, first, axis=1).sum(1)
    absorbed = positive & (own < p) & (raw >= SHARE * p)
    share = np.minimum(raw, p - own)
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.where(own <= 0, 1.0, share / (share + own))
    fraction = np.where(absorbed, fraction, 0.0)
    active = np.take_along_axis(fit, first, axis=1)[absorbed] > 0
    often = np.bincount(first[absorbed][active], minlength=latents.shape[1])
    commonest = [int(i) for i in np.argsort(-often, kind="stable")[:MOST_MAIN] if often[i]]
    return fraction, full, commonest


def _f1(said: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    right = float((said & truth).sum())
    total = float(said.sum() + truth.sum())
    return 2 * right / total if total else 0.0
