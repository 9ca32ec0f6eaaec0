"""Attribution against exact effects, completeness and independence of batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.small import code_model

from microtome.attribution import (
    attribution_patching,
    component_names,
    direct_logit_attribution,
    logit_lens,
    support_at_both_ends,
)
from microtome.behaviors import Example, Examples, quote_closing, score
from microtome.behaviors.metrics import metric
from microtome.errors import ConfigError, MetricError, ModelSupportError, PairError
from microtome.models.families import build
from microtome.tracing.opening import load
from microtome.tracing.sites import at


def pairs(count: int = 3) -> Examples:
    rows = [
        Example(
            i,
            (5, 6, 7, 8 + i),
            (5, 9, 7, 8 + i),
            ((11,),),
            ((12,),),
            f"c{i}",
            "t",
            "test",
            {"cue": (1, 2)},
            {},
            "",
        )
        for i in range(count)
    ]
    return Examples(tuple(rows))


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gpt_neox", "granite"])
def test_direct_attribution_adds_up_to_the_metric(family: str) -> None:
    found = direct_logit_attribution(load(build(family)), pairs())
    assert found.completeness_error < 1e-5
    total = found.to_frame()["mean"].sum()
    assert total == pytest.approx(found.total.mean(), rel=1e-4)


def test_direct_attribution_refuses_what_does_not_add_up() -> None:
    with pytest.raises(ModelSupportError, match="soft cap|add up"):
        direct_logit_attribution(load(build("gemma2")), pairs())
    with pytest.raises(MetricError, match="linear"):
        direct_logit_attribution(load(build("gpt2")), pairs(), metric="loss")


def test_attribution_patching_is_the_first_order_of_exact_patching() -> None:
    """For a small step towards the other run the exact effect is the estimate times the step."""
    model, examples = load(build("llama")), pairs(1)
    estimated = attribution_patching(model, examples)
    names = component_names(model)
    assert len(names) == model.anatomy.n_layers * (model.anatomy.n_heads + 1)  # type: ignore[union-attr]
    other = model.trace(examples.corrupt, capture=["attn.z", "mlp.out"])
    base = score(model, examples).values[0]
    step = 1e-2
    for name, site in (("a1.h2", at("blocks.1.attn.z[head=2]")), ("m0", at("blocks.0.mlp.out"))):
        toward = other[site.whole()][..., 2:3, :] if "h" in name else other[site]
        change = [site.apply(lambda v, t=toward: v + step * (t - v))]  # type: ignore[misc]
        exact = (score(model, examples, interventions=change).values[0] - base) / step
        assert exact == pytest.approx(estimated.values[0, names.index(name)], rel=0.05, abs=1e-3)


def test_attribution_is_independent_of_the_batch_and_splits_by_role() -> None:
    model = code_model()
    examples = quote_closing(40).prepare(model).split("train")
    whole = attribution_patching(model, examples, split="role")
    parts = attribution_patching(model, examples, batch_size=3)
    np.testing.assert_allclose(whole.values, parts.values, atol=2e-5)
    assert whole.by_part is not None
    assert whole.by_part.shape == (len(examples), len(whole.names), len(whole.parts))
    assert whole.parts[-1] == "rest"
    one = attribution_patching(model, examples[:1], split="position")
    assert one.by_part is not None
    covered: set[int] = set()
    for number, role in enumerate(whole.parts[:-1]):
        start, stop = examples[0].roles[role]
        covered |= set(range(start, stop))
        np.testing.assert_allclose(
            whole.by_part[0, :, number], one.by_part[0, :, start:stop].sum(1), atol=2e-5
        )
    free = [i for i in range(len(examples[0].clean)) if i not in covered]
    np.testing.assert_allclose(whole.by_part[0, :, -1], one.by_part[0][:, free].sum(1), atol=2e-5)


def test_attribution_by_position_adds_up_and_is_zero_before_the_first_difference() -> None:
    model = code_model()
    examples = quote_closing(40).prepare(model)
    length = len(examples[0].clean)
    same = examples.take([i for i, e in enumerate(examples) if len(e.clean) == length])
    found = attribution_patching(model, same, split="position")
    assert found.by_part is not None
    assert found.by_part.shape == (len(same), len(found.names), length)
    np.testing.assert_allclose(found.by_part.sum(2), found.values, atol=1e-5)
    for row, example in enumerate(same):
        first = next(i for i, (a, b) in enumerate(zip(example.clean, example.corrupt)) if a != b)  # noqa: B905
        assert not found.by_part[row, :, :first].any()
    with pytest.raises(PairError, match="role"):
        attribution_patching(model, examples, split="position")
    with pytest.raises(ConfigError, match="position"):
        attribution_patching(model, examples, split="head")  # type: ignore[arg-type]


def test_the_lens_at_the_last_block_is_the_model() -> None:
    model = load(build("gpt2"))
    found = logit_lens(model, (5, 6, 7, 8))
    p = torch.softmax(model.trace([(5, 6, 7, 8)]).logits[0], -1).max(-1)  # type: ignore[index]
    np.testing.assert_allclose(found.top_probabilities[-1], p.values.numpy(), rtol=1e-5)
    assert np.abs(found.kl_to_final[-1]).max() < 1e-6
    assert len(found.to_frame()) == 4 * len(found.layers)


def test_support_at_both_ends_is_the_mean_of_both_directions() -> None:
    model, examples = code_model(), quote_closing(40).prepare(code_model())[:12]
    out = attribution_patching(model, examples, base="clean").values
    into = attribution_patching(model, examples, base="corrupt").values
    found = support_at_both_ends(model, examples)
    np.testing.assert_allclose(found, (into - out) / 2, atol=1e-5)


def test_integrated_gradients_of_components_by_hand() -> None:
    examples = quote_closing(40).prepare(code_model())[:1]
    model = code_model()
    found = attribution_patching(model, examples, base="corrupt", steps=3)
    clean, corrupt = (
        model.trace(p, capture="embed.token") for p in (examples.clean, examples.corrupt)
    )
    start, end = corrupt["embed.token"], clean["embed.token"]
    site = "blocks.1.mlp.out"
    values = [model.trace(p, capture=site)[site] for p in (examples.clean, examples.corrupt)]
    total = torch.zeros_like(values[0])
    for share in (1 / 6, 3 / 6, 5 / 6):
        slopes = model.gradients(
            lambda lo, le: metric("logit_difference")(lo, le, examples),  # type: ignore[operator]
            site,
            examples.corrupt,
            interventions=[at("embed.token").add(share * (end - start))],
        )
        total += slopes[site] / 3
    wanted = float(((values[0] - values[1]) * total).sum())
    assert found.values[0, found.names.index("m1")] == pytest.approx(wanted, abs=1e-4)
    with pytest.raises(ConfigError, match="steps=0"):
        attribution_patching(model, examples, steps=0)
