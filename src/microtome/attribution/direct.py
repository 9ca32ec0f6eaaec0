"""Direct logit attribution: what heads and MLPs write to the metric past the frozen final norm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from microtome.attribution.results import DirectAttribution
from microtome.behaviors.evaluate import batches
from microtome.behaviors.metrics import LastTokenMetric, Metric, metric
from microtome.core.provenance import collect
from microtome.errors import MetricError, ModelSupportError
from microtome.tracing.norms import centers, divisor
from microtome.tracing.weights import norm_gain

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.models.anatomy import Anatomy
    from microtome.tracing.model import Model

NOTE = (
    "The final norm's scale is frozen at its value on each clean prompt; with that fixed, the "
    "parts add up to the metric exactly. What a part does through later parts is not counted."
)


def direct_logit_attribution(
    model: Model,
    examples: Examples,
    *,
    metric: str | Metric = "logit_difference",
    batch_size: int = 64,
) -> DirectAttribution:
    """Split a linear metric at the prompt's end into what every head and MLP writes to it.

    Args:
        model: A transformer whose heads and MLPs add up in the residual stream.
        examples: Examples prepared for it; their clean prompts are run.
        metric: A metric that is linear in the logits.
        batch_size: Examples per forward pass.

    Raises:
        MetricError: If the metric is not linear.
        ModelSupportError: If the parts do not add up in this model (normed branches, a soft cap).
    """
    chosen = _linear(metric)
    anatomy = _additive(model)
    parts: list[tuple[list[int], dict[str, np.ndarray]]] = []
    for places in batches(examples, batch_size):
        chunk = examples.take(places)
        directions = torch.stack([_direction(model, chosen, e) for e in chunk])
        parts.append((places, _split(model, anatomy, chunk, directions)))
    whole = {
        key: np.concatenate([p[key] for _, p in parts])[
            np.argsort(np.concatenate([i for i, _ in parts]))
        ]
        for key in parts[0][1]
    }
    summed = (
        whole["heads"].sum((1, 2))
        + whole["mlps"].sum(1)
        + whole["embedding"]
        + whole["biases"]
        + whole["constant"]
    )
    error = float(
        np.abs(summed - whole["total"]).max() / max(float(np.abs(whole["total"]).max()), 1e-12)
    )
    return DirectAttribution(
        **whole,
        completeness_error=error,
        note=NOTE,
        provenance=collect(model, {"method": "direct logit attribution", "metric": chosen.name}),
    )


def _linear(name: str | Metric) -> LastTokenMetric:
    chosen = metric(name)
    if not chosen.linear or not isinstance(chosen, LastTokenMetric):
        raise MetricError(
            f"Direct logit attribution needs a metric linear in the logits; {chosen.name} is not."
        )
    return chosen


def _additive(model: Model) -> Anatomy:
    anatomy = model.anatomy
    if (
        anatomy is None
        or not anatomy.tail.exact
        or anatomy.tail.softcap is not None
        or anatomy.final_norm is None
    ):
        why = (
            "it is not a transformer"
            if anatomy is None
            else anatomy.tail.reason or "a soft cap bends the logits"
        )
        raise ModelSupportError(f"Direct logit attribution does not apply to {model.name}: {why}.")
    for number, block in enumerate(anatomy.blocks):
        attention = block.attention
        if (
            attention is None
            or not attention.heads_add_up
            or block.mlp is None
            or block.mlp.added is None
        ):
            raise ModelSupportError(
                f"Direct logit attribution does not apply to {model.name}: what the heads or the "
                f"MLP of block {number} write does not add up in the residual stream."
            )
    return anatomy


def _direction(model: Model, chosen: LastTokenMetric, example: Any) -> torch.Tensor:
    """Return the direction of the metric in the normalized stream ``[d_model]``, gain included."""
    ids, weights = chosen.direction(example)
    columns = model.weights.W_U[:, list(ids)].detach().float()
    return columns @ torch.tensor(weights, device=columns.device)


def _split(
    model: Model, anatomy: Anatomy, chunk: Examples, directions: torch.Tensor
) -> dict[str, np.ndarray]:
    read, final = f"[pos={model.readout.position}]", f"blocks.{anatomy.n_layers - 1}.resid_post"
    sites = ("blocks.0.resid_pre", "attn.z", "attn.out", "mlp.out", final)
    trace = model.trace(
        chunk.clean,
        capture=[f"{site}{read}" for site in sites],
        logits="last",
    )
    norm = model.module.get_submodule(anatomy.final_norm or "")
    last = trace[f"{final}{read}"][:, 0].float()
    reader = _Reader(norm, last, directions)
    heads, mlps, biases = [], [], torch.zeros(len(chunk))
    for layer in range(anatomy.n_layers):
        z = trace[f"blocks.{layer}.attn.z{read}"][:, 0].float()
        outputs = torch.stack(
            [model.weights.W_O(layer, h).detach().float() for h in range(z.shape[1])]
        )
        written = torch.einsum("bhk,hkd->bhd", z, outputs)
        whole = trace[f"blocks.{layer}.attn.out{read}"][:, 0].float()
        heads.append(reader(written))
        biases = biases + reader((whole - written.sum(1)).unsqueeze(1))[:, 0]
        mlps.append(reader(trace[f"blocks.{layer}.mlp.out{read}"].float())[:, 0])
    start = reader(trace[f"blocks.0.resid_pre{read}"].float())[:, 0]
    logits = trace.logits
    total = _total(logits, chunk)
    constant = (
        total - reader(last.unsqueeze(1))[:, 0]
        if _has_bias(model, anatomy)
        else torch.zeros_like(total)
    )
    return {
        "heads": torch.stack(heads, 1).numpy(),
        "mlps": torch.stack(mlps, 1).numpy(),
        "embedding": start.numpy(),
        "biases": biases.numpy(),
        "constant": constant.numpy(),
        "total": total.numpy(),
    }


def _total(logits: torch.Tensor | None, chunk: Examples) -> torch.Tensor:
    if logits is None:
        raise MetricError("The model returned no logits.")
    lengths = torch.ones(len(chunk), dtype=torch.long)
    chosen = metric("logit_difference")
    return chosen(logits, lengths, chunk).detach().cpu()  # type: ignore[operator]


def _has_bias(model: Model, anatomy: Anatomy) -> bool:
    parts = [model.module.get_submodule(p) for p in (anatomy.final_norm, anatomy.tail.head) if p]
    return any(getattr(part, "bias", None) is not None for part in parts)


class _Reader:
    """Reads contributions ``[batch, part, d_model]`` along the metric through the frozen norm."""

    def __init__(self, norm: torch.nn.Module, last: torch.Tensor, directions: torch.Tensor) -> None:
        self._centers = centers(norm, last.shape[-1])
        self._scale = divisor(norm, last)
        gain = (
            norm_gain(norm).float()
            if getattr(norm, "weight", None) is not None
            else torch.ones(last.shape[-1])
        )
        self._direction = directions * gain.detach()

    def __call__(self, parts: torch.Tensor) -> torch.Tensor:
        centered = parts - parts.mean(-1, keepdim=True) if self._centers else parts
        read = centered / self._scale.unsqueeze(1)
        return torch.einsum("bpd,bd->bp", read, self._direction).detach().cpu()
