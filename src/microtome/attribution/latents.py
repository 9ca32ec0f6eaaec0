"""The latents that carry a behavior: ranked by attribution, confirmed exactly, rare elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from microtome.attribution.confirmed import Confirmed, by_block, confirmed, prepared
from microtome.attribution.corpus import Texts, encoded, windows_of
from microtome.attribution.neurons import mean_effects
from microtome.attribution.patching import single_row
from microtome.behaviors.behavior import Behavior
from microtome.behaviors.metrics import Metric
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.errors import ConfigError, EmptyDataError, SiteError
from microtome.sweeps.latents import codecs_at
from microtome.sweeps.planning import sweep
from microtome.tracing.attachments import fingerprints
from microtome.tracing.sites import Site, at
from microtome.tracing.vocabulary import is_latents

if TYPE_CHECKING:
    import pandas as pd

    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model

WINDOW = 128
"""Tokens that are read together of other texts, at most."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentEffects(Confirmed):
    """What the latents with the largest attribution do when each of them alone is patched.

    Attributes:
        sites: Site of each latent, ``blocks.3.resid_post/sae``.
        latents: Number of each latent, strongest estimate first.
        elsewhere: Share of the other texts' tokens on which each is active ``[latent]``; NaN where
            none were given.
        elsewhere_tokens: How many tokens of other texts were read.
        most_elsewhere: Share beyond which a latent was left out.
        left_out: How many latents with a larger estimate than the last one here were left out.
    """

    sites: tuple[str, ...]
    latents: tuple[int, ...]
    elsewhere: np.ndarray
    elsewhere_tokens: int
    most_elsewhere: float
    left_out: int

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each latent: estimated and exact effect, and its share elsewhere."""
        import pandas as pd

        named = {"site": self.sites, "latent": self.latents}
        return pd.DataFrame({**named, **self.effects(), "elsewhere": self.elsewhere})


def top_latents(
    model: Model,
    behavior: Behavior | Examples,
    *,
    site: str | Site,
    k: int = 10,
    elsewhere: Texts | None = None,
    most_elsewhere: float = 0.01,
    metric: str | Metric = "logit_difference",
    base: Literal["clean", "corrupt"] = "clean",
    steps: int = 1,
    seed: int = 0,
    progress: Progress = quiet,
) -> LatentEffects:
    """Return the latents that carry a behavior and are not active elsewhere.

    All latents are ranked by attribution patching ((value in the other run - value in the base run)
    . gradient, summed over positions; Marks et al., 2024), those active on more than a share of
    other texts are left out, and each of the first ``k`` is patched exactly.

    Args:
        model: A model with a codec attached.
        behavior: A behavior, or examples prepared for the model.
        site: The latents, ``blocks.3.resid_post/NAME``; ``resid_post/NAME`` for those of every
            block that has such a codec.
        k: How many latents at most.
        elsewhere: Other texts, or lists of token ids, on which they should not be active.
        most_elsewhere: Share of the other texts' tokens on which a latent may be active.
        metric: A metric that reads the prompt's end.
        base: The run that is patched; the other one is the source.
        steps: Steps of integrated gradients for the ranking, 1 for plain gradients.
        seed: For the certificate's sample.
        progress: Told while the exact sweep runs.

    Raises:
        ConfigError: If ``k`` or ``steps`` is not positive, or every latent that is moved is active
            elsewhere.
        EmptyDataError: If there are no examples or texts, or no latent is moved.
        SiteError: If the site is not that of latents.
    """
    _check(k, steps, most_elsewhere)
    examples = prepared(model, behavior)
    places = _places(model, at(site))
    chosen = single_row(metric, "Latent attribution")
    estimates = mean_effects(model, chosen, examples, list(places.items()), base, steps, 32)
    units = [(layer, n) for layer, found in estimates.items() for n in range(len(found))]
    strength = np.concatenate(list(estimates.values()))
    share, tokens = np.full(len(units), np.nan), 0
    if elsewhere is not None:
        shares, tokens = active_shares(model, list(places.values()), elsewhere)
        share = np.concatenate([shares[places[layer]] for layer in estimates])
    picked, left_out = _picked(strength, share, k, most_elsewhere, str(site))
    top = [units[n] for n in picked]
    exact = sweep(
        model, examples, Site(at(site).name, tuple(sorted({layer for layer, _ in top}))),
        base=base, metric=metric, latents=by_block(top), seed=seed, progress=progress,
    )  # fmt: skip
    settings = {"site": str(site), "k": k, "base": base, "codecs": fingerprints(model.codecs)}
    return LatentEffects(
        sites=tuple(places[layer] for layer, _ in top),
        latents=tuple(n for _, n in top),
        elsewhere=share[picked],
        elsewhere_tokens=tokens,
        most_elsewhere=most_elsewhere,
        left_out=left_out,
        considered=len(units),
        provenance=collect(model, settings, seed=seed),
        **confirmed(exact, top, strength[picked], axis="latent", steps=steps),
    )


def active_shares(
    model: Model, sites: Sequence[str], texts: Texts, *, batch_size: int = 16
) -> tuple[dict[str, np.ndarray], int]:
    """Return on which share of some texts' tokens each latent is active (not 0).

    Args:
        model: A model with codecs attached.
        sites: Full names of their latents.
        texts: Texts, or lists of token ids; long ones are read in windows that overlap by half.
        batch_size: Windows per pass.

    Returns:
        The shares by site ``[latent]``, and how many tokens were read.

    Raises:
        EmptyDataError: If the texts hold no tokens.
    """
    context = None if model.anatomy is None else model.anatomy.context
    shift = int(model.bos)
    window = min(WINDOW, context or WINDOW) - shift
    windows = sorted(windows_of(encoded(model, texts), max(2, window)), key=lambda w: -len(w.ids))
    front = [int(model.tokenizer.bos_token_id)] if shift else []
    counts: dict[str, np.ndarray] = {}
    tokens = 0
    for start in range(0, len(windows), batch_size):
        part = windows[start : start + batch_size]
        trace = model.trace([front + list(w.ids) for w in part], capture=sites, logits=None)
        for site in sites:
            active = trace.value(site) != 0
            for row, w in zip(active, part, strict=True):
                new = row[shift + w.fresh : shift + len(w.ids)].sum(0).cpu().numpy()
                counts[site] = counts[site] + new if site in counts else new
        tokens += sum(len(w.ids) - w.fresh for w in part)
    return {site: count / tokens for site, count in counts.items()}, tokens


def _check(k: int, steps: int, most_elsewhere: float) -> None:
    if k < 1 or steps < 1:
        raise ConfigError(f"k={k}, steps={steps}; expected at least 1 of each.")
    if not 0 <= most_elsewhere <= 1:
        raise ConfigError(f"most_elsewhere={most_elsewhere}; expected a share from 0 to 1.")


def _places(model: Model, site: Site) -> dict[int, str]:
    """Return the full names of the latents by block."""
    if not is_latents(site.name) or site != site.whole():
        raise SiteError(
            f"{site} is not the site of latents; give one such as blocks.3.resid_post/NAME, of a "
            "codec attached by model.attach, without selectors."
        )
    return {layer: str(one.latents) for layer, one in codecs_at(model, site).items()}


def _picked(
    strength: np.ndarray, share: np.ndarray, k: int, most: float, site: str
) -> tuple[np.ndarray, int]:
    """Return the strongest latents that are rare elsewhere, and how many before them are not."""
    order = np.argsort(-np.abs(strength), kind="stable")
    order = order[strength[order] != 0]
    if not len(order):
        raise EmptyDataError(f"No latent of {site} differs between the two runs of any example.")
    rare = ~(share[order] > most)
    if not rare.any():
        raise ConfigError(
            f"All {len(order)} latents of {site} that the behavior moves are active on more than "
            f"{most:.3g} of the other texts' tokens (the rarest on {share[order].min():.3g}). "
            "Raise most_elsewhere, or leave elsewhere out."
        )
    places = np.flatnonzero(rare)[:k]
    return order[places], int((~rare[: places[-1]]).sum())
