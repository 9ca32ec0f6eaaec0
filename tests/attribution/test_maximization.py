"""Corpus search against brute force, the evolutionary search of tokens, and units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.small import code_model

from microtome.attribution import (
    Maximization,
    TokenOptimization,
    maximize,
    optimize_tokens,
    search_corpus,
    unit,
)
from microtome.attribution.corpus import encoded, sample_windows
from microtome.attribution.embeddings import embedding_table
from microtome.attribution.fluency import measure, survivors, token_slopes
from microtome.attribution.units import Unit, driver, random_like
from microtome.errors import (
    ConfigError,
    EmptyDataError,
    ModelSupportError,
    PromptError,
    SelectorError,
    ShapeError,
    SiteAbsentError,
    SiteError,
    TokenizerError,
)
from microtome.models.families import build
from microtome.tracing.model import Model
from microtome.tracing.opening import load

NEURON = "blocks.1.mlp.act[neuron=5]"
TEXTS = [
    "def total(data, size=None):\n    return [data, size]\n",
    "name = 'value'\nitems = (name, total)\n" * 3,
    "x",
    "",
]


@pytest.fixture(scope="module")
def model() -> Model:
    return code_model()


def units() -> list[Unit]:
    direction = torch.linspace(-1, 1, 32)
    return [
        unit(NEURON),
        unit("blocks.0.attn.z[head=2]"),
        unit("blocks.1.attn.result[head=1]", direction=direction, offset=2.0),
        unit("blocks.0.resid_post", direction=direction),
        unit("module:transformer.h.1.mlp.act:out[neuron=5]"),
    ]


def by_hand(model: Model, found: Unit, ids: list[int]) -> np.ndarray:
    """The activation at each position of one text, from the whole value at the site."""
    site = found.site.whole()
    value = model.trace([ids], capture=site)[site][0]
    if found.site.neuron is not None:
        return value[:, 5].numpy()
    if found.direction is None:
        return value[:, 2].square().sum(-1).sqrt().numpy()
    vector = value[:, 1] if found.site.head is not None else value
    return (vector @ found.direction + found.offset).numpy()


@pytest.mark.parametrize("found", units(), ids=str)
def test_corpus_search_is_brute_force(model: Model, found: Unit) -> None:
    result = search_corpus(model, found, TEXTS, top=3)
    rows = encoded(model, TEXTS)
    values = [by_hand(model, found, ids) for ids in rows]
    everything = np.concatenate(values)
    assert result.n_tokens == len(everything)
    assert result.mean == pytest.approx(everything.mean(), abs=1e-5)
    assert result.quantiles["0.99"] == pytest.approx(np.quantile(everything, 0.99), abs=1e-4)
    order = sorted(range(len(rows)), key=lambda n: -values[n].max())
    assert [w.source for w in result.windows] == order
    best = result.maximum
    assert best.activation == pytest.approx(everything.max(), abs=1e-4)
    assert best.position == int(values[order[0]].argmax())
    assert list(best.ids) == rows[order[0]][: best.position + 1]
    assert best.text == model.decode(best.ids)
    assert list(result.to_frame()["activation"]) == [w.activation for w in result.windows]


def test_long_texts_are_read_once_in_windows_that_overlap(model: Model) -> None:
    ids = encoded(model, ["".join(TEXTS) * 3])
    found = search_corpus(model, NEURON, ids, window=16, top=100, batch_size=3)
    assert found.n_tokens == len(ids[0]) > 100
    for window in found.windows:
        assert window.position is not None and window.ids[-1] == ids[0][window.position]
        context = ids[0][window.position + 1 - len(window.ids) : window.position + 1]
        assert list(window.ids) == context
        assert window.position < 16 or len(window.ids) > 8
        alone = by_hand(model, unit(NEURON), context)[-1]
        assert window.activation == pytest.approx(alone, abs=1e-4)


def test_a_beginning_of_sequence_token_is_read_but_not_counted() -> None:
    model = code_model()
    model.bos = True
    ids = list(model.tokenize(TEXTS[0], bos=False))
    found = search_corpus(model, NEURON, [TEXTS[0]])
    values = by_hand(model, unit(NEURON), [0, *ids])[1:]
    assert found.n_tokens == len(ids)
    assert found.maximum.activation == pytest.approx(values.max(), abs=1e-4)
    activation, entropy = measure(model, unit(NEURON), torch.tensor([ids]))
    logp = torch.log_softmax(model.trace([[0, *ids]]).logits[0], -1)
    expected = -logp[range(len(ids)), ids].mean()
    assert float(activation[0]) == pytest.approx(values[-1], abs=1e-4)
    assert float(entropy[0]) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("bos", [False, True])
def test_token_slopes_are_the_slopes_of_the_goal(bos: bool) -> None:
    """Against the goal written with indicator vectors, differentiated by autograd."""
    model = code_model()
    model.bos = bos
    ids = torch.tensor([[7, 30, 12, 400, 9]])
    table = embedding_table(model, "a test")
    weights = torch.tensor([0.7])
    slopes = token_slopes(model, unit(NEURON), ids, weights, table)
    indicator = torch.nn.functional.one_hot(ids, len(table)).float().requires_grad_(True)
    embedded = indicator @ table
    if bos:
        embedded = torch.cat([table[:1][None], embedded], 1)
    kept = {}
    mlp = model.module.transformer.h[1].mlp
    handle = mlp.act.register_forward_hook(lambda m, a, out: kept.update(act=out))
    logits = model.module(inputs_embeds=embedded).logits
    handle.remove()
    logp = torch.log_softmax(logits[:, :-1], -1)
    entropy = -(indicator[:, 1 - int(bos) :] * logp).sum(-1).mean()
    goal = kept["act"][0, -1, 5] - 0.7 * entropy
    (expected,) = torch.autograd.grad(goal, [indicator])
    torch.testing.assert_close(slopes, expected, atol=1e-4, rtol=1e-3)


def test_the_search_beats_random_texts_and_its_texts_survive(model: Model) -> None:
    found = optimize_tokens(model, NEURON, length=6, iterations=12, population=4, children=8)
    assert found.best().activation > found.random.activation + 1
    assert len(found.frontier) > 1
    entropies = [t.cross_entropy for t in found.frontier]
    activations = [t.activation for t in found.frontier]
    assert entropies == sorted(entropies) and activations == sorted(activations)
    for text in found.frontier:
        assert model.tokenize(text.text) == text.ids and len(text.ids) == 6
        activation, entropy = measure(model, unit(NEURON), torch.tensor([text.ids]))
        assert float(activation[0]) == pytest.approx(text.activation, abs=1e-4)
        assert float(entropy[0]) == pytest.approx(text.cross_entropy, abs=1e-4)
    assert found.rejected > 0 and found.evaluated > found.rejected
    assert np.all(np.diff(found.history, axis=0) >= 0) and found.history.shape == (13, 4)
    limit = entropies[1]
    assert found.best(limit) is found.frontier[1] and found.best(0.0) is found.frontier[0]


def test_the_search_depends_on_the_seed_alone(model: Model) -> None:
    runs = [
        optimize_tokens(model, NEURON, length=4, iterations=3, population=3, seed=s)
        for s in (0, 0, 1)
    ]
    texts = [tuple(t.ids for t in r.frontier) for r in runs]
    assert texts[0] == texts[1] != texts[2]


def test_a_heavier_weight_gives_a_more_fluent_text(model: Model) -> None:
    options = {"length": 5, "iterations": 10, "children": 8}
    light = optimize_tokens(model, NEURON, fluency_weights=[0.0], **options)
    heavy = optimize_tokens(model, NEURON, fluency_weights=[50.0], **options)
    assert light.fluency_weights == (0.0,)
    assert heavy.frontier[0].cross_entropy < light.frontier[0].cross_entropy
    assert light.best().activation > heavy.best().activation


def test_a_neuron_that_is_off_is_found_through_its_pre_activation() -> None:
    """Its activation is below zero on every random text."""
    model = code_model()
    model.module.transformer.h[1].mlp.c_fc.bias.data[5] = -4.0
    found = optimize_tokens(model, NEURON, length=6, iterations=25, children=8)
    assert found.driver == "blocks.1.mlp.pre[neuron=5]" and found.unit == NEURON
    assert found.random.activation <= 0 < 1 < found.best().activation
    gated = unit("blocks.0.mlp.act[neuron=1]")
    assert driver(load(build("llama")), gated) is gated
    head = unit("blocks.0.attn.z[head=2]")
    assert driver(model, head) is head


def test_texts_that_change_when_tokenized_again_are_seen(model: Model) -> None:
    name = list(model.tokenize("value"))
    letters = [model.tokenize(c)[0] for c in "value"]
    whole = torch.tensor([letters, [name[0]] * 5])
    assert survivors(model, whole)[0] is False
    with pytest.raises(TokenizerError, match="no tokenizer"):
        survivors(load(build("gpt2")), whole)


def test_maximize_stands_beside_the_corpus_and_a_random_unit(model: Model, tmp_path: Path) -> None:
    found = maximize(
        model, NEURON, texts=TEXTS, length=5, iterations=5, population=3, children=6, top=2
    )
    assert found.corpus.unit == found.optimized.unit == NEURON
    other = found.random_corpus.unit
    assert other != NEURON and other.startswith("blocks.1.mlp.act[neuron=")
    windows = sample_windows(encoded(model, TEXTS), 5, 256, 0)
    median = float(measure(model, unit(NEURON), windows)[1].median())
    assert found.median_cross_entropy == pytest.approx(median, abs=1e-5)
    assert found.limit == pytest.approx(2 * median)
    assert found.best in found.optimized.frontier
    activation = measure(model, unit(other), torch.tensor([found.best.ids]))[0]
    assert found.random_on_best == pytest.approx(float(activation[0]), abs=1e-5)
    assert found.cut is not None and len(found.cut.ids) <= 5
    again = Maximization.load(found.save(tmp_path / "found"))
    assert again.to_frame().equals(found.to_frame())
    assert isinstance(again.optimized, TokenOptimization)


def test_random_units_are_of_the_same_kind(model: Model) -> None:
    for found in units():
        other = random_like(model, found, seed=1)
        assert other.site.name == found.site.name and other.captured is not None
        if found.direction is None:
            assert str(other.site) != str(found.site)
        else:
            assert float(other.direction.norm()) == pytest.approx(float(found.direction.norm()))
    a, b = (str(random_like(model, unit(NEURON), seed=s)) for s in (1, 1))
    assert a == b


@pytest.mark.parametrize(
    ("site", "options", "error", "words"),
    [
        ("blocks.1.mlp.act", {}, SelectorError, "several units"),
        ("blocks.1.mlp.act[neuron=1,2]", {}, SelectorError, "several units"),
        ("mlp.act[neuron=1]", {}, SelectorError, "several blocks"),
        ("blocks.1.mlp.act[neuron=1][pos=-1]", {}, SelectorError, "position"),
        ("blocks.1.attn.pattern[head=1]", {}, SiteError, "no units"),
        ("blocks.1.mlp.norm.scale", {}, SiteError, "no units"),
        ("blocks.1.resid_post", {}, SelectorError, "direction"),
        (NEURON, {"direction": [1.0]}, SelectorError, "takes no direction"),
        ("blocks.1.resid_post", {"direction": [[1.0]]}, ShapeError, "one axis"),
        ("blocks.1.resid_post", {"direction": [float("nan")]}, ShapeError, "finite"),
    ],
)
def test_what_is_not_one_unit_is_refused(site, options, error, words) -> None:
    with pytest.raises(error, match=words):
        unit(site, **options)


def test_bad_corpora_and_numbers_are_refused(model: Model) -> None:
    with pytest.raises(EmptyDataError, match="no tokens"):
        search_corpus(model, NEURON, ["", ""])
    with pytest.raises(PromptError, match="list of texts"):
        search_corpus(model, NEURON, "one text")
    with pytest.raises(ConfigError, match="window=1"):
        search_corpus(model, NEURON, TEXTS, window=1)
    with pytest.raises(ConfigError, match="window=999"):
        search_corpus(model, NEURON, TEXTS, window=999)
    with pytest.raises(ConfigError, match="top=0"):
        search_corpus(model, NEURON, TEXTS, top=0)
    with pytest.raises(SelectorError, match="out of range"):
        search_corpus(model, "blocks.1.mlp.act[neuron=999]", TEXTS)
    with pytest.raises(SelectorError, match="out of range"):
        search_corpus(model, "module:transformer.h.1.mlp.act:out[neuron=999]", TEXTS)
    with pytest.raises(ShapeError, match="32 entries"):
        search_corpus(model, unit("blocks.0.resid_post", direction=[1.0, 2.0]), TEXTS)
    with pytest.raises(SiteAbsentError):
        search_corpus(model, "blocks.1.mlp.gate[neuron=1]", TEXTS)
    with pytest.raises(EmptyDataError, match="60 tokens"):
        maximize(model, NEURON, texts=["x = 1"], length=60)
    with pytest.raises(ConfigError, match="fluency_limit=0"):
        maximize(model, NEURON, texts=TEXTS, fluency_limit=0)
    for options, words in (
        ({"length": 1}, "length=1"),
        ({"length": 500}, "context"),
        ({"population": 0}, "population=0"),
        ({"iterations": -1}, "iterations=-1"),
        ({"fluency_weights": [-1.0]}, "fluency_weights"),
    ):
        with pytest.raises(ConfigError, match=words):
            optimize_tokens(model, NEURON, **options)


def test_models_without_fluency_are_refused() -> None:
    with pytest.raises(ModelSupportError, match="not causal"):
        optimize_tokens(load(build("bert")), "blocks.0.mlp.act[neuron=1]")
    with pytest.raises(ModelSupportError, match="transformer"):
        maximize(load(torch.nn.Linear(2, 2)), "module::out[neuron=0]", texts=["x"])
    with pytest.raises(TokenizerError, match="no tokenizer"):
        optimize_tokens(load(build("gpt2")), "blocks.0.mlp.act[neuron=1]")
