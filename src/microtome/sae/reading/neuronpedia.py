"""Dashboards as the JSON batches that SAEDashboard's Neuronpedia runner writes, both ways.

A folder holds ``batch-0.json``, ``batch-1.json`` ... with up to 128 latents each,
``skipped_indexes.json`` with those that are never active, and ``run_settings.json``. Numbers are
rounded to three decimals, as there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.core.hashing import sha256_arrays
from microtome.core.progress import Progress, quiet
from microtome.errors import ConfigError, FormatError
from microtome.sae.formats.parts import read_json, want
from microtome.sae.reading.examples import quantile_examples, top_examples
from microtome.sae.reading.index import LatentIndex
from microtome.sae.reading.neuronpedia_fields import Activation, Feature
from microtome.sae.reading.relations import correlated, cosines, logit_table
from microtome.store.atomic import atomic_folder, write_text
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from microtome.sae.coder import SAE
    from microtome.tracing.model import Model

BINS = 50
"""Bars of both histograms."""

_BATCH = re.compile(r"batch-(\d+)\.json")


@dataclass(frozen=True)
class Place:
    """Where Neuronpedia files dashboards.

    Attributes:
        model_id: Name of the model there.
        sae_set: Name of the set of coders.
        layer: Layer of the coder; found by its site unless given.
        suffix: Told apart from other coders of the set and layer by it; None for none.
        dataset: Name of the text.
    """

    model_id: str
    sae_set: str
    layer: int | None = None
    suffix: str | None = None
    dataset: str = ""


def export(
    model: Model,
    coder: SAE,
    index: LatentIndex,
    folder: str | Path,
    *,
    place: Place,
    latents: Sequence[int] | None = None,
    batch: int = 128,
    top: int = 20,
    quantiles: tuple[int, int] = (5, 5),
    around: tuple[int, int] = (64, 32),
    vectors: bool = False,
    seed: int = 0,
    progress: Progress = quiet,
) -> Path:
    """Write the dashboards of a coder's latents as JSON batches.

    Args:
        model: The model.
        coder: The coder.
        index: Its index; the neurons in it are written, too.
        folder: Where to write.
        place: Where Neuronpedia files them.
        latents: Which latents; all unless given. Those never active are listed as skipped.
        batch: Latents in a file.
        top: Strongest examples of each.
        quantiles: Bins of its range, and examples of each bin.
        around: Tokens before and behind the one an example is about.
        vectors: Whether to write the decoder directions, for steering there.
        seed: Decides the examples of the bins.
        progress: Told how many latents are written.

    Raises:
        ConfigError: A number is out of range, the layer is not known, or the index is of another
            coder.
        ModelSupportError: The model has no unembedding, or the coder does not write to the stream.
        OutputError: The folder could not be written.
    """
    if batch < 1:
        raise ConfigError(f"batch={batch}; expected 1 or more")
    _require_own(index, coder)
    chosen = range(index.d_sae) if latents is None else sorted(set(latents))
    alive = [n for n in chosen if len(index.positions(n)[0])]
    layer = place.layer if place.layer is not None else _layer(coder)
    head = {"model_id": place.model_id, "layer": layer, "sae_set": place.sae_set}
    writer = _Writer(model, coder, index, place.dataset, top, quantiles, around, vectors, seed)
    with atomic_folder(folder) as files:
        for number in range(math.ceil(len(alive) / batch)):
            part = alive[number * batch : (number + 1) * batch]
            features = [f.to_dict() for f in writer.features(part)]
            content = {**head, "sae_id_suffix": place.suffix, "features": features}
            write_text(files / f"batch-{number}.json", _json(content))
            progress.step(min((number + 1) * batch, len(alive)), len(alive), "latents")
        skipped = sorted(set(chosen) - set(alive))
        never = {**head, "layer": str(layer), "log_sparsity": None, "skipped_indexes": skipped}
        write_text(files / "skipped_indexes.json", _json(never))
        settings = {
            **head, **asdict(place), "layer": layer, "n_features_at_a_time": batch,
            "n_prompts_total": writer.prompts, "n_tokens_in_prompt": writer.width,
            "sae_path": "", "seed": seed,
        }  # fmt: skip
        write_text(files / "run_settings.json", _json(settings))
    return Path(folder)


def read_batches(folder: str | Path) -> list[Feature]:
    """Read JSON batches, of whatever tool, with their fields checked.

    Returns:
        The dashboards of all batches, in the order of the files' numbers.

    Raises:
        FormatError: There is no batch, or a field is missing or of another type.
    """
    place = Path(folder)
    files = place.iterdir() if place.is_dir() else ()
    found = {p: m for p in files if (m := _BATCH.fullmatch(p.name))}
    if not found:
        raise FormatError(f"{place} holds no batch-N.json; give a folder of Neuronpedia batches")
    features: list[Feature] = []
    for path in sorted(found, key=lambda p: int(found[p].group(1))):
        for number, raw in enumerate(want(read_json(path), "features", list, path)):
            features.append(Feature.of(raw, f"{path}, feature {number}"))
    return features


@dataclass(frozen=True, eq=False)
class _Writer:
    model: Model
    coder: SAE
    index: LatentIndex
    dataset: str
    top: int
    quantiles: tuple[int, int]
    around: tuple[int, int]
    vectors: bool
    seed: int

    @property
    def prompts(self) -> int:
        """Contexts of the index."""
        return len(self.index.contexts) - 1

    @property
    def width(self) -> int:
        """Tokens of the longest context."""
        return int(np.diff(self.index.contexts).max(initial=0))

    def features(self, latents: Sequence[int]) -> list[Feature]:
        """Return the dashboards of some latents."""
        effects = logit_table(self.model, self.coder, latents).float().cpu().numpy()
        return [self._feature(n, row) for n, row in zip(latents, effects, strict=True)]

    def _feature(self, latent: int, effects: NDArray[np.float32]) -> Feature:
        index = self.index
        _, values = index.positions(latent)
        direction = self.coder.weights["W_dec"][latent].detach().double().cpu().numpy()
        aligned = np.argsort(-np.abs(direction), kind="stable")[:3]
        like = correlated(index, latent, index, n=3)
        order = np.argsort(effects, kind="stable")
        down, up = order[:10], order[::-1][:10]
        strength, logits = _bars(values), _bars(effects)
        numbers, pearson, cosine = self._neurons(latent)
        return Feature(
            feature_index=latent,
            neuron_alignment_indices=aligned.tolist(),
            neuron_alignment_values=_rounded(direction[aligned]),
            neuron_alignment_l1=_rounded(np.abs(direction[aligned]) / np.abs(direction).sum()),
            correlated_neurons_indices=numbers,
            correlated_neurons_pearson=pearson,
            correlated_neurons_l1=cosine,
            correlated_features_indices=like.numbers.tolist(),
            correlated_features_pearson=_rounded(like.values),
            correlated_features_l1=_rounded(cosines(index, latent, like.numbers)),
            neg_str=self.model.tokens(down.tolist()),
            neg_values=_rounded(effects[down]),
            pos_str=self.model.tokens(up.tolist()),
            pos_values=_rounded(effects[up]),
            frac_nonzero=float(index.density[latent]),
            freq_hist_data_bar_values=strength[0],
            freq_hist_data_bar_heights=strength[1],
            logits_hist_data_bar_values=logits[0],
            logits_hist_data_bar_heights=logits[1],
            n_prompts_total=self.prompts,
            n_tokens_in_prompt=self.width,
            dataset=self.dataset,
            decoder_weights_dist=self._by_head(direction),
            activations=self._activations(latent),
            vector=_rounded(direction, 6) if self.vectors else [],
        )

    def _neurons(self, latent: int) -> tuple[list[int], list[float], list[float]]:
        found = self.index.neurons
        if found is None:
            return [], [], []
        return (
            found.numbers[latent, :3].tolist(),
            _rounded(found.pearson[latent, :3]),
            _rounded(found.cosine[latent, :3]),
        )

    def _by_head(self, direction: NDArray[np.float64]) -> list[float]:
        """Return each head's share of the direction, for a coder of the heads' values."""
        target = at(self.coder.origin.targets[-1])
        heads = self.model.anatomy.n_heads if self.model.anatomy is not None else 0
        if "head" not in target.axes or not heads or len(direction) % heads:
            return []
        sizes = np.linalg.norm(direction.reshape(heads, -1), axis=1)
        return _rounded(sizes / max(float(sizes.sum()), 1e-30), 4)

    def _activations(self, latent: int) -> list[Activation]:
        index, (bins, per_bin), (before, after) = self.index, self.quantiles, self.around
        sizes = np.abs(index.positions(latent)[1])
        largest = float(sizes.max())
        best = top_examples(index, latent, n=self.top, before=before, after=after)
        rows = [(e, -1.0, largest, -1.0) for e in best]
        drawn = quantile_examples(
            index, latent, bins=bins, per_bin=per_bin, before=before, after=after, seed=self.seed
        )
        bin_of = np.minimum((sizes / largest * bins).astype(int), bins - 1)
        shares = np.bincount(bin_of, minlength=bins) / len(sizes)
        # The strongest bin first, as there.
        for e in sorted(drawn, key=lambda e: -(e.quantile or 0)):
            q = e.quantile or 0
            rows.append((e, largest * q / bins, largest * (q + 1) / bins, float(shares[q])))
        return [
            Activation(
                tokens=list(e.tokens),
                values=_rounded(e.values),
                bin_min=round(low, 3),
                bin_max=round(high, 3),
                bin_contains=round(share, 5),
                qualifying_token_index=e.focus,
            )
            for e, low, high, share in rows
        ]


def _require_own(index: LatentIndex, coder: SAE) -> None:
    """Refuse a coder whose latents are not those of the index."""
    known = index.details.get("coder")
    own = sha256_arrays({name: weight.detach() for name, weight in coder.weights.items()})
    if index.d_sae != coder.d_sae or (known and known != own):
        raise ConfigError(
            f"the index is of another coder, with {index.d_sae} latents; this one has "
            f"{coder.d_sae} and other weights: index the text with it"
        )


def _layer(coder: SAE) -> int:
    layers = at(coder.origin.sources[0]).layer if coder.origin.sources else None
    if not isinstance(layers, tuple) or len(layers) != 1:
        raise ConfigError(
            f"the coder reads {', '.join(coder.origin.sources) or 'no site'}, which is not of one "
            "layer; give the layer under which Neuronpedia files it"
        )
    return int(layers[0])


def _bars(values: NDArray[Any]) -> tuple[list[float], list[float]]:
    """Return the middles and heights of a histogram."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    heights, edges = np.histogram(values, bins=BINS, range=(low, high))
    return _rounded((edges[:-1] + edges[1:]) / 2), heights.astype(float).tolist()


def _rounded(values: NDArray[Any], digits: int = 3) -> list[float]:
    rounded: list[float] = np.round(np.asarray(values, dtype=np.float64), digits).tolist()
    return rounded


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False)
