"""JSON batches for Neuronpedia: their fields, their figures, and reading them back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import microtome as mt
from microtome.errors import ConfigError, FormatError
from microtome.sae import SAE, Architecture, LatentIndex, Origin, index
from microtome.sae.reading.neuronpedia import Place, export, read_batches
from microtome.sae.reading.relations import logit_effects
from microtome.tracing.model import Model

SITE = "blocks.2.resid_post"
TEXTS = [f"def f{i}(a, b='x'):\n    return [a, 'y{i}', \"z\"]\n" * 2 for i in range(6)]
PLACE = Place("python-code", "res-test", dataset="made up")

FEATURE = {
    "feature_index", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_pearson", "correlated_neurons_l1",
    "correlated_features_indices", "correlated_features_pearson", "correlated_features_l1",
    "neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero",
    "freq_hist_data_bar_values", "freq_hist_data_bar_heights", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values", "n_prompts_total", "n_tokens_in_prompt", "dataset",
    "decoder_weights_dist", "activations", "vector",
}  # fmt: skip
ACTIVATION = {
    "bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index",
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return mt.load("python-code")


@pytest.fixture(scope="module")
def coder(model: Model) -> SAE:
    width = model.trace([[1]], capture=[SITE])[SITE].shape[-1]
    make = Architecture(width, 300, activation="topk", k=4)
    return SAE(make, seed=1, origin=Origin((SITE,), (SITE,)))


@pytest.fixture(scope="module")
def read(model: Model, coder: SAE) -> LatentIndex:
    return index(model, coder, TEXTS, context=48, neurons="blocks.2.mlp.act")


@pytest.fixture(scope="module")
def folder(
    model: Model, coder: SAE, read: LatentIndex, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    place = tmp_path_factory.mktemp("export") / "batches"
    return export(model, coder, read, place, place=PLACE, batch=50)


def test_files_have_the_runner_s_names_and_fields(folder: Path, read: LatentIndex) -> None:
    alive = int((read.counts > 0).sum())
    names = {f"batch-{n}.json" for n in range(-(-alive // 50))}
    assert {p.name for p in folder.iterdir()} == names | {
        "skipped_indexes.json",
        "run_settings.json",
    }
    batch = json.loads((folder / "batch-0.json").read_text())
    assert set(batch) == {"model_id", "layer", "sae_set", "sae_id_suffix", "features"}
    assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("python-code", 2, "res-test")
    assert len(batch["features"]) == 50
    for feature in batch["features"]:
        assert set(feature) == FEATURE
        for activation in feature["activations"]:
            assert set(activation) == ACTIVATION
            assert len(activation["tokens"]) == len(activation["values"])
    skipped = json.loads((folder / "skipped_indexes.json").read_text())
    assert skipped["skipped_indexes"] == np.flatnonzero(read.counts == 0).tolist()
    assert set(skipped) == {"model_id", "layer", "sae_set", "log_sparsity", "skipped_indexes"}
    assert skipped["layer"] == "2"


def test_figures_are_those_of_the_index(
    folder: Path, model: Model, coder: SAE, read: LatentIndex
) -> None:
    features = {f.feature_index: f for f in read_batches(folder)}
    assert sorted(features) == np.flatnonzero(read.counts).tolist()
    latent = int(read.counts.argmax())
    found = features[latent]
    dense = read.matrix().toarray().astype(np.float64)
    assert found.frac_nonzero == pytest.approx((dense[:, latent] != 0).mean())
    assert sum(found.freq_hist_data_bar_heights) == read.counts[latent]
    effects = logit_effects(model, coder, latent)
    assert found.pos_str[0] == model.tokens([int(effects.argmax())])[0]
    assert found.pos_values[0] == pytest.approx(float(effects.max()), abs=6e-4)
    assert found.neg_values[0] == pytest.approx(float(effects.min()), abs=6e-4)
    other = found.correlated_features_indices[0]
    pearson = np.corrcoef(dense[:, latent], dense[:, other])[0, 1]
    assert found.correlated_features_pearson[0] == pytest.approx(pearson, abs=6e-4)
    sizes = np.linalg.norm(dense, axis=0)
    cosine = dense[:, latent] @ dense[:, other] / (sizes[latent] * sizes[other])
    assert found.correlated_features_l1[0] == pytest.approx(cosine, abs=6e-4)
    assert read.neurons is not None
    assert found.correlated_neurons_indices == read.neurons.numbers[latent, :3].tolist()


def test_examples_lie_in_their_bins_and_the_strongest_come_first(
    folder: Path, read: LatentIndex
) -> None:
    latent = int(read.counts.argmax())
    (found,) = [f for f in read_batches(folder) if f.feature_index == latent]
    first = found.activations[0]
    assert (first.bin_min, first.bin_contains) == (-1, -1)
    assert max(first.values) == pytest.approx(float(read.largest[latent]), abs=6e-4)
    binned = [a for a in found.activations if a.bin_min >= 0]
    assert binned
    for a in binned:
        value = a.values[a.qualifying_token_index]
        assert a.bin_min - 1e-3 <= value <= a.bin_max + 1e-3
    shares = {(a.bin_min, a.bin_contains) for a in binned}
    assert sum(share for _, share in shares) == pytest.approx(1, abs=1e-3)


def test_what_is_read_back_is_written_the_same(folder: Path) -> None:
    raw = json.loads((folder / "batch-0.json").read_text())["features"]
    assert [f.to_dict() for f in read_batches(folder)[:50]] == raw


def test_directions_are_written_on_request(
    model: Model, coder: SAE, read: LatentIndex, tmp_path: Path
) -> None:
    latent = int(read.counts.argmax())
    export(model, coder, read, tmp_path / "v", place=PLACE, latents=[latent], vectors=True)
    (found,) = read_batches(tmp_path / "v")
    expected = coder.weights["W_dec"][latent].detach().numpy()
    np.testing.assert_allclose(found.vector, expected, atol=1e-6)


def test_batches_of_other_tools_are_read_and_damaged_ones_refused(
    folder: Path, tmp_path: Path
) -> None:
    feature = json.loads((folder / "batch-0.json").read_text())["features"][0]
    activation = {**feature["activations"][0], "dfa_values": [1, 2.5], "dfa_targetIndex": 0}
    del activation["qualifying_token_index"]  # older versions have none
    place = tmp_path / "batch-10.json"
    foreign = {**feature, "activations": [activation], "later_field": 1, "frac_nonzero": 0}
    place.write_text(json.dumps({"features": [foreign]}))
    (found,) = read_batches(tmp_path)
    assert found.activations[0].dfa_values == [1.0, 2.5]
    assert found.frac_nonzero == 0.0
    for broken, named in (
        ({k: v for k, v in feature.items() if k != "pos_str"}, "no 'pos_str'"),
        ({**feature, "pos_values": ["a"]}, "pos_values"),
        ({**feature, "feature_index": True}, "feature_index"),
        ({**feature, "activations": [3]}, "expected a JSON object"),
    ):
        place.write_text(json.dumps({"features": [broken]}))
        with pytest.raises(FormatError, match=named):
            read_batches(tmp_path)
    with pytest.raises(FormatError, match="no batch"):
        read_batches(tmp_path / "nothing")


def test_a_coder_without_one_layer_needs_it_told(
    model: Model, coder: SAE, read: LatentIndex, tmp_path: Path
) -> None:
    embedding = SAE(coder.architecture, seed=1, origin=Origin(("embed.token",), (SITE,)))
    with pytest.raises(ConfigError, match="give the layer"):
        export(model, embedding, read, tmp_path / "a", place=PLACE)
    with pytest.raises(ConfigError, match="batch=0"):
        export(model, coder, read, tmp_path / "a", place=PLACE, batch=0)
    assert not (tmp_path / "a").exists()


def test_an_index_of_another_coder_is_refused(
    model: Model, coder: SAE, read: LatentIndex, tmp_path: Path
) -> None:
    for latents, seed in ((301, 1), (300, 2)):
        make = Architecture(coder.d_in, latents, activation="topk", k=4)
        other = SAE(make, seed=seed, origin=coder.origin)
        with pytest.raises(ConfigError, match="index is of another coder, with 300 latents"):
            export(model, other, read, tmp_path / "batches", place=PLACE)
    assert not (tmp_path / "batches").exists()
