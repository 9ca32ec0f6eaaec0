"""Neurons: confidence (entropy) neurons, token neurons, position neurons, dead neurons."""

from __future__ import annotations

import functools

import numpy as np
import torch
from scipy import stats

from microtome.circuits.taxonomy.detector import Detector, Scores
from microtome.circuits.taxonomy.material import Material
from microtome.core.seeds import rng
from microtome.errors import ModelSupportError
from microtome.tracing.catalog import block_reason
from microtome.tracing.norms import centers, divisor

SILENT = 0.01
"""Share of the unembedding's squared singular values that its null space holds at most."""

OFTEN = 8
"""Times a token must occur to be a neuron's own."""

RARE = 0.003
"""Share of tokens at which the rarest neuron that is not dead is active."""

SHUFFLES = 6
"""Shuffles of the corpus's tokens."""

VALUES = 60_000_000
"""Activations that are held at once at most."""


def neuron_name(layer: int, neuron: int) -> str:
    """Return a neuron's name, ``m2.n17``."""
    return f"m{layer}.n{neuron}"


class Activations:
    """Activations of all neurons on the corpus, layer by layer; read once."""

    def __init__(self, material: Material) -> None:
        self.material = material
        blocks = material.anatomy.blocks
        self.layers = [
            n for n, b in enumerate(blocks) if b.mlp is not None and not block_reason(b, "mlp.act")
        ]
        if not self.layers:
            raise ModelSupportError("no block shows the activations of its neurons")
        widths = sum(b.mlp.d_mlp for n, b in enumerate(blocks) if n in self.layers and b.mlp)
        length = material.corpus_tokens.shape[1]
        rows = max(4, VALUES // max(1, widths * length))
        self.tokens = material.corpus_tokens[:rows]

    @functools.cached_property
    def values(self) -> dict[int, torch.Tensor]:
        """By layer ``[row, pos, neuron]``, rows without their BOS tokens."""
        first = self.material.inputs.first
        sites = [f"blocks.{n}.mlp.act" for n in self.layers]
        trace = self.material.model.trace(
            self.tokens, capture=sites, logits=None, to="cpu", dtype=torch.float32
        )
        return {n: trace[s].detach()[:, first:] for n, s in zip(self.layers, sites, strict=True)}

    @property
    def content(self) -> torch.Tensor:
        """The tokens without BOS ``[row, pos]``."""
        return self.tokens[:, self.material.inputs.first :]

    @functools.cached_property
    def highest(self) -> dict[int, np.ndarray]:
        """By layer, the highest value that each neuron's non-linearity reads ``[neuron]``.

        A ReLU's neuron is active where that is above 0; of smooth non-linearities (GELU, SiLU) the
        same sign divides the side that is passed on from the side that is cut off.
        """
        sites = {}
        for layer in self.layers:
            block = self.material.anatomy.blocks[layer]
            site = "mlp.gate" if not block_reason(block, "mlp.gate") else "mlp.pre"
            if not block_reason(block, site):
                sites[layer] = f"blocks.{layer}.{site}"
        if not sites:
            raise ModelSupportError("no block shows what its neurons' non-linearity reads")
        trace = self.material.model.trace(
            self.tokens, capture=list(sites.values()), logits=None, to="cpu"
        )
        first = self.material.inputs.first
        return {
            n: trace[s].detach()[:, first:].float().amax((0, 1)).numpy() for n, s in sites.items()
        }


def confidence(material: Material) -> Scores:
    """Score the share of a neuron's output that the unembedding does not read.

    Null: a random direction, whose share in a subspace of k of d dimensions is Beta distributed.
    The neuron must also act on the next-token entropy through the final norm's scale for more than
    half.
    """
    table = material.unembedding.double()
    values, vectors = torch.linalg.eigh(table @ table.T)
    power = values.clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
    kept = int((power <= SILENT).sum())
    width = len(values)
    if kept == 0 or kept >= width:
        raise ModelSupportError("the unembedding has no directions that it hardly reads")
    silent = vectors[:, :kept]
    names, shares, details, allowed = [], [], {}, []
    for layer, block in enumerate(material.anatomy.blocks):
        if block.mlp is None or block.mlp.down is None or not block.mlp.neurons_add_up:
            continue
        out = material.model.weights.neuron_out(layer).detach().double().cpu()
        share = (out @ silent).square().sum(1) / out.square().sum(1).clamp(min=1e-30)
        through = _through_scale(material, layer, out.float(), share.numpy())
        for neuron, value in enumerate(share.tolist()):
            name = neuron_name(layer, neuron)
            names.append(name)
            shares.append(value)
            allowed.append(through.get(neuron, 0.0) > 0.5)
            if neuron in through:
                details[name] = (
                    f"{through[neuron]:.0%} of its effect on the entropy goes through the norm"
                )
    if not names:
        raise ModelSupportError("no block whose neurons' outputs add up")
    score = np.array(shares)
    law = stats.beta(kept / 2, (width - kept) / 2)
    return _neurons(
        tuple(names), score, np.full(len(score), law.mean()), np.full(len(score), law.std()),
        law.sf(score), np.array(allowed), details,
    )  # fmt: skip


TRIED = 16
"""Neurons of a layer whose effect through the final norm is measured: those with most share."""


def _through_scale(
    material: Material, layer: int, out: torch.Tensor, share: np.ndarray
) -> dict[int, float]:
    """Return the share of each neuron's direct effect on the entropy that the norm's scale makes.

    The neuron is set to its mean in the last stream, once with the norm's scale as it becomes and
    once frozen (Stolfo 2024).
    """
    anatomy = material.anatomy
    path = anatomy.final_norm
    if path is None or not anatomy.tail.exact or anatomy.tail.head is None:
        return {}
    sites = [f"blocks.{anatomy.n_layers - 1}.resid_post", f"blocks.{layer}.mlp.act"]
    rows = material.corpus_tokens[:8]
    trace = material.model.trace(rows, capture=sites, logits=None)
    stream, acts = (trace[s].detach().float().flatten(0, 1).cpu() for s in sites)
    norm = material.model.module.get_submodule(path)
    table = material.unembedding
    center = centers(norm, stream.shape[-1])

    def entropy(value: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        read = value - value.mean(-1, keepdim=True) if center else value
        logp = ((read / scale) @ table).log_softmax(-1)
        return -(logp.exp() * logp).sum(-1)

    frozen = divisor(norm, stream)
    plain = entropy(stream, frozen)
    found = {}
    for neuron in np.argsort(-share, kind="stable")[:TRIED].tolist():
        change = (acts[:, neuron].mean() - acts[:, neuron]).unsqueeze(1) * out[neuron]
        moved = stream + change
        total = entropy(moved, divisor(norm, moved)) - plain
        direct = entropy(moved, frozen) - plain
        by_scale = float((total - direct).abs().mean())
        found[neuron] = by_scale / max(by_scale + float(direct.abs().mean()), 1e-12)
    return found


def token_neurons(material: Material) -> Scores:
    """Score the share of a neuron's variance that one token explains, the best for it."""
    found = material.once(Activations)
    tokens = found.content.flatten()
    known, places, counts = torch.unique(tokens, return_inverse=True, return_counts=True)
    often = counts >= OFTEN
    if not bool(often.any()):
        raise ModelSupportError(f"no token occurs {OFTEN} times in the corpus")
    stream = rng(material.inputs.seed, "token neurons")
    orders = [torch.from_numpy(stream.permutation(len(tokens))) for _ in range(SHUFFLES)]
    parts, values, means, sds, details = [], [], [], [], {}
    for layer, acts in found.values.items():
        flat = acts.flatten(0, 1)
        own, best = _explained_by_token(flat, places, counts, often)
        drawn = np.stack([_explained_by_token(flat, places[o], counts, often)[0] for o in orders])
        names = [neuron_name(layer, n) for n in range(flat.shape[1])]
        texts = material.model.tokens(known[best])
        details.update({n: f"token {t!r}" for n, t in zip(names, texts, strict=True)})
        parts += names
        values.append(own)
        means.append(drawn.mean(0))
        sds.append(np.maximum(drawn.std(0, ddof=1), 1e-6))
    score, mean, sd = (np.concatenate(x) for x in (values, means, sds))
    return _neurons(
        tuple(parts), score, mean, sd, stats.t.sf((score - mean) / sd, SHUFFLES - 1),
        np.ones(len(parts), dtype=bool), details,
    )  # fmt: skip


def _explained_by_token(
    flat: torch.Tensor, places: torch.Tensor, counts: torch.Tensor, often: torch.Tensor
) -> tuple[np.ndarray, torch.Tensor]:
    """Return the largest share of variance that a token explains, and which ``[neuron]``."""
    total = flat.shape[0]
    sums = torch.zeros(len(counts), flat.shape[1]).index_add_(0, places, flat)
    mean, variance = flat.mean(0), flat.var(0, unbiased=False).clamp(min=1e-20)
    n = counts.float().unsqueeze(1)
    above = (sums / n - mean).clamp(min=0)
    share = n * above.square() / (1 - n / total).clamp(min=1e-6) / (total * variance)
    share = torch.where(often.unsqueeze(1), share, torch.zeros_like(share))
    best = share.max(0)
    return best.values.clamp(max=1.0).numpy(), best.indices


def position_neurons(material: Material) -> Scores:
    """Score the share of a neuron's variance that the position explains, the first one aside."""
    found = material.once(Activations)
    parts, values = [], []
    rows, length = found.content.shape
    for layer, acts in found.values.items():
        kept = acts[:, 1:]
        mean = kept.mean((0, 1))
        between = (kept.mean(0) - mean).square().mean(0)
        variance = (kept - mean).square().mean((0, 1)).clamp(min=1e-20)
        values.append((between / variance).numpy())
        parts += [neuron_name(layer, n) for n in range(kept.shape[-1])]
    score = np.concatenate(values)
    # under no link with the position the share is Beta distributed (analysis of variance)
    law = stats.beta((length - 2) / 2, (rows * (length - 1) - (length - 1)) / 2)
    return _neurons(
        tuple(parts), score, np.full(len(score), law.mean()), np.full(len(score), law.std()),
        law.sf(score), np.ones(len(parts), dtype=bool), {},
    )  # fmt: skip


def dead(material: Material) -> Scores:
    """Score 1 for a neuron whose non-linearity never reads a value above 0 on the corpus."""
    found = material.once(Activations)
    tokens = found.content.numel()
    # how often the rarest neuron that is not dead stays silent by chance
    chance = (1 - RARE) ** tokens
    parts, values = [], []
    for layer, most in found.highest.items():
        parts += [neuron_name(layer, n) for n in range(len(most))]
        values.append((most <= 0).astype(float))
    score = np.concatenate(values)
    sd = (chance * (1 - chance)) ** 0.5
    return _neurons(
        tuple(parts), score, np.full(len(score), chance), np.full(len(score), max(sd, 1e-9)),
        np.where(score > 0, chance, 1.0), np.ones(len(parts), dtype=bool),
        {p: f"not above 0 at {tokens} tokens" for p, v in zip(parts, score, strict=True) if v},
    )  # fmt: skip


def _neurons(
    parts: tuple[str, ...],
    score: np.ndarray,
    mean: np.ndarray,
    sd: np.ndarray,
    p: np.ndarray,
    allowed: np.ndarray,
    details: dict[str, str],
) -> Scores:
    return Scores(parts, score, mean, sd, p, allowed, details)


NEURONS = (
    Detector(
        "confidence", "neuron",
        f"share of the output vector in directions that hold {SILENT:.0%} of the unembedding's "
        "power; more than half of its effect on the entropy must go through the norm's scale",
        "Stolfo 2024, Gurnee 2024", "corpus", "a random direction (Beta law)", confidence,
        nulls=("shuffle", "others"), threshold=0.3, standing="microtome",
    ),
    Detector(
        "token", "neuron",
        "share of the activation's variance that being at one token explains, the best token",
        "Gurnee 2024", "corpus", "the corpus's tokens shuffled", token_neurons,
        nulls=("shuffle", "twin"), threshold=0.5,
    ),
    Detector(
        "position", "neuron",
        "share of the activation's variance that the position explains, the first one aside",
        "Voita 2023, Gurnee 2024", "corpus", "no link with the position (Beta law)",
        position_neurons, nulls=("shuffle", "twin"), threshold=0.5,
    ),
    Detector(
        "dead", "neuron",
        "never active: what the non-linearity reads is nowhere above 0 on the corpus",
        "Voita 2023", "corpus", f"a neuron active at {RARE:.1%} of the tokens", dead,
        nulls=("shuffle",), threshold=0.5, standing="paper",
    ),
)  # fmt: skip
"""Detectors of neurons."""
