"""Evaluating coders: figures by hand, coders of which the answer is known, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.small import code_model

import microtome as mt
from microtome.errors import (
    ConfigError,
    EmptyDataError,
    ShapeError,
    SiteError,
    UnknownNameError,
)
from microtome.models.families import build
from microtome.sae import (
    SAE,
    Architecture,
    Config,
    Origin,
    agreement,
    evaluate,
    reconstruct,
    train,
    train_twin,
)
from microtome.sae.evaluation import restarting
from microtome.sae.evaluation.baselines import fit_scale, random_dictionary
from microtome.sae.evaluation.splicing import Splicing
from microtome.sae.model_passes import coder_sites
from microtome.tracing.model import Model
from microtome.tracing.replay import tail

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
    found = evaluate(model, coder, TEXTS, baselines=()).rows[0]
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
    found = evaluate(model, coder, TEXTS, baselines=()).rows[0]
    assert found.reconstruction.fvu == pytest.approx(1, abs=1e-6)
    assert found.recovery.cross_entropy["spliced"] == pytest.approx(
        found.recovery.cross_entropy["mean"], abs=1e-6
    )


def test_cross_entropy_is_the_models_own(model: Model) -> None:
    site = "blocks.1.resid_post"
    coder = identity((site,), (site,), width_of(model, site))
    found = evaluate(model, coder, TEXTS, baselines=(), batch_size=2).rows[0].recovery
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
    assert table.loc["random", "fvu"] <= 1.001  # what knows nothing writes the mean
    trace = model.trace([TEXTS[0]], capture=[source])
    spliced = model.trace([TEXTS[0]], interventions=[mt.at(target).set(coder(trace[source]))])
    found = evaluate(model, coder, TEXTS[:1], baselines=()).rows[0].recovery
    assert spliced.logits is not None
    predicted = torch.log_softmax(spliced.logits[0, :-1], -1)
    loss = -predicted.gather(1, torch.tensor(TEXTS[0])[1:, None]).mean()
    assert found.cross_entropy["spliced"] == pytest.approx(float(loss), abs=1e-5)


def spoken() -> Model:
    """A model whose rows begin with a special token, which occurs in the middle, too."""
    made = code_model()
    return mt.load(made.module, tokenizer=made.tokenizer, bos=True)


def test_special_tokens_are_neither_replaced_nor_predicted() -> None:
    model, site = spoken(), "blocks.1.resid_post"
    bos = int(model.tokenizer.bos_token_id)
    ids = [bos, 30, 31, 32, bos, 33, 34]
    coder = identity((site,), (site,), 32)
    with torch.no_grad():
        coder.weights["W_enc"].zero_()
    found = evaluate(model, coder, [ids[1:]], baselines=()).rows[0].recovery
    counted = [1, 2, 5]  # 30 -> 31, 31 -> 32, 33 -> 34
    kept = torch.tensor([t != bos for t in ids])
    value = model.trace([ids], capture=[site])[site].clone()
    value[0, kept] = 0
    for name, writes in (("clean", []), ("spliced", [mt.at(site).set(value)])):
        logits = model.trace([ids], interventions=writes).logits
        assert logits is not None
        predicted = torch.log_softmax(logits[0].double(), -1)
        expected = -sum(float(predicted[i, ids[i + 1]]) for i in counted) / 3
        assert found.cross_entropy[name] == pytest.approx(expected, abs=1e-5)
    assert found.n_tokens == 3
    assert found.cross_entropy["spliced"] == pytest.approx(found.cross_entropy["zero"], abs=1e-6)


def test_random_directions_read_inputs_less_their_mean(model: Model) -> None:
    x = 50 + torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    figures = {}
    for center in (True, False):
        coder = SAE(Architecture(16, 64, activation="topk", k=4, center=center))
        made = random_dictionary(coder, 4, mean=x.mean(0), source_mean=x.mean(0))
        assert made.architecture.center == center
        figures[center] = reconstruct(made, x).fvu
        fit_scale(made, x, x)
        fitted = reconstruct(made, x).fvu
        assert fitted < figures[center]
        for factor in (0.9, 1.1):
            other = SAE(made.architecture, weights={n: w.clone() for n, w in made.weights.items()})
            with torch.no_grad():
                other.weights["W_dec"].mul_(factor)
            assert reconstruct(other, x).fvu > fitted
    assert figures[False] == pytest.approx(figures[True], rel=1e-3)
    assert figures[True] < 1


def test_random_directions_reach_what_the_latents_reach() -> None:
    make = Architecture(
        8, 16, activation="topk", k=4, sources=(4, 4), targets=(4, 4), reach="later", center=False
    )
    mean = torch.randn(8, generator=torch.Generator().manual_seed(0))
    made = random_dictionary(SAE(make), 4, mean=mean, source_mean=mean)
    assert made.architecture.reach == "later" and not made.weights["W_dec"][8:, :4].any()
    assert not made.encode(mean[None]).abs().gt(1e-6).any()


def test_each_batch_is_encoded_once_and_looked_at_briefly(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = "blocks.0.mlp.out"
    coder = identity((site,), (site,), width_of(model, site))
    seen: list[int] = []
    monkeypatch.setattr(coder, "encode", lambda *_: pytest.fail("encoded twice"))
    last = model.module.get_submodule(model.anatomy.blocks[-1].path)  # type: ignore[union-attr]
    handle = last.register_forward_hook(lambda *_: seen.append(1))
    found = evaluate(model, coder, TEXTS, baselines=())
    handle.remove()
    assert len(seen) == 4  # untouched, zero, mean, spliced: not one for the first look
    assert found.rows[0].recovery.recovered() == 1.0


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize(
    "sites",
    [
        ("blocks.0.resid_post",),
        ("blocks.1.resid_post",),
        ("blocks.1.mlp.out",),
        ("blocks.1.attn.z",),
        ("blocks.0.mlp.out", "blocks.1.mlp.out"),
        ("embed.token",),
    ],
)
def test_runs_that_begin_late_are_the_whole_runs(
    family: str, sites: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mt.load(build(family))
    width = sum(width_of(model, site) for site in sites)
    make = Architecture(width, 2 * width, activation="topk", k=3)
    widths = tuple(width_of(model, site) for site in sites)
    make = replace(make, sources=widths, targets=widths)
    coder = SAE(make, origin=Origin(sites, sites))
    passes = Splicing(model, *coder_sites(model, coder)).passes
    assert passes.late == (sites[0] != "embed.token")
    late = evaluate(model, coder, TEXTS, baselines=()).rows[0].recovery
    monkeypatch.setattr(restarting, "restart_reason", lambda _: "no")
    assert not Splicing(model, *coder_sites(model, coder)).passes.late
    whole = evaluate(model, coder, TEXTS, baselines=()).rows[0].recovery
    for name, value in whole.cross_entropy.items():
        assert late.cross_entropy[name] == pytest.approx(value, abs=2e-6), name
    for name, value in whole.divergence.items():
        assert late.divergence[name] == pytest.approx(value, abs=2e-6), name


def test_a_model_that_cannot_be_restarted_after_all_runs_whole(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = "blocks.0.mlp.out"
    coder = identity((site,), (site,), width_of(model, site))
    expected = evaluate(model, coder, TEXTS, baselines=()).rows[0].recovery.to_dict()
    seen: list[int] = []

    def wrong(opened: Model, stream: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        return tail(opened, stream, places) + 0.01

    monkeypatch.setattr(restarting, "tail", wrong)
    assert evaluate(model, coder, TEXTS, baselines=()).rows[0].recovery.to_dict() == expected
    assert len(seen) == 1


def test_the_twins_coder_is_measured_in_the_twin() -> None:
    model, site = code_model(), "blocks.1.resid_post"
    texts = [f"value = {i} + data[{i % 7}]\nreturn value\n" for i in range(40)]
    config = Config(activation="topk", k=3, d_sae=40, steps=5, batch_size=32, eval_rows=32, seed=3)
    coder = train(model, config, site=site, text=texts)
    before = model.fingerprint
    twin = train_twin(model, coder, texts, steps=4, seed=2)
    assert model.fingerprint == before
    assert twin.origin.details["twin"] == 2 and twin.origin.fingerprint != before
    assert twin.origin.details["training"] == {**config.to_dict(), "steps": 4}
    table = evaluate(model, coder, texts[:10], twin=twin)
    assert [row.name for row in table.rows] == ["sae", "random", "coordinates", "twin"]
    with model.twin(2):
        there = evaluate(model, twin, texts[:10], baselines=()).rows[0]
    assert table.rows[-1].recovery.to_dict() == there.recovery.to_dict()
    assert table.rows[-1].reconstruction.fvu == there.reconstruction.fvu
    assert table.rows[0].reconstruction.fvu != there.reconstruction.fvu
    with pytest.raises(ConfigError, match="does not say which twin"):
        evaluate(model, coder, texts, twin=coder)
    other = SAE(twin.architecture, origin=replace(twin.origin, fingerprint="abc"))
    with pytest.raises(ConfigError, match="fingerprint abc"):
        evaluate(model, coder, texts, twin=other)
    other = SAE(twin.architecture, origin=replace(twin.origin, sources=("blocks.0.resid_post",)))
    with pytest.raises(ConfigError, match="train one on the same sites"):
        evaluate(model, coder, texts, twin=other)


def test_a_coder_that_does_not_say_how_it_was_trained_gets_a_twin_of_its_l0() -> None:
    model, site = code_model(), "blocks.1.resid_post"
    coder = identity((site,), (site,), 32)  # half of its 64 latents are active
    twin = train_twin(model, coder, ["value = data[3]\n"] * 8, steps=2)
    make = twin.architecture
    assert (make.activation, make.k, make.d_sae, make.center) == ("batchtopk", 32, 64, False)


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
    with pytest.raises(UnknownNameError, match="nearest: random"):
        evaluate(model, coder, TEXTS, baselines=["randon"])
    with pytest.raises(ConfigError, match="baselines is False"):
        evaluate(model, coder, TEXTS, baselines=False)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rename"):
        evaluate(model, coder, TEXTS, others={"twin": coder})
