"""Evaluating coders: figures by hand, coders of which the answer is known, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import microtome as mt
from microtome.errors import EmptyDataError, ShapeError, SiteError
from microtome.models.families import build
from microtome.sae import SAE, Architecture, Origin, agreement, evaluate, reconstruct
from microtome.tracing.model import Model

TEXTS = [[5, 9, 2, 7, 1], [3, 3, 8], [4, 6, 1, 2]]


@pytest.fixture(scope="module")
def model() -> Model:
    return mt.load(build("gpt2"))


def identity(sites: tuple[str, ...], targets: tuple[str, ...], width: int) -> SAE:
    make = Architecture(width, 2 * width, activation="relu", center=False)
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    weights = {
        "W_enc": both.clone(),
        "W_dec": both.clone(),
        "b_enc": torch.zeros(2 * width),
        "b_dec": torch.zeros(width),
    }
    return SAE(make, origin=Origin(sites, targets), weights=weights)


def width_of(model: Model, site: str) -> int:
    return model.trace([[1, 2]], capture=[site])[site].flatten(2).shape[-1]


@pytest.mark.parametrize("site", ["blocks.1.resid_post", "blocks.0.attn.z", "blocks.0.mlp.act"])
def test_a_perfect_coder_costs_the_model_nothing(model: Model, site: str) -> None:
    coder = identity((site,), (site,), width_of(model, site))
    found = evaluate(model, coder, TEXTS, baselines=False).rows[0]
    assert found.reconstruction.fvu == pytest.approx(0, abs=1e-12)
    assert found.recovery.cross_entropy["spliced"] == found.recovery.cross_entropy["clean"]
    assert found.recovery.recovered() == 1.0
    assert found.recovery.divergence["spliced"] == pytest.approx(0, abs=1e-6)


def test_a_coder_of_the_mean_is_mean_ablation(model: Model) -> None:
    site = "blocks.0.mlp.out"
    coder = identity((site,), (site,), width_of(model, site))
    values = torch.cat([model.trace([t], capture=[site])[site][0] for t in TEXTS])
    with torch.no_grad():
        coder.weights["W_enc"].zero_()
        coder.weights["b_dec"].copy_(values.mean(0))
    found = evaluate(model, coder, TEXTS, baselines=False).rows[0]
    assert found.reconstruction.fvu == pytest.approx(1, abs=1e-6)
    assert found.recovery.cross_entropy["spliced"] == pytest.approx(
        found.recovery.cross_entropy["mean"], abs=1e-6
    )


def test_cross_entropy_is_the_models_own(model: Model) -> None:
    site = "blocks.1.resid_post"
    coder = identity((site,), (site,), width_of(model, site))
    found = evaluate(model, coder, TEXTS, baselines=False, batch_size=2).rows[0].recovery
    losses = []
    for ids in TEXTS:
        logits = model.trace([ids]).logits
        assert logits is not None
        predicted = torch.log_softmax(logits[0, :-1].double(), -1)
        losses += [-float(predicted[i, ids[i + 1]]) for i in range(len(ids) - 1)]
    assert found.n_tokens == len(losses)
    assert found.cross_entropy["clean"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_a_transcoder_is_spliced_from_its_source_to_its_target(model: Model) -> None:
    source, target = "blocks.0.mlp.in", "blocks.0.mlp.out"
    width = width_of(model, source)
    make = Architecture(width, 8, d_out=width, activation="relu", center=False, skip=True)
    coder = SAE(make, origin=Origin((source,), (target,)))
    table = evaluate(model, coder, TEXTS).to_frame()
    assert list(table.index) == ["sae", "random"]
    trace = model.trace([TEXTS[0]], capture=[source])
    spliced = model.trace([TEXTS[0]], interventions=[mt.at(target).set(coder(trace[source]))])
    found = evaluate(model, coder, TEXTS[:1], baselines=False).rows[0].recovery
    assert spliced.logits is not None
    predicted = torch.log_softmax(spliced.logits[0, :-1], -1)
    loss = -predicted.gather(1, torch.tensor(TEXTS[0])[1:, None]).mean()
    assert found.cross_entropy["spliced"] == pytest.approx(float(loss), abs=1e-5)


def test_reconstruction_figures_are_those_computed_by_hand() -> None:
    coder = SAE(Architecture(5, 9, activation="topk", k=2), seed=1)
    x = 3 + torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    found = reconstruct(coder, x, block=64)
    y, latents = coder(x).detach().double(), coder.encode(x)
    wide = x.double()
    assert found.fvu == pytest.approx(
        float((wide - y).square().sum() / (wide - wide.mean(0)).square().sum()), rel=1e-9
    )
    assert found.l0 == float((latents != 0).sum(1).double().mean())
    assert found.dead_share == float(((latents != 0).sum(0) == 0).double().mean())
    assert found.bias == pytest.approx(float(y.square().sum() / (wide * y).sum()), rel=1e-9)
    np.testing.assert_allclose(found.frequency, (latents != 0).double().mean(0).numpy())


def test_dictionaries_agree_with_themselves_and_with_nothing_else() -> None:
    rows = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    same = agreement(rows * 3, rows)
    assert (same.mmcs, same.recall) == (pytest.approx(1), 1)
    other = agreement(torch.randn(40, 64, generator=torch.Generator().manual_seed(1)), rows)
    assert other.mmcs < 0.5
    assert other.recall == 0
    with pytest.raises(ShapeError, match="one width"):
        agreement(rows, torch.ones(2, 3))
    with pytest.raises(ShapeError, match="finite"):
        agreement(rows, torch.full((2, 64), float("nan")))


def test_what_cannot_be_evaluated_is_refused(model: Model) -> None:
    site = "blocks.1.resid_post"
    coder = identity((site,), (site,), width_of(model, site))
    with pytest.raises(SiteError, match="names no sites"):
        evaluate(model, identity((), (), 4), TEXTS)
    with pytest.raises(ShapeError, match="wide in this model"):
        evaluate(model, identity((site,), (site,), 4), TEXTS)
    with pytest.raises(SiteError):
        evaluate(model, identity(("blocks.9.resid_post",), (site,), 4), TEXTS)
    with pytest.raises(EmptyDataError, match="follows another"):
        evaluate(model, coder, [[3]])
