"""Gradients of a metric at sites, without weight gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from microtome.errors import MetricError, SiteError
from microtome.tracing.interventions import Intervention
from microtome.tracing.sites import Site, at, sites_of
from microtome.tracing.turns import turn

if TYPE_CHECKING:
    from microtome.tracing.model import Capture, Model
    from microtome.tracing.prompts import Prompts
    from microtome.tracing.trace import Trace

LogitMetric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients of a metric, summed over rows, with respect to the values at sites.

    Attributes:
        values: The values themselves, by text form of the site, detached.
        slopes: Their gradients, of the same shapes.
        metric: The metric of each row ``[batch]``.
        lengths: Tokens of each row.
    """

    values: dict[str, torch.Tensor]
    slopes: dict[str, torch.Tensor]
    metric: torch.Tensor
    lengths: torch.Tensor

    def __getitem__(self, site: str | Site) -> torch.Tensor:
        label = str(at(site))
        if label not in self.slopes:
            raise SiteError(
                f"No gradient at {label}; there are {', '.join(self.slopes) or 'none'}."
            )
        return self.slopes[label]

    @property
    def sites(self) -> tuple[str, ...]:
        """Text forms of the sites."""
        return tuple(self.slopes)

    def value(self, site: str | Site) -> torch.Tensor:
        """Return the value at a site that the gradient belongs to."""
        return self.values[str(at(site))]


def gradients(
    model: Model,
    metric: LogitMetric,
    sites: Capture,
    prompts: Prompts,
    *,
    interventions: Iterable[Intervention] = (),
    logits: Literal["all", "last"] = "all",
) -> Gradients:
    """Return the gradient of a metric at sites.

    Weights are frozen for the time of the call and only activations are differentiated. A gradient
    at ``scores`` or ``pattern`` makes the eager attention function the block's (about 2e-6 in the
    logits).

    Args:
        model: The model.
        metric: ``(logits [batch, pos, vocab], lengths [batch]) -> [batch]``; summed before the
            backward, so rows do not mix.
        sites: Where.
        prompts: Texts, token ids, or the input tensor of another module.
        interventions: Changes, in order.
        logits: What the metric gets: logits at all positions, or at the last of each row.

    Raises:
        MetricError: If the metric does not return one number per row, or does not depend on a site.
        SiteError: If no site is given.
    """
    wanted = sites_of(sites)
    if not wanted:
        raise SiteError("No site to differentiate at was given; name at least one.")
    single = [
        site if layer is None else replace(site, layer=(layer,))
        for site in wanted
        for _, layer in model.catalog.resolve(site)
    ]
    # only a whole value lies on the way to the logits; a selected part is a copy beside it
    whole = list(dict.fromkeys(site.whole() for site in single))
    with turn(model.module), frozen(model.module), graph_started(model), torch.enable_grad():
        trace = model.trace(
            prompts, capture=whole, interventions=interventions, logits=logits, grad=True
        )
        if trace.logits is None:
            raise MetricError("The model returned no logits to measure.")
        measured = metric(trace.logits, trace.lengths)
        if not isinstance(measured, torch.Tensor) or not measured.requires_grad:
            raise MetricError(
                f"The metric returned {type(measured).__name__} that does not depend on the logits "
                "differentiably; expected a tensor [batch] computed from them without detach or "
                "argmax."
            )
        if measured.ndim != 1 or measured.shape[0] != trace.tokens.shape[0]:
            raise MetricError(
                f"The metric returned shape {tuple(measured.shape)}; expected one number for each "
                f"of {trace.tokens.shape[0]} rows."
            )
        return _differentiate(trace, measured, single)


def _differentiate(trace: Trace, measured: torch.Tensor, wanted: Sequence[Site]) -> Gradients:
    kept = trace.kept()
    inputs = [captured.raw for captured in kept.values()]
    loose = [label for label, captured in kept.items() if not captured.raw.requires_grad]
    if loose:
        raise MetricError(f"{loose[0]} is not part of the differentiable computation.")
    found = torch.autograd.grad(measured.sum(), inputs, allow_unused=True)
    whole = {}
    for (label, captured), slope in zip(kept.items(), found, strict=True):
        full = torch.zeros_like(captured.raw) if slope is None else slope
        layout = captured.layout
        whole[label] = full if layout is None else layout.view(full, captured.batch)
    values, slopes = {}, {}
    for site in wanted:
        label = str(site.whole())
        values[str(site)] = trace.part(site, kept[label].value().detach())
        slopes[str(site)] = trace.part(site, whole[label])
    return Gradients(values, slopes, measured.detach(), trace.lengths)


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Switch ``requires_grad`` of all parameters off; restored on leaving."""
    changed = [p for p in module.parameters() if p.requires_grad]
    try:
        for parameter in changed:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def graph_started(model: Model) -> Iterator[None]:
    """Start the graph at the token embedding's output, or at the input of other modules."""
    path = None if model.anatomy is None else model.anatomy.embed_token

    def leaf(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.detach().requires_grad_(True)

    def leaf_input(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            a.detach().requires_grad_(True)
            if isinstance(a, torch.Tensor) and a.is_floating_point()
            else a
            for a in args
        )

    if path is None:
        handle = model.module.register_forward_pre_hook(leaf_input)
    else:
        handle = model.module.get_submodule(path).register_forward_hook(leaf)
    try:
        yield
    finally:
        handle.remove()
