"""Contextual decomposition: what a head or MLP is relevant for, followed forward by closed rules.

Hsu et al. (2024, arXiv 2407.00886) split every activation into a relevant and an irrelevant part
and push both through the layers; no gradient and no corrupt run is needed. The parts always add up
to the activation. Here divisors of norms and attention patterns are held at their values, linear
maps act on each part, biases are irrelevant, and an MLP f gives the relevant part the mean of what
it adds alone and what it adds to the rest: (f(r) - f(0) + f(r + i) - f(i)) / 2, where 0 stands for
the norm's bias.

Shapes: b examples, s sources, p positions, d the width of the stream, h heads, k of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.attribution import ComponentScores
from microtome.attribution.patching import single_row
from microtome.behaviors.evaluate import batches
from microtome.circuits.edges.port_gradients import batch_size
from microtome.circuits.edges.reading import Reading, Stage
from microtome.circuits.edges.writing import differences, head_writes, write_sites
from microtome.circuits.references import References
from microtome.circuits.search.held import HeldNorm
from microtome.core.provenance import collect
from microtome.errors import MetricError, ModelSupportError
from microtome.models.compare import relative_error, tolerance

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.behaviors.metrics import LastTokenMetric, Metric
    from microtome.circuits.references import Ablation
    from microtome.tracing.model import Model
    from microtome.tracing.trace import Trace

ALLOWED = 8.0
"""Multiple of the usual tolerance that a rule's total may be off the model's own value."""

SHARE = 4
"""A batch is smaller by this factor than the table of writes allows: MLPs are wider."""

MEANING = (
    "Relevance for the behavior: the part of the metric in the clean run that comes from what the "
    "node writes, followed through later parts with norms and attention patterns held fixed."
)


def contextual_decomposition(
    model: Model,
    examples: Examples,
    *,
    metric: str | Metric = "logit_difference",
    ablation: Ablation = "zero",
    reference: Examples | None = None,
) -> ComponentScores:
    """Score every head and MLP by the relevance of what it writes for a linear metric.

    Args:
        model: A transformer whose parts write to one residual stream.
        examples: Where to look; with ``zero`` only their clean prompts are run.
        metric: A metric that is linear in the logits.
        ablation: Relevant is what a node writes beyond this: beyond nothing (``zero``), its mean,
            or its value in the corrupt run (``resample``).
        reference: Examples over which means are taken.

    Raises:
        MetricError: If the metric is not linear in the logits.
        ModelSupportError: If logits are no linear map of the normed stream, or what a head or an
            MLP gives is not what the rules say.
    """
    chosen = single_row(metric, "Contextual decomposition")
    if not chosen.linear:
        raise MetricError(
            f"Relevance is a part of a metric that is linear in the logits; {chosen.name} is not. "
            "Take logit_difference."
        )
    reading = Reading.of(model)
    tail = reading.anatomy.tail
    if not tail.exact or tail.softcap is not None:
        raise ModelSupportError(
            f"The logits of {model.name} are no linear map of the normed stream "
            f"({tail.reason or 'a soft cap bends them'}), so they do not split into parts."
        )
    references = References(
        model, examples, write_sites(reading), ablation=ablation, reference=reference
    )
    values = np.zeros((len(examples), len(reading.graph.sources)))
    for places in batches(examples, _rows(reading, examples), model=model):
        chunk = examples.take(places)
        instead = references.of(chunk)
        split = Split(reading, chunk)
        table = differences(reading, split.values, instead, stop=len(reading.stages))
        values[places] = split.measured(split.relevant(table), chosen).cpu().numpy()
    return ComponentScores(
        names=reading.graph.sources[1:],
        values=values[:, 1:],
        method="contextual-decomposition",
        metric=chosen.name,
        meaning=MEANING,
        provenance=collect(model, {"method": "contextual-decomposition", "ablation": ablation}),
    )


def _rows(reading: Reading, examples: Examples) -> int:
    return max(1, batch_size(reading, examples) // SHARE)


def shared(
    function: Callable[[torch.Tensor], torch.Tensor],
    base: torch.Tensor,
    relevant: torch.Tensor,
    whole: torch.Tensor,
) -> torch.Tensor:
    """Return the relevant part of a function of ``whole``: the mean over both orders of adding.

    With the same rule the other part, ``whole - base - relevant``, gets the rest of
    ``function(whole) - function(base)``.

    Args:
        function: The function.
        base: What is there before either part.
        relevant: The relevant part.
        whole: All of it.
    """
    first = function(base + relevant) - function(base)
    last = function(whole) - function(whole - relevant)
    return (first + last) / 2


class Split:
    """The clean run of some examples, through which parts of activations are followed.

    Args:
        reading: The model.
        chunk: Examples that are run together.

    Raises:
        ModelSupportError: If a head's or an MLP's output is not what the rules say.
    """

    def __init__(self, reading: Reading, chunk: Examples) -> None:
        self._reading = reading
        self._chunk = chunk
        streams = [s for stage in reading.stages for s in (stage.stream, stage.mlp_stream)]
        sites = [*write_sites(reading), reading.last_stream, *streams]
        for stage in reading.stages:
            if len(stage.heads):
                sites += [f"blocks.{stage.layer}.attn.{name}" for name in ("pattern", "v")]
            if stage.mlp_target is not None:
                sites.append(f"blocks.{stage.layer}.mlp.in")
        trace = reading.model.trace(chunk.clean, capture=list(dict.fromkeys(sites)), logits=None)
        self._lengths = trace.lengths
        self.values = {site: trace.value(site).detach() for site in dict.fromkeys(sites)}
        self._check(trace)

    def relevant(self, table: torch.Tensor) -> torch.Tensor:
        """Return the relevant part of the last stream for each source ``[b, s, p, d]``.

        Args:
            table: The relevant part of what each source itself writes ``[b, s, p, d]``.
        """
        parts = torch.zeros_like(table)
        parts[:, 0] = table[:, 0]
        with torch.no_grad():
            for stage in self._reading.stages:
                before = parts
                parts = parts + self._attention(stage, before)
                if len(stage.heads):
                    heads = slice(stage.heads.start, stage.heads.stop)
                    parts[:, heads] += table[:, heads]
                if stage.mlp_source is not None:
                    parallel = stage.mlp_stream == stage.stream
                    parts = parts + self._mlp(stage, before if parallel else parts)
                    parts[:, stage.mlp_source] += table[:, stage.mlp_source]
        return parts

    def measured(self, parts: torch.Tensor, metric: LastTokenMetric) -> torch.Tensor:
        """Return each part's share of a linear metric at the prompts' ends ``[b, s]``."""
        reading = self._reading
        ends = reading.model.readout.positions(self._lengths)
        rows = torch.arange(len(ends))
        last = parts[rows, :, ends]
        stream = self._laid_out(reading.last_stream)[rows, ends].unsqueeze(1)
        normed = self._normed(reading.anatomy.final_norm or "", last, stream)
        table = reading.model.weights.W_U.detach().float()
        found = []
        for row, example in enumerate(self._chunk):
            ids, weights = metric.direction(example)
            direction = table[:, list(ids)] @ torch.tensor(weights, device=table.device)
            found.append(normed[row].float() @ direction)
        return torch.stack(found)

    def _attention(self, stage: Stage, parts: torch.Tensor) -> torch.Tensor:
        """Return what a block's heads make of the parts, through their values ``[b, s, p, d]``."""
        if not len(stage.heads):
            return torch.zeros_like(parts)
        stream = self._laid_out(stage.stream).unsqueeze(1)
        normed = self._normed(stage.attn_norm, parts, stream)
        ports = stage.ports[2]
        values = torch.einsum("bspd,hdk->bsphk", normed, self._reading.weight(ports).to(normed))
        values = values * ports.columns.scale
        z = self._mixed(stage, values)
        joined = z.flatten(0, 1)
        written = head_writes(self._reading, stage, joined).sum(1)
        each: torch.Tensor = written.unflatten(0, parts.shape[:2])
        return each

    def _mixed(self, stage: Stage, values: torch.Tensor) -> torch.Tensor:
        """Return values of key/value heads ``[b, s, p, g, k]`` mixed by the heads' patterns."""
        pattern = self.values[f"blocks.{stage.layer}.attn.pattern"].to(values)
        size = len(stage.heads) // values.shape[3]
        return torch.einsum("bhqp,bsphk->bsqhk", pattern, values.repeat_interleave(size, 3))

    def _mlp(self, stage: Stage, parts: torch.Tensor) -> torch.Tensor:
        """Return the relevant part of an MLP's output ``[b, s, p, d]``."""
        stream = self._laid_out(stage.mlp_stream).unsqueeze(1)
        whole = self._laid_out(f"blocks.{stage.layer}.mlp.in").unsqueeze(1)
        base = whole - self._normed(stage.mlp_norm, stream, stream)
        normed = self._normed(stage.mlp_norm, parts, stream)
        return shared(self._function(stage), base, normed, whole)

    def _function(self, stage: Stage) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return a block's MLP as a function of its normed input ``[..., p, d]``."""
        mlp = self._reading.anatomy.blocks[stage.layer].mlp
        if mlp is None or mlp.path is None:
            raise ModelSupportError(
                f"The MLP of block {stage.layer} is no module of its own, so parts of its input "
                "cannot be run through it."
            )
        module, scale = self._reading.module(mlp.path), mlp.scale

        def function(value: torch.Tensor) -> torch.Tensor:
            found = module.forward(value.flatten(0, -3))
            given: torch.Tensor = found[0] if isinstance(found, tuple) else found
            return given.reshape(value.shape) * scale

        return function

    def _normed(self, path: str, part: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
        """Return what a part gives behind a norm with the stream's divisor, its bias left out."""
        return HeldNorm(self._reading.module(path)).part(part, stream) if path else part

    def _laid_out(self, site: str) -> torch.Tensor:
        value = self.values[site]
        return value.reshape(len(self._lengths), -1, value.shape[-1])

    def _check(self, trace: Trace) -> None:
        """Require that the rules give the model's own z and MLP outputs for the whole input."""
        allowed = ALLOWED * tolerance(self._reading.model.dtype)
        real = trace.mask.to(self._reading.model.device)
        with torch.no_grad():
            for stage in self._reading.stages:
                block = f"blocks.{stage.layer}"
                pairs = []
                if len(stage.heads):
                    mixed = self._mixed(stage, self.values[f"{block}.attn.v"].unsqueeze(1))[:, 0]
                    pairs.append(("attn.z", mixed))
                if stage.mlp_source is not None:
                    given = self._function(stage)(self._laid_out(f"{block}.mlp.in"))
                    pairs.append(("mlp.out", given))
                for name, value in pairs:
                    wanted = self.values[f"{block}.{name}"].reshape(value.shape)
                    if not relative_error(value[real], wanted[real]) <= allowed:
                        raise ModelSupportError(
                            f"{block}.{name} is not what the rules of contextual decomposition "
                            "give (a gate, a norm or a sink lies in between)."
                        )
