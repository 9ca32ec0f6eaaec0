"""Evaluation and reading on values, texts, indexes and latents that are out of the ordinary."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import microtome as mt
from microtome.errors import (
    ConfigError,
    FormatError,
    ModelSupportError,
    SelectorError,
    ShapeError,
)
from microtome.models.families import build
from microtome.sae import SAE, Architecture, LatentIndex, Origin, evaluate, index, reconstruct
from microtome.sae.evaluation.labelled import correlation_removal, pool, probe_perturbation
from microtome.sae.reading.examples import stretch, top_examples
from microtome.sae.reading.explanations import Explanation
from microtome.sae.reading.families import Rule
from microtome.sae.reading.pages import Dashboard
from microtome.sae.reading.relations import co_occurring, correlated, logit_effects, neighbors
from microtome.sae.reading.scoring import explain_all
from microtome.store.arrays import load_arrays, save_arrays
from microtome.tracing.model import Model

SITE = "blocks.1.resid_post"
TEXTS = [[int(t) for t in np.random.default_rng(i).integers(0, 40, 30)] for i in range(8)]


@pytest.fixture(scope="module")
def model() -> Model:
    return mt.load(build("gpt2"))


def coder_at(model: Model, site: str = SITE, k: int = 4, activation: str = "topk") -> SAE:
    width = model.trace([[1]], capture=[site])[site].flatten(2).shape[-1]
    make = Architecture(width, 40, activation=activation, k=k)  # type: ignore[arg-type]
    return SAE(make, seed=2, origin=Origin((site,), (site,)))


@pytest.fixture(scope="module")
def constant(model: Model) -> LatentIndex:
    """An index of latents of which 0 is -2 and 1 is 2 everywhere."""
    coder = coder_at(model, k=40, activation="abstopk")
    with torch.no_grad():
        coder.weights["W_enc"][:2] = 0
        coder.weights["b_enc"][:2] = torch.tensor([-2.0, 2.0])
    return index(model, coder, TEXTS)


def test_rows_of_zeros_and_constant_rows_have_no_ratio_and_no_fvu() -> None:
    coder = SAE(Architecture(5, 9, activation="topk", k=2), seed=1)
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        coder.weights["b_dec"].fill_(0.1)
    whole = reconstruct(coder, x)
    assert reconstruct(coder, torch.cat([x, torch.zeros(7, 5)])).norm_ratio == whole.norm_ratio
    for value in (0.1, 3.3, 1e6):
        assert np.isnan(reconstruct(coder, torch.full((301, 5), value), block=7).fvu)


def test_leading_axes_and_other_precisions_give_the_same_figures() -> None:
    coder = SAE(Architecture(5, 9, activation="topk", k=2), seed=1)
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    whole = reconstruct(coder, x)
    deep = reconstruct(coder, x.view(6, 10, 5))
    assert (deep.fvu, deep.l0, deep.n_rows) == (whole.fvu, whole.l0, 60)
    assert reconstruct(coder, x.double()).fvu == pytest.approx(whole.fvu, rel=1e-6)
    with pytest.raises(ShapeError, match="as many of both"):
        reconstruct(coder, [(x, x[:50])])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_coder_of_another_precision_is_evaluated_in_its_own(
    model: Model, dtype: torch.dtype
) -> None:
    expected = evaluate(model, coder_at(model), TEXTS).to_frame()["fvu"]
    found = evaluate(model, coder_at(model).to(dtype), TEXTS).to_frame()["fvu"]
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_names_that_are_taken_and_sites_without_vectors_are_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match="random"):
        evaluate(model, coder_at(model), TEXTS, others={"random": coder_at(model)})
    coder = coder_at(model)
    coder.origin = Origin(("blocks.0.attn.pattern",), ("blocks.0.attn.pattern",))
    with pytest.raises(ShapeError, match="vector for each token"):
        evaluate(model, coder, TEXTS)


def test_a_constant_latent_correlates_with_nothing(constant: LatentIndex) -> None:
    for latent in (0, 1):
        assert not len(correlated(constant, latent, constant).numbers)
    others = correlated(constant, 5, constant)
    assert {0, 1}.isdisjoint(others.numbers.tolist())
    assert float(others.values.max()) <= 1 + 1e-9
    dense = constant.matrix().toarray().astype(np.float64)
    truth = np.corrcoef(dense[:, 5], dense[:, others.numbers[0]])[0, 1]
    assert others.values[0] == pytest.approx(truth, rel=1e-5)


def test_a_negative_latent_is_scored_like_its_mirror_image(model: Model) -> None:
    coder = coder_at(model, k=4, activation="abstopk")
    found = index(model, coder, TEXTS, context=10)
    mirrored = replace(
        found,
        by_token=replace(found.by_token, values=-found.by_token.values),
        by_latent=replace(found.by_latent, values=-found.by_latent.values),
    )
    spans = [len(set(found.context_of(found.positions(n)[0]).tolist())) for n in range(40)]
    latent = int(np.abs(np.array(spans) - len(found.contexts) / 2).argmin())
    first, second = (explain_all(i, [latent])[0].scores for i in (found, mirrored))
    assert first.n_contexts > 0
    assert astuple(first) == astuple(second)


def test_latents_and_numbers_out_of_range_are_refused(model: Model, constant: LatentIndex) -> None:
    coder = coder_at(model)
    for latent in (-1, 40):
        with pytest.raises(SelectorError, match="no latent"):
            neighbors(coder, latent)
        with pytest.raises(SelectorError, match="no latent"):
            logit_effects(model, coder, latent)
    with pytest.raises(ConfigError, match="pmi"):
        co_occurring(constant, 3, measure="cosine")
    with pytest.raises(ConfigError, match="n=0"):
        top_examples(constant, 3, n=0)
    with pytest.raises(ConfigError, match="before=-5"):
        stretch(constant, 3, 4, -5, -5)


@pytest.mark.parametrize("site", ["blocks.0.attn.z", "blocks.0.attn.q", "blocks.0.mlp.in"])
def test_logit_effects_are_of_what_writes_to_the_stream(model: Model, site: str) -> None:
    with pytest.raises(ModelSupportError, match="residual stream"):
        logit_effects(model, coder_at(model, site), 0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("by-token", {"numbers": np.array([0], dtype=np.int32)}),
        ("by-token", {"more": np.zeros(3)}),
        ("by-latent", {"offsets": np.zeros(41, dtype=np.int64)}),
        ("tokens", {"contexts": np.array([0, 5], dtype=np.int64)}),
        ("tokens", {"special": np.zeros((2, 2), dtype=bool)}),
    ],
)
def test_an_index_whose_files_do_not_fit_is_refused(
    name: str, change: dict[str, np.ndarray], constant: LatentIndex, tmp_path: Path
) -> None:
    path = constant.save(tmp_path / "i") / f"{name}.safetensors"
    save_arrays(path, {**load_arrays(path), **change})
    with pytest.raises(FormatError):
        LatentIndex.load(tmp_path / "i")


def test_entries_out_of_bounds_are_refused(constant: LatentIndex, tmp_path: Path) -> None:
    path = constant.save(tmp_path / "i") / "by-token.safetensors"
    arrays = load_arrays(path)
    arrays["numbers"] = arrays["numbers"] + 1_000
    save_arrays(path, arrays)
    with pytest.raises(FormatError, match="do not fit"):
        LatentIndex.load(tmp_path / "i")


def test_pages_show_what_is_hostile_as_text(model: Model, constant: LatentIndex) -> None:
    evil = "<script>alert(1)</script>\x00\u202e</style>"
    shown = replace(constant, vocabulary=dict.fromkeys(constant.vocabulary, evil))
    rules = tuple(Rule("token", (1,), 1.0, f"the token is: `{evil * 40}`") for _ in range(8))
    found = explain_all(constant, [1])[0]
    explained = {1: replace(found, explanation=Explanation(1, rules, 0.5))}
    coder = coder_at(model, "blocks.0.attn.z")  # so that no token of the model is needed
    board = Dashboard(model, coder, shown, explained)
    for page in (board.latent(1), board.overview([1, 2])):
        html = page.to_html()
        assert not any(part in html for part in (evil, "<script>alert", "\x00", "\u202e", "nan%"))
        assert len(page.title) < 250
    with pytest.raises(SelectorError):
        board.overview([40])


def test_texts_pooled_with_another_coder_are_refused(model: Model) -> None:
    tokenized = mt.load("python-code")
    site = "blocks.1.resid_post"
    coder = coder_at(tokenized, site)
    texts = [f"x = {i}\n" for i in range(4)] + [f"def f{i}():\n" for i in range(4)]
    data = pool(tokenized, coder, texts, ["a"] * 4 + ["b"] * 4)
    with pytest.raises(ConfigError, match="pooled with"):
        probe_perturbation(data, coder_at(model))
    with pytest.raises(ConfigError, match="pooled with"):
        correlation_removal(data, coder_at(model), [True, False] * 4)
