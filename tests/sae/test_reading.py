"""The index of active latents, and what is read from it, against slow counting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import microtome as mt
from microtome.errors import (
    ConfigError,
    EmptyDataError,
    FormatError,
    SelectorError,
    ShapeError,
    SiteError,
)
from microtome.models.families import build
from microtome.sae import SAE, Architecture, LatentIndex, Origin, index, reconstruct
from microtome.sae.reading.examples import quantile_examples, top_examples
from microtome.sae.reading.neurons import NeuronTally, neuron_site
from microtome.sae.reading.relations import (
    co_occurring,
    correlated,
    foretells,
    logit_effects,
    neighbors,
)
from microtome.tracing.model import Model

SITE = "blocks.1.resid_post"
TEXTS = [[int(t) for t in np.random.default_rng(i).integers(0, 40, 30 + 7 * i)] for i in range(6)]


@pytest.fixture(scope="module")
def model() -> Model:
    return mt.load(build("gpt2"))


@pytest.fixture(scope="module")
def coder(model: Model) -> SAE:
    width = model.trace([[1]], capture=[SITE])[SITE].shape[-1]
    make = Architecture(width, 40, activation="topk", k=4)
    return SAE(make, seed=2, origin=Origin((SITE,), (SITE,)))


@pytest.fixture(scope="module")
def found(model: Model, coder: SAE) -> LatentIndex:
    return index(model, coder, TEXTS, context=16, batch_size=4)


def slow(model: Model, coder: SAE) -> np.ndarray:
    rows = []
    for text in TEXTS:
        for start in range(0, len(text), 16):
            values = model.trace([text[start : start + 16]], capture=[SITE])[SITE][0]
            rows.append(coder.encode(values).detach().numpy())
    return np.concatenate(rows)


def test_the_index_holds_every_activation_by_token_and_by_latent(
    model: Model, coder: SAE, found: LatentIndex
) -> None:
    dense = slow(model, coder)
    assert found.n_tokens == sum(map(len, TEXTS)) == len(dense)
    np.testing.assert_array_equal(found.ids, np.concatenate(TEXTS))
    np.testing.assert_allclose(found.matrix().toarray(), dense, atol=1e-4)
    for latent in range(coder.d_sae):
        positions, values = found.positions(latent)
        np.testing.assert_array_equal(
            positions, np.flatnonzero(found.matrix().toarray()[:, latent])
        )
        np.testing.assert_allclose(values, dense[positions, latent], atol=1e-4)
    np.testing.assert_allclose(found.density, (dense != 0).mean(0))
    np.testing.assert_allclose(found.largest, dense.max(0), atol=1e-4)


def test_an_index_is_read_back_as_it_was(found: LatentIndex, tmp_path: Path) -> None:
    again = LatentIndex.load(found.save(tmp_path / "i"))
    assert again.details == found.details
    assert again.vocabulary == found.vocabulary
    for name in ("ids", "contexts", "documents", "special"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    assert (again.matrix() != found.matrix()).nnz == 0
    file = tmp_path / "i" / "by-latent.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(FormatError, match="truncated"):
        LatentIndex.load(tmp_path / "i")
    with pytest.raises(FormatError, match=r"index\.json"):
        LatentIndex.load(tmp_path)


def test_top_examples_are_the_largest_of_their_contexts(found: LatentIndex) -> None:
    latent = int(found.counts.argmax())
    examples = top_examples(found, latent, n=5, before=3, after=2)
    best = [e.activation for e in examples]
    assert best == sorted(best, reverse=True)
    assert best[0] == found.largest[latent]
    assert len({int(found.context_of(np.array([e.position]))[0]) for e in examples}) == len(
        examples
    )
    dense = found.matrix().toarray()[:, latent]
    for e in examples:
        start = e.position - e.focus
        np.testing.assert_array_equal(e.values, dense[start : start + len(e.values)])
        assert len(e.tokens) == len(e.values) <= 6


def test_quantile_examples_lie_in_their_bins(found: LatentIndex) -> None:
    latent = int(found.counts.argmax())
    width = found.largest[latent] / 4
    examples = quantile_examples(found, latent, bins=4, per_bin=3)
    assert {e.quantile for e in examples} <= {0, 1, 2, 3}
    for e in examples:
        assert e.quantile is not None
        assert e.quantile * width <= e.activation <= (e.quantile + 1) * width * 1.0001


def test_co_occurrence_is_what_counting_gives(found: LatentIndex) -> None:
    active = found.matrix().toarray() != 0
    latent = int(found.counts.argmax())
    expected = [
        (active[:, latent] & active[:, i]).sum() / max(1, (active[:, latent] | active[:, i]).sum())
        for i in range(found.d_sae)
    ]
    expected[latent] = 0
    related = co_occurring(found, latent, n=3)
    np.testing.assert_allclose(related.values, np.sort(expected)[::-1][:3])
    assert expected[int(related.numbers[0])] == max(expected)
    assert len(co_occurring(found, latent, measure="pmi").numbers) > 0


def test_correlations_are_pearsons(found: LatentIndex) -> None:
    dense = found.matrix().toarray()
    latent = int(found.counts.argmax())
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = np.nan_to_num(np.corrcoef(dense.T.astype(np.float64)))
    np.fill_diagonal(matrix, 0)
    related = correlated(found, latent, found, n=3)
    for number, value in zip(related.numbers, related.values, strict=True):
        assert value == pytest.approx(matrix[latent, number], abs=1e-5)
    assert related.values[0] == pytest.approx(matrix[latent].max(), abs=1e-5)


def test_the_pass_of_the_index_measures_the_coder_and_its_neurons(
    model: Model, coder: SAE, tmp_path: Path
) -> None:
    site = neuron_site(model, coder)
    assert site == "blocks.1.mlp.act"
    read = index(model, coder, TEXTS, context=16, batch_size=4, neurons=site)
    parts = [text[i : i + 16] for text in TEXTS for i in range(0, len(text), 16)]
    traces = [model.trace([part], capture=[SITE, site]) for part in parts]
    values = torch.cat([t[SITE][0] for t in traces])
    expected = reconstruct(coder, values)
    assert read.reconstruction is not None
    for name in ("n_rows", "fvu", "l0", "l1", "cosine", "norm_ratio", "bias"):
        ours, theirs = getattr(read.reconstruction, name), getattr(expected, name)
        assert ours == pytest.approx(theirs, rel=1e-4), name
    acts = torch.cat([t[site][0] for t in traces]).double().numpy()
    latents = read.matrix().toarray().astype(np.float64)
    often = int(read.counts.argmax())
    truth = [np.corrcoef(latents[:, often], acts[:, i])[0, 1] for i in range(acts.shape[1])]
    sizes = np.linalg.norm(acts, axis=0) * np.linalg.norm(latents[:, often])
    cosine = latents[:, often] @ acts / sizes
    again = LatentIndex.load(read.save(tmp_path / "i"))
    assert again.reconstruction is not None
    assert again.reconstruction.fvu == read.reconstruction.fvu
    assert again.neurons is not None
    assert again.neurons.site == site
    first = again.neurons.numbers[often]
    assert int(first[0]) == int(np.abs(truth).argmax())
    np.testing.assert_allclose(again.neurons.pearson[often], np.array(truth)[first], atol=1e-4)
    np.testing.assert_allclose(again.neurons.cosine[often], cosine[first], atol=1e-4)
    unused = int(np.flatnonzero(read.counts == 0)[0])
    assert not again.neurons.pearson[unused].any()


def test_neurons_that_are_too_many_or_nowhere_are_refused(
    model: Model, coder: SAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microtome.sae.reading.neurons.MOST_ENTRIES", 100)
    assert neuron_site(model, coder) is None
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="too many pairs"):
        NeuronTally("a", 2**20, 2**10)
    with pytest.raises(SiteError):
        index(model, coder, TEXTS, neurons="blocks.9.mlp.act")
    with pytest.raises(ShapeError, match="a number for each token"):
        index(model, coder, TEXTS, neurons="blocks.1.attn.pattern")
    nowhere = SAE(coder.architecture, origin=Origin(("embed.token",), ("embed.token",)))
    assert neuron_site(model, nowhere) is None
    assert neuron_site(model, SAE(coder.architecture)) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_coder_of_another_precision_is_indexed_in_its_own(
    model: Model, coder: SAE, found: LatentIndex, dtype: torch.dtype
) -> None:
    other = SAE(coder.architecture, seed=2, origin=coder.origin).to(dtype)
    read = index(model, other, TEXTS, context=16, batch_size=4)
    assert read.reconstruction is not None and found.reconstruction is not None
    assert read.reconstruction.fvu == pytest.approx(found.reconstruction.fvu, rel=0.05)
    assert read.by_token.values.dtype == np.float32


def test_neighbors_and_logit_effects(model: Model, coder: SAE) -> None:
    rows = torch.nn.functional.normalize(coder.weights["W_dec"].detach(), dim=1)
    near = neighbors(coder, 3, n=2)
    assert 3 not in near.numbers
    assert near.values[0] == pytest.approx(float((rows @ rows[3]).topk(2).values[1]), abs=1e-6)
    effects = logit_effects(model, coder, 3)
    weights = model.weights.view(fold_norm=True)
    raw = coder.weights["W_dec"][3].detach() @ weights.W_U
    torch.testing.assert_close(effects, raw - raw.mean())


def test_a_latent_that_raises_what_comes_next_foretells_it(found: LatentIndex) -> None:
    latent = int(found.counts.argmax())
    positions, _ = found.positions(latent)
    context = found.context_ids
    follows, elsewhere = [], []
    for place in range(len(found.ids) - 1):
        if context[place] == context[place + 1]:
            (follows if place in positions else elsewhere).append(int(found.ids[place + 1]))
    effects = np.random.default_rng(0).normal(size=50)
    pairs = [
        (effects[a] > effects[b]) + 0.5 * (effects[a] == effects[b])
        for a in follows
        for b in elsewhere
    ]
    assert foretells(found, latent, effects) == pytest.approx(np.mean(pairs))
    silent = replace(found, contexts=np.arange(len(found.ids) + 1))
    assert np.isnan(foretells(silent, latent, effects))


def test_what_cannot_be_read_is_refused(model: Model, coder: SAE, found: LatentIndex) -> None:
    with pytest.raises(SelectorError, match="40 from 0"):
        top_examples(found, 40)
    with pytest.raises(EmptyDataError, match="active at none"):
        top_examples(found, int(np.flatnonzero(found.counts == 0)[0]))
    with pytest.raises(EmptyDataError, match="different texts"):
        correlated(found, 0, index(model, coder, TEXTS[:2]))
    narrow = SAE(Architecture(4, 8, activation="relu"), origin=coder.origin)
    with pytest.raises(ShapeError, match="expects 4"):
        index(model, narrow, TEXTS)
