"""Sparse probing, targeted probe perturbation and correlation removal on a known truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import microtome as mt
from microtome.errors import ConfigError, DataError, EmptyDataError
from microtome.sae import SAE, Architecture, Origin
from microtome.sae.evaluation.labelled import (
    Pooled,
    correlation_removal,
    pool,
    probe_perturbation,
    sparse_probing,
)

WIDTH, N = 12, 400


def planted(seed: int = 0) -> tuple[Pooled, SAE, np.ndarray]:
    """Values with a direction for each class and one for a cue; a coder that has exactly these."""
    stream = np.random.default_rng(seed)
    directions = np.linalg.qr(stream.standard_normal((WIDTH, WIDTH)))[0]
    labels = stream.integers(0, 2, N)
    cue = stream.random(N) < 0.5
    latents = np.abs(stream.standard_normal((N, WIDTH))) * 0.1
    latents[:, 3] += 2.0 * (labels == 1)
    latents[:, 4] += 2.0 * (labels == 0)
    latents[:, 7] += 4.0 * cue
    others = [0, 1, 2, 5, 6, 8, 9, 10, 11]
    latents[:, others] += 3.0 * (stream.random((N, len(others))) < 0.5)
    train = np.arange(N) % 2 == 0
    values = latents @ directions
    make = Architecture(WIDTH, WIDTH, activation="relu", center=False)
    weight = torch.tensor(directions, dtype=torch.float32)
    zeros = torch.zeros(WIDTH)
    weights = {
        "W_enc": weight.clone(),
        "W_dec": weight.clone(),
        "b_enc": zeros,
        "b_dec": zeros.clone(),
    }
    data = Pooled(values, latents, latents, labels.astype(np.int64), ("no", "yes"), train)
    return data, SAE(make, weights=weights), cue


def test_one_latent_is_enough_where_one_coordinate_is_not() -> None:
    data, _, _ = planted()
    found = sparse_probing(data, ks=(1, 2))
    assert found.latents[0] == pytest.approx(1.0, abs=0.01)
    assert found.coordinates[0] < 0.9
    assert found.whole == pytest.approx(1.0, abs=0.01)
    assert 0.4 < found.chance < 0.65
    assert {found.chosen["yes"][0], found.chosen["no"][0]} <= {3, 4}


def test_shuffled_labels_are_at_chance() -> None:
    data, coder, cue = planted()
    stream = np.random.default_rng(1)
    noise = Pooled(
        data.values,
        data.latents,
        data.mean_latents,
        stream.permutation(data.labels),
        data.classes,
        data.train,
    )
    assert abs(sparse_probing(noise, ks=(1,)).latents[0] - 0.5) < 0.12


def test_ablating_a_class_hurts_its_own_probe() -> None:
    stream = np.random.default_rng(2)
    data, coder, _ = planted()
    labels = stream.integers(0, 3, N)
    latents = np.abs(stream.standard_normal((N, WIDTH))) * 0.1
    for c in range(3):
        latents[:, 2 * c] += 2.0 * (labels == c)
    values = latents @ coder.weights["W_dec"].detach().double().numpy()
    three = Pooled(values, latents, latents, labels.astype(np.int64), ("a", "b", "c"), data.train)
    found = probe_perturbation(three, coder, ns=(1,))
    assert found.own[0] > 0.2
    assert abs(found.others[0]) < 0.05
    assert found.score[0] == pytest.approx(found.own[0] - found.others[0])


def test_removing_the_cue_frees_the_biased_probe() -> None:
    data, coder, cue = planted()
    found = correlation_removal(data, coder, cue, ns=(1,))
    assert found.biased < found.clean
    assert found.score[0] > 0.8
    rotated = SAE(coder.architecture, seed=4)
    nothing = Pooled(
        data.values,
        data.latents,
        np.zeros_like(data.latents),
        data.labels,
        data.classes,
        data.train,
    )
    assert correlation_removal(nothing, rotated, cue, ns=(1,)).score[0] == pytest.approx(0)


def test_texts_are_pooled_over_their_tokens_and_split_by_class() -> None:
    model = mt.load("python-code")
    site = "blocks.1.resid_post"
    width = model.trace([[1]], capture=[site])[site].shape[-1]
    coder = SAE(Architecture(width, 30, activation="relu"), origin=Origin((site,), (site,)))
    texts = [f"x = {i}" for i in range(4)] + [f"def f{i}(a):" for i in range(4)]
    labels = ["assign"] * 4 + ["def"] * 4
    data = pool(model, coder, texts, labels, batch_size=3)
    trace = model.trace([texts[5]], capture=[site])[site][0]
    np.testing.assert_allclose(data.latents[5], coder.encode(trace).amax(0).detach(), atol=1e-4)
    np.testing.assert_allclose(data.values[5], trace.mean(0), atol=1e-4)
    assert data.train.sum() == 4
    assert data.labels[data.train].sum() == 2
    with pytest.raises(DataError, match="7 labels"):
        pool(model, coder, texts, labels[:-1])
    with pytest.raises(EmptyDataError, match="four texts"):
        pool(model, coder, texts[:5], labels[:5])
    with pytest.raises(ConfigError, match="ks are"):
        sparse_probing(data, ks=(0,))
