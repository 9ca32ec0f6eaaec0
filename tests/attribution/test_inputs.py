"""Input attribution against exact values, completeness and independence of batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.small import code_model
from torch import nn

from microtome.attribution import InputAttribution, input_attribution
from microtome.attribution.inputs import METHODS
from microtome.behaviors import Example, Examples, quote_closing, score
from microtome.errors import ConfigError, MetricError, PairError, SiteAbsentError, UnknownNameError
from microtome.models.families import build
from microtome.tracing.model import Model
from microtome.tracing.opening import load
from microtome.tracing.sites import at

CLEAN = ((5, 6, 7, 8), (9, 6, 7, 10), (5, 11, 12, 13, 14))
CORRUPT = ((5, 9, 7, 15), (9, 8, 7, 11), (6, 11, 16, 13, 17))


def pairs(corrupt: tuple[tuple[int, ...], ...] = CORRUPT) -> Examples:
    rows = [
        Example(
            i, CLEAN[i], corrupt[i], ((20,),), ((21,), (22,)), f"c{i}", "t", "test",
            {"cue": (1, 2)}, {}, "",
        )
        for i in range(len(CLEAN))
    ]  # fmt: skip
    return Examples(tuple(rows))


def linear_model() -> Model:
    """A GPT-2 in which nothing bends: norms and MLPs gone, attention always uniform."""
    model = load(build("gpt2"))
    body = model.module.transformer
    for block in body.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
        width = block.attn.c_attn.weight.shape[0]
        for weights in (block.attn.c_attn.weight, block.attn.c_attn.bias):
            weights.data[..., : 2 * width] = 0
        block.mlp.c_proj.weight.data.zero_()
    body.ln_f = nn.Identity()
    return model


@pytest.mark.parametrize("baseline", ["corrupt", "zero", "mean", "resample"])
def test_in_a_linear_model_all_methods_agree_and_add_up(baseline: str) -> None:
    model, examples = linear_model(), pairs()
    found = [
        input_attribution(model, examples, method=m, baseline=baseline, steps=1)
        for m in ("integrated_gradients", "gradient_x_input", "occlusion")
    ]
    for other in found[1:]:
        np.testing.assert_allclose(found[0].values, other.values, atol=2e-4)
    assert np.abs(found[0].completeness_error).max() < 2e-4
    assert found[1].completeness_error is None and found[2].completeness_error is None


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_integrated_gradients_are_complete(family: str) -> None:
    """Also where the embedding is scaled inside or normed behind the module.

    The random families bend sharply along the path, so many points are needed here.
    """
    model, examples = load(build(family)), pairs()
    few = input_attribution(model, examples, steps=8)
    many = input_attribution(model, examples, steps=256)
    error = np.abs(many.completeness_error).max()
    assert error < 0.01 * np.abs(many.total - many.baseline_total).max()
    assert error < 0.1 * np.abs(few.completeness_error).max()
    np.testing.assert_allclose(many.total, score(model, examples).values, rtol=1e-5)
    corrupt = score(model, examples, side="corrupt").values
    np.testing.assert_allclose(many.baseline_total, corrupt, rtol=1e-4, atol=1e-5)
    same = [i for i, (a, b) in enumerate(zip(CLEAN[0], CORRUPT[0], strict=True)) if a == b]
    assert np.all(many.values[0, same] == 0)


@pytest.mark.parametrize("method", METHODS)
def test_values_do_not_depend_on_the_batch(method: str) -> None:
    model = code_model()
    examples = quote_closing(40).prepare(model).split("train").take(range(7))
    whole = input_attribution(model, examples, method=method, steps=4)
    for size in (1, 5):
        parts = input_attribution(model, examples, method=method, steps=4, batch_size=size)
        np.testing.assert_allclose(whole.values, parts.values, atol=1e-4)
    alone = input_attribution(model, examples.take([3]), method=method, steps=4)
    length = len(alone.tokens[0])
    np.testing.assert_allclose(alone.values[0], whole.values[3, :length], atol=1e-4)
    assert whole.tokens[3] == alone.tokens[0] and np.isnan(whole.values[3, length:]).all()


def test_tokens_drawn_as_a_baseline_depend_on_the_seed_alone() -> None:
    model, examples = load(build("gpt2")), pairs()
    found = [
        input_attribution(
            model, examples, method="occlusion", baseline="resample", seed=s, batch_size=b
        ).values
        for s, b in ((0, 64), (0, 1), (1, 64))
    ]
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
    assert not np.allclose(found[0], found[2], equal_nan=True)


def test_occlusion_is_the_drop_computed_by_hand() -> None:
    model, examples = load(build("llama")), pairs()
    found = input_attribution(model, examples, method="occlusion")
    table = model.module.model.embed_tokens.weight
    for row, example in enumerate(examples):
        for p in range(len(example.clean)):
            embedded = table[list(example.clean)].clone()
            embedded[p] = table.mean(0)
            with torch.no_grad():
                logits = model.module(inputs_embeds=embedded[None]).logits[0, -1]
            value = float(logits[20] - logits[[21, 22]].mean())
            assert found.values[row, p] == pytest.approx(found.total[row] - value, abs=1e-4)


def test_value_zeroing_is_the_drop_computed_by_hand() -> None:
    model, examples = load(build("gpt2")), pairs()
    found = input_attribution(model, examples, method="value-zeroing")
    example, p = examples[1], 1

    def without(_module: nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[:, p, 2 * output.shape[-1] // 3 :] = 0
        return changed

    ends = {}
    for name in ("plain", "zeroed"):
        blocks = model.module.transformer.h if name == "zeroed" else []
        handles = [b.attn.c_attn.register_forward_hook(without) for b in blocks]
        with torch.no_grad():
            out = model.module(torch.tensor([example.clean]), output_hidden_states=True)
        trace = model.trace([example.clean], capture="resid_post")
        ends[name] = (out.logits[0, -1], trace.stack("resid_post")[-1][0, -1])
        for handle in handles:
            handle.remove()
    logits = ends["zeroed"][0]
    value = float(logits[20] - logits[[21, 22]].mean())
    assert found.values[1, p] == pytest.approx(found.total[1] - value, abs=1e-4)
    cosine = torch.cosine_similarity(ends["plain"][1], ends["zeroed"][1], dim=0)
    assert found.representation_change[1, p] == pytest.approx(1 - float(cosine), abs=1e-5)


def test_metrics_that_are_not_linear_work_and_the_result_is_kept(tmp_path: Path) -> None:
    model, examples = load(build("llama")), pairs()
    found = input_attribution(model, examples, metric="probability_difference", steps=64)
    assert np.abs(found.completeness_error).max() < 1e-3
    again = InputAttribution.load(found.save(tmp_path / "found"))
    np.testing.assert_array_equal(again.values, found.values)
    frame = again.to_frame()
    assert len(frame) == sum(map(len, CLEAN)) and set(frame["role"]) == {"", "cue"}
    roles = again.by_role().set_index("role")["mean"]
    assert roles.sum() == pytest.approx(np.nansum(found.values) / len(CLEAN))
    assert again.provenance.config["steps"] == "64"


def test_a_behavior_is_prepared() -> None:
    found = input_attribution(code_model(), quote_closing(20), method="gradient_x_input")
    assert len(found.tokens) == len(found.values) and "opening quote" in set(
        found.to_frame()["role"]
    )


def test_what_cannot_be_attributed_is_refused() -> None:
    model, examples = load(build("gpt2")), pairs()
    with pytest.raises(UnknownNameError, match="occlusion"):
        input_attribution(model, examples, method="oclusion")
    with pytest.raises(UnknownNameError, match="mean"):
        input_attribution(model, examples, baseline="means")
    with pytest.raises(ConfigError, match="takes no baseline"):
        input_attribution(model, examples, method="value_zeroing", baseline="zero")
    with pytest.raises(ConfigError, match="steps=0"):
        input_attribution(model, examples, steps=0)
    with pytest.raises(MetricError, match="prompt's end"):
        input_attribution(model, examples, metric="sequence_log_probability")
    with pytest.raises(MetricError, match="no gradient"):
        input_attribution(model, examples, metric="accuracy")
    uneven = pairs(((5, 9), CORRUPT[1], CORRUPT[2]))
    with pytest.raises(PairError, match="4 tokens and the corrupt one 2"):
        input_attribution(model, uneven)
    with pytest.raises(SiteAbsentError, match="attn.v|values|attention"):
        input_attribution(load(build("bloom")), examples, method="value_zeroing")


def test_sites_are_left_as_they_were() -> None:
    model, examples = load(build("gpt2")), pairs()
    before = model.trace(examples.clean[:1], capture=at("embed.token")).logits
    input_attribution(model, examples, steps=2)
    after = model.trace(examples.clean[:1]).logits
    assert torch.equal(before, after)
    assert all(p.requires_grad for p in model.module.parameters())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("baseline", ["corrupt", "mean"])
def test_a_model_prepared_for_gradient_checkpointing(method: str, baseline: str) -> None:
    chosen = None if method == "value_zeroing" else baseline
    model = load(build("llama"))
    before = input_attribution(model, pairs(), method=method, baseline=chosen)
    model.module.enable_input_require_grads()
    after = input_attribution(model, pairs(), method=method, baseline=chosen)
    for a, b in zip(after.values, before.values, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
