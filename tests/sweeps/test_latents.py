"""Sweeps over latents and errors of attached codecs, against one forward pass for each run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.codecs import DenseSAE, SkipTranscoder, Squares, TopKSAE
from tests.sweeps.test_rules import largest
from tests.sweeps.test_sweeps import pairs

from microtome.errors import FormatError, SelectorError, SweepError
from microtome.models.families import build
from microtome.sweeps import plan, sweep
from microtome.sweeps.checkpoint import Checkpoint
from microtome.tracing.model import Model
from microtome.tracing.opening import load
from microtome.tracing.sites import at

SITES = {
    "resid_post": 1, "resid_pre": 1, "resid_mid": 0, "attn.z": 1, "mlp.act": 0, "mlp.out": 1,
    "mlp.in": 0, "attn.v": 0,
}  # fmt: skip
"""Sites that codecs are attached to, and in which block."""


def opened(family: str, site: str, kind: type[DenseSAE] = DenseSAE) -> Model:
    model = load(build(family))
    full = f"blocks.{SITES[site]}.{site}"
    width = model.trace([[1, 2]], capture=full)[full].flatten(2).shape[-1]
    return model.attach("x", kind(width, 12), at=full)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_latents_by_every_rule(family: str, site: str) -> None:
    model = opened(family, site)
    operation = ("patch", "zero", "mean")[list(SITES).index(site) % 3]
    name = f"{site}/x"
    assert largest(model, pairs((7, 7)), name, operation=operation, latents=[0, 3, 7]) < 2e-5
    assert largest(model, pairs((7, 7)), f"{name}.error", operation=operation) < 2e-5


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox", "bert", "granite", "mixtral", "olmo2"])
def test_latents_in_other_families(family: str) -> None:
    model = opened(family, "resid_post")
    assert largest(model, pairs((7, 7)), "resid_post/x", operation="zero", latents=[1, 4]) < 2e-5
    model = opened(family, "attn.z")
    assert largest(model, pairs((7, 7)), "attn.z/x", operation="patch", latents=[1, 4]) < 2e-5


def test_all_latents_at_one_position_and_codecs_that_do_not_add_up() -> None:
    model = opened("gpt2", "resid_post")
    assert largest(model, pairs((7, 7)), "resid_post/x", over="pos") < 2e-5
    assert largest(model, pairs((7, 7)), "resid_post/x", over="role", operation="zero") < 2e-5
    model = opened("gpt2", "mlp.out", Squares)
    assert not plan(model, pairs((7, 7)), "mlp.out/x", latents=[1]).directions
    assert largest(model, pairs((7, 7)), "mlp.out/x", operation="zero", latents=[1, 4]) < 2e-5


def test_a_transcoder_enters_behind_the_mlp() -> None:
    model = load(build("gpt2"))
    width = model.anatomy.d_model  # type: ignore[union-attr]
    model = model.attach(
        "tc", SkipTranscoder(width, 16, width), at="blocks.0.mlp.in", to="blocks.0.mlp.out"
    )
    assert largest(model, pairs((7, 7)), "mlp.in/tc", operation="zero") < 2e-5
    planned = plan(model, pairs((7, 7)), "mlp.in/tc")
    assert next(planned.groups()).modes == {0: "after"}
    assert planned.directions
    assert largest(model, pairs((7, 7)), "mlp.out/tc.error", operation="mean") < 2e-5


def test_a_transcoder_into_another_block_is_run_whole() -> None:
    model = load(build("gpt2"))
    width = model.anatomy.d_model  # type: ignore[union-attr]
    model = model.attach("far", TopKSAE(width, 16), at="blocks.0.mlp.in", to="blocks.1.mlp.out")
    planned = plan(model, pairs((7, 7)), "mlp.in/far", operation="zero")
    assert "another block" in planned.declined["restart"]
    fast = planned.execute()
    slow = sweep(model, pairs((7, 7)), "mlp.in/far", operation="zero", rules=())
    np.testing.assert_allclose(fast.values, slow.values, atol=1e-5)


def test_values_are_those_of_the_interventions() -> None:
    model = opened("llama", "resid_post", TopKSAE)
    examples = pairs((7, 7, 7))
    found = sweep(model, examples, "resid_post/x", base="clean", operation="zero")
    name = "blocks.1.resid_post/x"
    latents = model.trace(examples.clean, capture=name)[name]
    both = torch.cat([latents, model.trace(examples.corrupt, capture=name)[name]])
    active = (both != 0).any(0).any(0).nonzero()[:, 0].tolist()
    assert found.values["latent"].values.tolist() == active
    assert found.values.dims == ("example", "layer", "latent")
    for latent in active[:3]:
        change = at(f"{name}[latent={latent}]").zero()
        logits = model.trace(examples.clean, interventions=[change], logits="last").logits
        by_hand = (logits[:, 0, 11] - logits[:, 0, 12]).numpy()  # type: ignore[index]
        np.testing.assert_allclose(
            found.values.sel(layer=1, latent=latent), by_hand, rtol=1e-4, atol=1e-5
        )
    one = sweep(model, examples, f"{name}[latent={active[0]}]", base="clean", operation="zero")
    np.testing.assert_allclose(
        one.values[:, 0, 0], found.values.sel(layer=1, latent=active[0]), atol=1e-6
    )
    by_block = sweep(model, examples, "resid_post/x", base="clean", latents={1: active[:2]})
    assert by_block.values.shape == (3, 1, 2)


def test_an_inactive_latent_is_known_to_move_nothing() -> None:
    model = opened("gpt2", "resid_post", TopKSAE)
    examples = pairs((7, 7))
    name = "blocks.1.resid_post/x"
    both = model.trace((*examples.clean, *examples.corrupt), capture=name)[name]
    silent = (both == 0).all(0).all(0).nonzero()[:, 0].tolist()
    planned = plan(model, examples, "resid_post/x", latents=silent[:2], operation="zero")
    assert not next(planned.groups()).moved.any()
    found = planned.execute()
    for latent in silent[:2]:
        np.testing.assert_array_equal(found.values.sel(layer=1, latent=latent), found.base)


def test_bfloat16_models_and_codecs_in_float32() -> None:
    model = load(build("llama"), dtype="bfloat16")
    width = model.anatomy.d_model  # type: ignore[union-attr]
    model = model.attach("x", TopKSAE(width, 12), at="blocks.1.resid_post")
    model = model.attach("x", DenseSAE(width, 12), at="blocks.0.attn.out")
    for site in ("resid_post/x", "attn.out/x"):
        assert sweep(model, pairs((7, 7)), site, operation="zero").certificate["passed"]


def test_what_cannot_be_swept() -> None:
    model = opened("gpt2", "resid_post")
    for settings, error, match in (
        ({"latents": [99]}, SelectorError, "there are 12"),
        ({"latents": {0: [1]}}, SweepError, "block 0"),
        ({"latents": []}, SweepError, "empty"),
        ({"over": "head"}, SweepError, "no heads"),
    ):
        with pytest.raises(error, match=match):
            plan(model, pairs(), "resid_post/x", **settings)  # type: ignore[arg-type]
    with pytest.raises(SweepError, match="no latents"):
        plan(model, pairs(), "resid_post", over="latent")
    outside = load(build("gpt2"))
    outside = outside.attach("x", DenseSAE(outside.anatomy.d_model, 4), at="final.norm")  # type: ignore[union-attr]
    with pytest.raises(SweepError, match="outside the blocks"):
        plan(outside, pairs(), "final.norm/x")


def test_a_stopped_sweep_of_another_codec_is_refused(tmp_path: Path) -> None:
    model = opened("gpt2", "resid_post")
    planned = plan(model, pairs(), "resid_post/x", latents=[1, 2])
    kept = tmp_path / "kept.safetensors"
    Checkpoint.at(kept, planned.key(), np.full((3, 2), np.nan)).write()
    assert planned.execute(resume=kept).certificate["passed"]
    Checkpoint.at(kept, planned.key(), np.full((3, 2), np.nan)).write()
    width = model.anatomy.d_model  # type: ignore[union-attr]
    other = model.detach("x").attach("x", DenseSAE(width, 12, seed=5), at="blocks.1.resid_post")
    with pytest.raises(FormatError, match="another sweep"):
        plan(other, pairs(), "resid_post/x", latents=[1, 2]).execute(resume=kept)
