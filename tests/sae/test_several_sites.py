"""Coders of several sites, from harvest to the trained coder: planted features are found."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from tests.sae.planted import FEATURES, Planted, planted
from torch import Tensor
from torch.nn.functional import cosine_similarity

from microtome.errors import UnknownNameError
from microtome.sae import (
    SAE,
    ActivationStore,
    Architecture,
    Config,
    evaluate,
    harvest,
    train,
)

STREAMS = tuple(f"blocks.{n}.resid_post" for n in range(2))
READS, WRITES = (tuple(f"blocks.{n}.mlp.{end}" for n in range(2)) for end in ("in", "out"))


@cache
def truth() -> Planted:
    return planted()


@cache
def store() -> ActivationStore:
    model = truth()
    sites = ["resid_post", "mlp.in", "mlp.out"]
    return harvest(
        model.model, model.texts(120), sites=sites, folder=Path(mkdtemp()), dtype="float32"
    )


def config(**settings: object) -> Config:
    given = {"d_sae": 64, "steps": 400, "batch_size": 256, "lr": 5e-3, "k": 3, **settings}
    return Config(**given, precision="float32")  # type: ignore[arg-type]


@cache
def cross_layer() -> SAE:
    return train(store(), config(reach="later"), sources=["mlp.in"], targets=["mlp.out"])


def found(coder: SAE, wanted: Tensor) -> Tensor:
    """Return for each latent and feature the cosine at that site where they are least alike."""
    rows = coder.weights["W_dec"].detach()
    parts = [rows[:, site] for site in coder.architecture.target_slices]
    alike = [
        cosine_similarity(part[:, None], there[None], dim=-1)
        for part, there in zip(parts, wanted, strict=True)
    ]
    return torch.stack(alike).amin(0)


def test_a_crosscoder_finds_the_features_that_streams_share() -> None:
    run = train(store(), config(), sources=["resid_post"])
    assert run.origin.sources == run.origin.targets == STREAMS
    assert run.summary.fvu < 0.05 and 2.5 < run.summary.l0 < 3.5
    alike = found(run, truth().features.expand(2, -1, -1)).amax(0)
    assert int((alike > 0.9).sum()) >= FEATURES - 1
    random = found(SAE(run.architecture, seed=5), truth().features.expand(2, -1, -1)).amax(0)
    assert float(random.max()) < 0.6


def test_a_cross_layer_transcoder_finds_what_both_mlps_compute() -> None:
    run = cross_layer()
    make = run.architecture
    assert run.origin.sources == READS and run.origin.targets == WRITES
    assert (make.sources, make.targets, make.center) == ((48, 48), (48, 48), False)
    assert run.summary.fvu < 0.01
    # one latent of block 0 writes what both blocks make of a feature, and reads that feature
    alike = found(run, truth().writes)[make.latent_slices[0]]
    assert int((alike.amax(0) > 0.9).sum()) >= FEATURES - 1
    reads = run.weights["W_enc"].detach()[alike.argmax(0)]
    assert float(cosine_similarity(reads, truth().features).median()) > 0.8


def test_own_latents_are_a_transcoder_for_each_block() -> None:
    run = train(store(), config(reach="own", k=6), sources=["mlp.in"], targets=["mlp.out"])
    assert run.summary.fvu < 0.01
    first, second = run.architecture.latent_slices
    rows, (a, b) = run.weights["W_dec"].detach(), run.architecture.target_slices
    assert not rows[first, b].any() and not rows[second, a].any()
    assert rows[first, a].any() and rows[second, b].any()


def test_a_coder_of_several_sites_is_measured_in_its_model() -> None:
    table = evaluate(truth().model, cross_layer(), truth().texts(8)).to_frame()
    assert table.loc["sae", "fvu"] < 0.02 < table.loc["random", "fvu"]
    # random directions that are fitted write little but the mean
    assert table.loc["sae", "kl_spliced"] < table.loc["random", "kl_spliced"] / 5


@pytest.mark.parametrize("reach", ["all", "own", "later"])
def test_initial_weights_can_be_trained_in_place(reach: str) -> None:
    # fused Adam took a view of wider rows for a whole matrix, and such coders grew worse
    make = Architecture(9, 12, d_out=9, sources=(4, 5), targets=(4, 5), reach=reach, center=False)  # type: ignore[arg-type]
    assert all(weight.is_contiguous() for weight in SAE(make).weights.values())


def test_unknown_sites_are_named() -> None:
    with pytest.raises(UnknownNameError, match=r"attn\.out"):
        train(store(), config(), sources=["attn.out"])
