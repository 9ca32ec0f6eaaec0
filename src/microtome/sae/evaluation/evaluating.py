"""Evaluating coders in the model they belong to: reconstruction, and what the model loses by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.errors import ConfigError, EmptyDataError, ModelSupportError, ShapeError
from microtome.sae.evaluation.baselines import coordinates, random_dictionary
from microtome.sae.evaluation.results import Evaluated, Recovery, SAEEvaluation
from microtome.sae.harvesting.documents import Text, read_documents
from microtome.sae.model_passes import coder_sites, contexts_of, special_ids, values_at
from microtome.sae.reconstruction import ReconstructionTally

if TYPE_CHECKING:
    from microtome.sae.coder import SAE
    from microtome.tracing.model import Model
    from microtome.tracing.sites import Site
    from microtome.tracing.trace import Trace


def evaluate(
    model: Model,
    coder: SAE,
    text: Text,
    *,
    tokens: int = 20_000,
    context: int = 128,
    batch_size: int = 16,
    baselines: bool = True,
    others: Mapping[str, SAE] | None = None,
    seed: int = 0,
    progress: Progress = quiet,
) -> SAEEvaluation:
    """Evaluate a coder and its baselines on held-out text.

    Each coder's reconstruction replaces the value of its target sites at every token but special
    ones, from values of the untouched run, and the model goes on with it. Baselines, on the same
    tokens: as many random directions, and, for SAEs, the coordinates of the value, both keeping
    the coder's own mean number of latents.

    Args:
        model: The model the coder belongs to.
        coder: A coder whose ``origin`` names its sites.
        text: Held-out texts; see :func:`microtome.sae.harvest`.
        tokens: How many tokens to read at most.
        context: Tokens of a text at a time.
        batch_size: Texts per pass.
        baselines: Whether to measure the baselines, too.
        others: Further coders of the same sites, by name.
        seed: Seed of the random directions.
        progress: Told how far it is.

    Returns:
        The coder's row first, then those of the baselines and of ``others``.

    Raises:
        SiteError: The coder names no sites, or the model does not have them.
        ShapeError: Its widths are not those of the sites.
        EmptyDataError: The text has no tokens to predict.
        ConfigError: A number is out of range, or a name is taken.
        ModelSupportError: The model gives no logits.
    """
    if context < 2 or batch_size < 1 or tokens < 2:
        raise ConfigError(
            f"context={context}, batch_size={batch_size}, tokens={tokens}; expected at least 2, "
            "1 and 2"
        )
    taken = {"sae", *(("random", "coordinates") if baselines else ())} & set(others or ())
    if taken:
        raise ConfigError(
            f"others are named {sorted(taken)}, as rows of the table are; rename them"
        )
    batches = _batches(model, text, tokens, context, batch_size)
    run = _Run(model, *coder_sites(model, coder))
    mean, l0 = run.survey(coder, batches)
    rows = {"sae": coder, **(others or {})}
    if baselines:
        rows["random"] = random_dictionary(coder, round(l0), mean=mean, seed=seed)
        if coder.origin.sources == coder.origin.targets:
            rows["coordinates"] = coordinates(coder, round(l0), mean=mean)
    tallies = {name: _Tally(ReconstructionTally(row)) for name, row in rows.items()}
    losses = _Losses()
    for number, ids in enumerate(batches):
        run.measure(ids, rows, tallies, losses, mean)
        progress.step(number + 1, len(batches), "text")
    if not losses.n:
        raise EmptyDataError("the text has no token that follows another; give longer texts")
    settings = {"tokens": tokens, "context": context, "seed": seed, "sites": coder.origin.sources}
    return SAEEvaluation(
        tuple(Evaluated(n, t.made.result(), losses.recovery(t)) for n, t in tallies.items()),
        (coder.origin.sources, coder.origin.targets),
        collect(model, settings, seed=seed),
    )


@dataclass
class _Tally:
    """Sums of one coder: its reconstruction, and the cross-entropy and divergence it causes."""

    made: ReconstructionTally
    entropy: float = 0.0
    divergence: float = 0.0


@dataclass
class _Losses:
    """Sums that do not depend on the coder."""

    n: int = 0
    clean: float = 0.0
    ablated: dict[str, list[float]] = field(
        default_factory=lambda: {"zero": [0.0, 0.0], "mean": [0.0, 0.0]}
    )

    def recovery(self, tally: _Tally) -> Recovery:
        entropies = {name: sums[0] / self.n for name, sums in self.ablated.items()}
        divergences = {name: sums[1] / self.n for name, sums in self.ablated.items()}
        return Recovery(
            self.n,
            {"clean": self.clean / self.n, "spliced": tally.entropy / self.n, **entropies},
            {"spliced": tally.divergence / self.n, **divergences},
        )


@dataclass(frozen=True)
class _Run:
    """Passes of one model with the values of given sites replaced."""

    model: Model
    sources: tuple[Site, ...]
    targets: tuple[Site, ...]

    @torch.no_grad()
    def survey(self, coder: SAE, batches: Sequence[list[list[int]]]) -> tuple[Tensor, float]:
        """Return the mean of the targets ``[d_out]`` and the mean number of active latents."""
        total, active, n = torch.zeros(coder.d_out, dtype=torch.float64), 0.0, 0
        for ids in batches:
            trace = self._clean(ids)
            kept = self._kept(trace)
            x = values_at(trace, self.sources, coder)
            y = values_at(trace, self.targets, coder)
            rows = kept.to(x.device)
            x, y = x[rows], y[rows]
            for name, value, width in (("source", x, coder.d_in), ("target", y, coder.d_out)):
                if value.shape[-1] != width:
                    raise ShapeError(
                        f"the {name} sites are {value.shape[-1]} wide in this model and the coder "
                        f"expects {width}; it belongs to another model or site"
                    )
            total += y.double().sum(0).cpu()
            active += float((coder.encode(x) != 0).sum())
            n += len(x)
        if not n:
            raise EmptyDataError("the text holds special tokens only; give other texts")
        return (total / n).float(), active / n

    @torch.no_grad()
    def measure(
        self,
        ids: list[list[int]],
        rows: Mapping[str, SAE],
        tallies: Mapping[str, _Tally],
        losses: _Losses,
        mean: Tensor,
    ) -> None:
        """Add what one batch shows."""
        trace = self._clean(ids)
        kept = self._kept(trace)
        first = next(iter(rows.values()))
        y = values_at(trace, self.targets, first).float()
        kept = kept.to(y.device)
        clean = _log_probabilities(trace)
        mask = trace.mask.bool().to(clean.device)
        read = mask[:, 1:] & mask[:, :-1]
        losses.n += int(read.sum())
        losses.clean += _cross_entropy(clean, trace.tokens, read)
        for name, value in (("zero", torch.zeros_like(y)), ("mean", mean.to(y).expand_as(y))):
            entropy, divergence = self._changed(
                trace, clean, read, torch.where(kept[..., None], value, y)
            )
            losses.ablated[name][0] += entropy
            losses.ablated[name][1] += divergence
        for name, coder in rows.items():
            x = values_at(trace, self.sources, coder)
            x = x[kept.to(x.device)]
            latents = coder.encode(x)
            outputs, past = coder.decode(latents), coder.bypass(x)
            outputs = outputs if past is None else outputs + past
            tallies[name].made.add(y[kept].to(outputs.device), outputs, latents)
            spliced = y.clone()
            spliced[kept] = outputs.to(y)
            entropy, divergence = self._changed(trace, clean, read, spliced)
            tallies[name].entropy += entropy
            tallies[name].divergence += divergence

    def _clean(self, ids: list[list[int]]) -> Trace:
        return self.model.trace(ids, capture=list(dict.fromkeys((*self.sources, *self.targets))))

    def _kept(self, trace: Trace) -> Tensor:
        """Return which positions hold tokens that are not special ``[batch, pos]``."""
        tokens = trace.tokens
        special = torch.tensor(sorted(special_ids(self.model)), dtype=tokens.dtype)
        return trace.mask.bool() & ~torch.isin(tokens.cpu(), special).to(tokens.device)

    def _changed(
        self, base: Trace, clean: Tensor, read: Tensor, value: Tensor
    ) -> tuple[float, float]:
        """Return summed cross-entropy and divergence of a run with the targets' value replaced."""
        writes, start = [], 0
        for site in self.targets:
            old = base[site]
            width = old[0, 0].numel()
            part = value[..., start : start + width]
            writes.append(site.set(part.reshape(old.shape).to(old)))
            start += width
        # The base's own tokens, padded as they were: the same batch, position by position.
        ids = [row[m].tolist() for row, m in zip(base.tokens, base.mask.bool(), strict=True)]
        trace = self.model.trace(ids, interventions=writes)
        changed = _log_probabilities(trace)
        apart = (clean.exp() * (clean - changed)).sum(-1)[:, :-1]
        return _cross_entropy(changed, trace.tokens, read), float(apart[read].double().sum())


def _batches(
    model: Model, text: Text, tokens: int, context: int, batch_size: int
) -> list[list[list[int]]]:
    documents = read_documents(text, tokenizer=model.tokenizer, tokens=tokens)
    # A context of one token predicts nothing.
    lists = [c.ids for c in contexts_of(model, documents, context) if len(c.ids) > 1]
    if not lists:
        raise EmptyDataError("the text has no token that follows another; give longer texts")
    ordered = sorted(lists, key=len)
    return list(_split(ordered, batch_size))


def _split(lists: Sequence[list[int]], size: int) -> Iterator[list[list[int]]]:
    for start in range(0, len(lists), size):
        yield list(lists[start : start + size])


def _log_probabilities(trace: Trace) -> Tensor:
    if trace.logits is None:
        raise ModelSupportError(
            "the model returned no logits, so what it loses by a reconstruction cannot be measured"
        )
    return torch.log_softmax(trace.logits.float(), dim=-1)


def _cross_entropy(predicted: Tensor, tokens: Tensor, read: Tensor) -> float:
    """Return the summed cross-entropy of the tokens that are read, in nats."""
    picked = predicted[:, :-1].gather(-1, tokens[:, 1:, None].to(predicted.device))[..., 0]
    return -float(picked[read].double().sum())
