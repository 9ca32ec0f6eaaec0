"""What ablated parts give: their value in the corrupt run, their mean, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch

from microtome.behaviors.evaluate import batches
from microtome.errors import ConfigError, EmptyDataError

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model

Ablation = Literal["resample", "mean", "zero"]
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)

ROWS = 256
"""Rows of a forward pass at most."""


def check_ablation(ablation: str) -> None:
    """Refuse an unknown kind of ablation.

    Raises:
        ConfigError: If it is unknown.
    """
    if ablation not in ABLATIONS:
        raise ConfigError(f"ablation={ablation!r}; expected one of {', '.join(ABLATIONS)}.")


def site_means(model: Model, reference: Examples, sites: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the mean of each site over all positions of the clean and corrupt prompts.

    Raises:
        EmptyDataError: If there are no examples.
    """
    if not len(reference):
        raise EmptyDataError("The reference holds no examples, so there is no mean over them.")
    totals: dict[str, torch.Tensor] = {}
    count = 0
    for places in batches(reference, ROWS):
        chunk = reference.take(places)
        trace = model.trace([*chunk.clean, *chunk.corrupt], capture=list(sites), logits=None)
        count += int(trace.lengths.sum())
        for site in sites:
            summed = trace.value(site).sum((0, 1), keepdim=True)
            totals[site] = summed if site not in totals else totals[site] + summed
    return {site: total / count for site, total in totals.items()}


class References:
    """What ablated parts give, for any batch of examples.

    Args:
        model: The model.
        examples: The examples.
        sites: Sites that are ablated.
        ablation: ``resample``, ``mean`` or ``zero``.
        reference: Examples over whose clean and corrupt prompts means are taken; ``examples`` by
            default.

    Raises:
        ConfigError: If the ablation is unknown.
    """

    def __init__(
        self,
        model: Model,
        examples: Examples,
        sites: Sequence[str],
        *,
        ablation: str,
        reference: Examples | None = None,
    ) -> None:
        check_ablation(ablation)
        self._model = model
        self._sites = list(sites)
        self.ablation = ablation
        self._means = (
            site_means(model, examples if reference is None else reference, self._sites)
            if ablation == "mean"
            else {}
        )

    def of(self, chunk: Examples, *, first: int = 0) -> dict[str, torch.Tensor]:
        """Return the values by site, from a first position on; none under ``zero``.

        Args:
            chunk: Examples that are run together.
            first: First position that is computed.
        """
        if self.ablation != "resample":
            return self._means
        trace = self._model.trace(chunk.corrupt, capture=self._sites, logits=None)
        return {site: trace.value(site)[:, first:] for site in self._sites}
