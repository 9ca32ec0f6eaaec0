"""Passes of a model with a coder's reconstruction, or nothing, in the place of a site's value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from microtome.errors import EmptyDataError, ShapeError
from microtome.sae.evaluation.restarting import Restarting, require_logits
from microtome.sae.evaluation.results import Evaluated, Recovery
from microtome.sae.latents import SparseLatents
from microtome.sae.model_passes import brief_pass, special_ids, values_at
from microtome.sae.reconstruction import ReconstructionTally

if TYPE_CHECKING:
    from microtome.sae.coder import SAE
    from microtome.tracing.model import Model
    from microtome.tracing.sites import Site
    from microtome.tracing.trace import Trace

SAMPLE = 2048
"""Rows that a survey keeps, about."""


@dataclass(frozen=True, eq=False)
class Survey:
    """What a first look at the text says, before anything is replaced.

    Attributes:
        source_mean: Mean of the sources ``[d_in]``.
        target_mean: Mean of the targets ``[d_out]``.
        l0: Mean number of the coder's active latents.
        latents: The coder's latents, batch by batch, so that it encodes once.
        sample: Some rows of the sources and of the targets ``[row, d_in]``, ``[row, d_out]``.
    """

    source_mean: Tensor
    target_mean: Tensor
    l0: float
    latents: tuple[SparseLatents, ...]
    sample: tuple[Tensor, Tensor]


@dataclass
class _Tally:
    """Sums of one coder: its reconstruction, and the cross-entropy and divergence it causes."""

    made: ReconstructionTally
    entropy: float = 0.0
    divergence: float = 0.0


@dataclass
class Losses:
    """Sums over the predicted tokens, whatever the coder.

    Attributes:
        n: Predicted tokens.
        clean: Cross-entropy of the whole model.
        ablated: Cross-entropy and divergence by kind of ablation.
    """

    n: int = 0
    clean: float = 0.0
    ablated: dict[str, list[float]] = field(
        default_factory=lambda: {"zero": [0.0, 0.0], "mean": [0.0, 0.0]}
    )

    def recovery(self, tally: _Tally) -> Recovery:
        """Return what a model loses by one coder."""
        entropies = {name: sums[0] / self.n for name, sums in self.ablated.items()}
        divergences = {name: sums[1] / self.n for name, sums in self.ablated.items()}
        return Recovery(
            self.n,
            {"clean": self.clean / self.n, "spliced": tally.entropy / self.n, **entropies},
            {"spliced": tally.divergence / self.n, **divergences},
        )


class Splicing:
    """Measures coders of the same sites in one model, batch by batch.

    Args:
        model: The model.
        sources: Sites the coders read.
        targets: Sites they write.

    Attributes:
        losses: Sums that do not depend on the coder.
        passes: What runs the model.
    """

    def __init__(self, model: Model, sources: Sequence[Site], targets: Sequence[Site]) -> None:
        self.model, self.sources, self.targets = model, tuple(sources), tuple(targets)
        self.losses = Losses()
        self.passes = Restarting(model, self.targets)
        self._tallies: dict[str, _Tally] = {}
        self._special = torch.tensor(sorted(special_ids(model)), dtype=torch.int64)

    @torch.no_grad()
    def survey(self, coder: SAE, batches: Sequence[list[list[int]]]) -> Survey:
        """Return means and L0; the model runs up to the sites only.

        Raises:
            ShapeError: The coder's widths are not those of the sites.
            EmptyDataError: The text holds special tokens only.
        """
        inputs = torch.zeros(coder.d_in, dtype=torch.float64)
        outputs = torch.zeros(coder.d_out, dtype=torch.float64)
        found: list[SparseLatents] = []
        some: list[tuple[Tensor, Tensor]] = []
        share = -(-SAMPLE // len(batches))
        n = 0
        for ids in batches:
            trace = brief_pass(self.model, ids, self._sites)
            x, y = (values_at(trace, sites, coder) for sites in (self.sources, self.targets))
            rows = self._kept(trace).to(x.device)
            x, y = x[rows], y[rows]
            for name, value, width in (("source", x, coder.d_in), ("target", y, coder.d_out)):
                if value.shape[-1] != width:
                    raise ShapeError(
                        f"the {name} sites are {value.shape[-1]} wide in this model and the coder "
                        f"expects {width}; it belongs to another model or site"
                    )
            inputs += x.double().sum(0).cpu()
            outputs += y.double().sum(0).cpu()
            found.append(coder.encode_sparse(x))
            some.append((x[:share], y[:share]))
            n += len(x)
        if not n:
            raise EmptyDataError("the text holds special tokens only; give other texts")
        active = sum(len(latents.indices) for latents in found)
        read, written = (torch.cat([pair[side] for pair in some]) for side in (0, 1))
        return Survey(
            (inputs / n).float(), (outputs / n).float(), active / n, tuple(found), (read, written)
        )

    @torch.no_grad()
    def measure(
        self, ids: list[list[int]], coders: Mapping[str, SAE], mean: Tensor, first: Tensor
    ) -> None:
        """Add what one batch shows.

        Args:
            ids: Token ids of the batch's contexts.
            coders: Coders by name.
            mean: Mean of the targets ``[d_out]``.
            first: Latents of the first coder at the tokens that are not special ``[row, latent]``.
        """
        trace = self.passes.run(ids, self._sites)
        kept = self._kept(trace)
        some = next(iter(coders.values()))
        y = values_at(trace, self.targets, some).float()
        kept = kept.to(y.device)
        clean = _log_probabilities(require_logits(trace.logits))
        read = self._read(trace).to(clean.device)
        self.losses.n += int(read.sum())
        self.losses.clean += _cross_entropy(clean, trace.tokens, read)
        for name, value in (("zero", torch.zeros_like(y)), ("mean", mean.to(y).expand_as(y))):
            replaced = torch.where(kept[..., None], value, y)
            entropy, divergence = self._changed(trace, clean, read, replaced)
            self.losses.ablated[name][0] += entropy
            self.losses.ablated[name][1] += divergence
        for name, coder in coders.items():
            tally = self._tallies.setdefault(name, _Tally(ReconstructionTally(coder)))
            x = values_at(trace, self.sources, coder)
            x = x[kept.to(x.device)]
            latents = first if coder is some else coder.encode(x)
            outputs, past = coder.decode(latents), coder.bypass(x)
            outputs = outputs if past is None else outputs + past
            tally.made.add(y[kept].to(outputs.device), outputs, latents)
            spliced = y.clone()
            spliced[kept] = outputs.to(y)
            entropy, divergence = self._changed(trace, clean, read, spliced)
            tally.entropy += entropy
            tally.divergence += divergence

    def rows(self) -> tuple[Evaluated, ...]:
        """Return the figures of every coder.

        Raises:
            EmptyDataError: No token was predicted.
        """
        if not self.losses.n:
            raise EmptyDataError(
                "the text has no token that follows another, special ones left out; give longer "
                "texts"
            )
        return tuple(
            Evaluated(name, tally.made.result(), self.losses.recovery(tally))
            for name, tally in self._tallies.items()
        )

    @property
    def _sites(self) -> list[Site]:
        return list(dict.fromkeys((*self.sources, *self.targets)))

    def _kept(self, trace: Trace) -> Tensor:
        """Return which positions hold tokens that are not special ``[batch, pos]``."""
        tokens = trace.tokens
        return trace.mask.bool() & ~torch.isin(tokens.cpu(), self._special).to(tokens.device)

    def _read(self, trace: Trace) -> Tensor:
        """Return at which positions a prediction counts ``[batch, pos - 1]``.

        Neither the token there nor the one that follows is special: the value of special tokens is
        not replaced, and predicting them is no matter of language.
        """
        kept = self._kept(trace)
        return kept[:, 1:] & kept[:, :-1]

    def _changed(
        self, base: Trace, clean: Tensor, read: Tensor, value: Tensor
    ) -> tuple[float, float]:
        """Return summed cross-entropy and divergence of a run with the targets' value replaced."""
        changed = _log_probabilities(self.passes.replaced(base, value))
        apart = (clean.exp() * (clean - changed)).sum(-1)[:, :-1]
        return _cross_entropy(changed, base.tokens, read), float(apart[read].double().sum())


def _log_probabilities(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), dim=-1)


def _cross_entropy(predicted: Tensor, tokens: Tensor, read: Tensor) -> float:
    """Return the summed cross-entropy of the tokens that are read, in nats."""
    picked = predicted[:, :-1].gather(-1, tokens[:, 1:, None].to(predicted.device))[..., 0]
    return -float(picked[read].double().sum())
