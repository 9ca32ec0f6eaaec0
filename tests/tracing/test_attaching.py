"""Codecs attached to a model: what they read, what writing them does, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.codecs import DenseSAE, SkipTranscoder, Squares, TopKSAE
from torch import nn

from microtome.errors import (
    ConfigError,
    HookError,
    SiteError,
)
from microtome.models.families import build
from microtome.tracing.model import Model
from microtome.tracing.opening import load
from microtome.tracing.sites import at

TOKENS = torch.randint(5, 90, (3, 9), generator=torch.Generator().manual_seed(0))
FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox", "mixtral", "bert", "granite"]
STREAM = "blocks.1.resid_post/sae"
MLP = "blocks.0.mlp.in/tc"


def plain(family: str = "gpt2") -> Model:
    return load(build(family))


def opened(family: str = "gpt2", **options: object) -> Model:
    """A model with an SAE behind block 1 and a skip transcoder over the MLP of block 0."""
    model = plain(family)
    width = model.anatomy.d_model  # type: ignore[union-attr]
    model = model.attach("sae", TopKSAE(width, 24), at="blocks.1.resid_post")
    return model.attach(
        "tc", SkipTranscoder(width, 16, width), at="blocks.0.mlp.in", to="blocks.0.mlp.out"
    )


def codec(model: Model, name: str = "sae") -> DenseSAE:
    found = model.attached(name)[0].codec
    assert isinstance(found, DenseSAE)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_unchanged_latents_and_error_change_no_bit(family: str) -> None:
    model = opened(family)
    untouched = model.module(TOKENS).logits
    sites = [s.name for s in model.sites() if "/" in s.name]
    assert sites == [MLP, "blocks.0.mlp.out/tc.error", STREAM, f"{STREAM}.error"]
    assert torch.equal(model.trace(TOKENS, capture=sites).logits, untouched)  # type: ignore[arg-type]
    other = model.trace(TOKENS, capture=sites)
    same = [at(name).scale(1.0) for name in sites] + [at(name).patch(other) for name in sites]
    assert torch.equal(model.trace(TOKENS, interventions=same).logits, untouched)  # type: ignore[arg-type]
    part = [at(f"{STREAM}[latent=3]").apply(torch.clone), at(f"{MLP}[pos=2]").add(0.0)]
    assert torch.equal(model.trace(TOKENS, interventions=part).logits, untouched)  # type: ignore[arg-type]


def test_latents_error_and_bypass_add_up() -> None:
    model = opened()
    error = "blocks.0.mlp.out/tc.error"
    trace = model.trace(TOKENS, capture=[MLP, error, "blocks.0.mlp.in", "blocks.0.mlp.out"])
    tc = codec(model, "tc")
    read = trace["blocks.0.mlp.in"]
    torch.testing.assert_close(trace[MLP], tc.encode(read))
    total = tc.decode(trace[MLP]) + tc.bypass(read) + trace[error]  # type: ignore[operator]
    torch.testing.assert_close(total, trace["blocks.0.mlp.out"])
    assert trace.axes(MLP) == ("batch", "pos", "latent")
    assert trace.axes(error) == ("batch", "pos", "d_model")
    assert trace[f"{MLP}[latent=2,5]"].shape == (3, 9, 2)
    assert trace.to_xarray(MLP).dims == ("batch", "pos", "latent")


def by_hand(model: Model, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Logits with a hook of one's own behind block 1 of GPT-2."""
    block = model.module.transformer.h[1]

    def hook(_module: nn.Module, _args: object, output: object) -> object:
        if isinstance(output, torch.Tensor):
            return change(output)
        return (change(output[0]), *output[1:])  # type: ignore[index]

    handle = block.register_forward_hook(hook)
    try:
        with torch.no_grad():
            return model.module(TOKENS).logits
    finally:
        handle.remove()


def test_writes_equal_hooks_written_by_hand() -> None:
    model = opened()
    sae = codec(model)
    other = model.trace(TOKENS.flip(1), capture=[STREAM, f"{STREAM}.error"])
    mean = other[STREAM].mean((0, 1))

    def moved(new: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        def change(x: torch.Tensor) -> torch.Tensor:
            f = sae.encode(x)
            return x + sae.decode(new(f.clone())) - sae.decode(f)

        return by_hand(model, change)

    def put(f: torch.Tensor, where: tuple[object, ...], value: object) -> torch.Tensor:
        f[where] = value  # type: ignore[index,assignment]
        return f

    every = slice(None)
    cases = {
        "zero": (at(f"{STREAM}[latent=5]").zero(), lambda f: put(f, (..., 5), 0.0)),
        "steer": (
            at(f"{STREAM}[latent=5][pos=-1]").add(3.0),
            lambda f: put(f, (every, -1, 5), f[:, -1, 5] + 3),
        ),
        "scale": (at(STREAM).scale(2.0), lambda f: 2 * f),
        "set": (at(f"{STREAM}[latent=1]").set(2.0, rows=[1]), lambda f: put(f, (1, every, 1), 2.0)),
        "patch": (
            at(f"{STREAM}[pos=2:4]").patch(other),
            lambda f: put(f, (every, slice(2, 4)), other[STREAM][:, 2:4]),
        ),
        "mean": (at(STREAM).mean(over=other), lambda f: mean.expand_as(f)),
    }
    for name, (intervention, new) in cases.items():
        got = model.trace(TOKENS, interventions=[intervention]).logits
        torch.testing.assert_close(got, moved(new), rtol=1e-4, atol=1e-5, msg=name)
    error = by_hand(model, lambda x: sae.decode(sae.encode(x)) + other[f"{STREAM}.error"])
    got = model.trace(TOKENS, interventions=[at(f"{STREAM}.error").patch(other)]).logits
    torch.testing.assert_close(got, error, rtol=1e-4, atol=1e-5)


def test_a_splice_is_the_reconstruction() -> None:
    model = opened()
    sae = codec(model)
    spliced = model.trace(TOKENS, interventions=[model.attached("sae")[0].splice()])
    wanted = by_hand(model, lambda x: sae.decode(sae.encode(x)))
    assert torch.equal(spliced.logits, wanted)  # type: ignore[arg-type]
    with model.under([model.attached("sae")[0].splice()]):
        assert torch.equal(model.module(TOKENS).logits, wanted)
    # of a transcoder: what its latents stand for and what passes by them
    tc = codec(model, "tc")
    replaced = model.trace(
        TOKENS, capture=["blocks.0.mlp.in", "blocks.0.mlp.out"],
        interventions=[model.attached("tc")[0].splice()],
    )  # fmt: skip
    read = replaced["blocks.0.mlp.in"]
    direct = tc.decode(tc.encode(read)) + tc.bypass(read)  # type: ignore[operator]
    torch.testing.assert_close(replaced["blocks.0.mlp.out"], direct)


def test_changes_act_in_the_order_given() -> None:
    model = opened()
    sae, site = codec(model), at(f"{STREAM}[latent=5]")
    stream = at("blocks.1.resid_post")
    v = torch.linspace(-1, 1, sae.d_in)
    x = model.trace(TOKENS, capture=stream)[stream]

    def after(*changes: object) -> tuple[torch.Tensor, torch.Tensor]:
        trace = model.trace(TOKENS, capture=[stream, STREAM], interventions=changes)  # type: ignore[arg-type]
        return trace[stream], trace[STREAM]

    def added(x: torch.Tensor, amount: float) -> torch.Tensor:
        return x + amount * sae.w_dec[5]

    both, latents = after(site.add(1.0), site.scale(3.0))
    f = sae.encode(x)[..., 5]
    torch.testing.assert_close(latents[..., 5], 3 * (f + 1))
    torch.testing.assert_close(both, x + (2 * f + 3).unsqueeze(-1) * sae.w_dec[5])
    first, latents = after(stream.add(v), site.add(2.0))
    torch.testing.assert_close(first, added(x + v, 2.0))
    torch.testing.assert_close(latents[..., 5], sae.encode(x + v)[..., 5] + 2)
    last, latents = after(site.add(2.0), stream.add(v))
    torch.testing.assert_close(last, added(x, 2.0) + v)
    # the site was changed last, and the codec reads what is there then
    torch.testing.assert_close(latents, sae.encode(last))


def test_two_codecs_at_one_site_and_one_downstream() -> None:
    model = opened()
    width = model.anatomy.d_model  # type: ignore[union-attr]
    model = model.attach("b", DenseSAE(width, 12, seed=3), at="blocks.1.resid_post")
    b, late = codec(model, "b"), "blocks.1.resid_post/b"
    trace = model.trace(
        TOKENS, capture=["blocks.1.resid_post", STREAM, late, f"{late}.error"],
        interventions=[at(f"{STREAM}[latent=2]").add(2.0), at(f"{late}[latent=1]").add(1.0),
                       at(f"{MLP}[latent=0]").add(5.0)],
    )  # fmt: skip
    upstream = model.trace(
        TOKENS, capture="blocks.1.resid_post", interventions=[at(f"{MLP}[latent=0]").add(5.0)]
    )["blocks.1.resid_post"]
    assert not torch.equal(
        upstream, model.trace(TOKENS, capture="resid_post").stack("resid_post")[1]
    )
    between = upstream + 2 * codec(model).w_dec[2]
    f = b.encode(between)
    f[..., 1] += 1
    torch.testing.assert_close(trace[late], f)
    torch.testing.assert_close(trace["blocks.1.resid_post"], between + b.w_dec[1])
    torch.testing.assert_close(
        b.decode(trace[late]) + trace[f"{late}.error"], trace["blocks.1.resid_post"]
    )


def test_one_name_for_a_codec_in_each_block() -> None:
    model = plain()
    width = model.anatomy.d_model  # type: ignore[union-attr]
    for layer in range(2):
        sae = DenseSAE(width, 10, seed=layer)
        model = model.attach("sae", sae, at=f"blocks.{layer}.resid_post")
    trace = model.trace(TOKENS, capture="resid_post/sae")
    assert trace.stack("resid_post/sae").shape == (2, 3, 9, 10)
    assert len(model.attached("sae")) == 2 and not model.detach("sae").codecs


@pytest.mark.parametrize(
    ("family", "site"),
    [
        ("gpt2", "blocks.1.attn.z"), ("llama", "blocks.0.attn.v"), ("llama", "blocks.1.mlp.act"),
        ("granite", "blocks.0.attn.out"), ("gpt2", "blocks.0.resid_mid"), ("gpt2", "embed.token"),
        ("llama", "blocks.1.resid_pre"), ("gemma2", "blocks.0.mlp.out"), ("llama", "final.norm"),
        ("granite", "blocks.1.resid_mid"),
    ],
)  # fmt: skip
def test_other_sites_heads_joined(family: str, site: str) -> None:
    model = plain(family)
    value = model.trace(TOKENS, capture=site)[site]
    width = value.flatten(2).shape[-1]
    sae = DenseSAE(width, 20)
    coded = model.attach("x", sae, at=site)
    trace = coded.trace(TOKENS, capture=[f"{site}/x", f"{site}/x.error", site])
    assert torch.equal(trace.logits, model.module(TOKENS).logits)  # type: ignore[arg-type]
    torch.testing.assert_close(trace[f"{site}/x"], sae.encode(value.flatten(2)))
    assert trace[f"{site}/x.error"].shape == value.shape
    names = [site, f"{site}/x", f"{site}/x.error"]
    found = coded.gradients(lambda logits, _: logits[:, -1, 7], names, TOKENS)
    slope = found[site]
    torch.testing.assert_close(found[f"{site}/x"], slope.flatten(2) @ sae.w_dec.T)
    torch.testing.assert_close(found[f"{site}/x.error"], slope)
    alone = model.gradients(lambda logits, _: logits[:, -1, 7], site, TOKENS)[site]
    torch.testing.assert_close(slope, alone)
    change = at(f"{site}/x[latent=4]").add(2.0)
    moved = coded.trace(TOKENS, capture=[site, f"{site}/x"], interventions=[change])
    wanted = value + 2 * sae.w_dec[4].reshape(value.shape[2:])
    torch.testing.assert_close(moved[site], wanted, rtol=1e-4, atol=1e-5)
    by_site = model.trace(TOKENS, interventions=[at(site).patch(wanted.detach())])
    torch.testing.assert_close(moved.logits, by_site.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "names",
    [
        [STREAM], [f"{STREAM}.error"], [STREAM, f"{STREAM}.error"], [MLP],
        ["blocks.0.mlp.out/tc.error"], [MLP, "blocks.0.mlp.out/tc.error", STREAM],
    ],
)  # fmt: skip
@pytest.mark.parametrize("changed", [False, True])
def test_gradients_against_differences(names: list[str], changed: bool) -> None:
    base = load(build("gpt2").double())
    width = base.anatomy.d_model  # type: ignore[union-attr]
    model = base.attach("sae", DenseSAE(width, 24).double(), at="blocks.1.resid_post").attach(
        "tc", SkipTranscoder(width, 16, width).double(), at="blocks.0.mlp.in", to="blocks.0.mlp.out"
    )
    prompts = TOKENS[:1]
    before = [at(f"{STREAM}[latent=2]").scale(0.5), at(f"{MLP}[latent=1]").zero()]
    changes = before if changed else []

    def metric(logits: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, 7] - logits[:, -1, 11]

    found = model.gradients(metric, names, prompts, interventions=changes)
    whole = model.trace(prompts, capture=names, interventions=changes)
    for name in names:
        torch.testing.assert_close(found.value(name), whole[name], rtol=0, atol=0)
        direction = torch.randn(
            found[name].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )

        def at_step(step: float, name: str = name, by: torch.Tensor = direction) -> torch.Tensor:
            moved = [*changes, at(name).apply(lambda v: v + step * by)]
            return metric(model.trace(prompts, interventions=moved).logits, None)  # type: ignore[arg-type]

        slope = float((at_step(1e-3) - at_step(-1e-3)) / 2e-3)
        assert float((found[name] * direction).sum()) == pytest.approx(slope, rel=5e-3, abs=1e-3)


def test_what_lies_before_gets_the_models_own_gradient() -> None:
    model = opened()

    def metric(logits: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, 7]

    sites = ["blocks.0.mlp.out", "embed.token"]
    alone = plain().gradients(metric, sites, TOKENS)
    with_codecs = model.gradients(metric, [*sites, STREAM, f"{STREAM}.error", MLP], TOKENS)
    for site in sites:
        torch.testing.assert_close(with_codecs[site], alone[site], rtol=1e-5, atol=1e-7)
    part = model.gradients(metric, f"{STREAM}[latent=3][pos=-1]", TOKENS)
    torch.testing.assert_close(
        part[f"{STREAM}[latent=3][pos=-1]"], with_codecs[STREAM][:, -1:, 3:4]
    )


def test_a_held_error_leaves_the_gradient_of_the_codec_only() -> None:
    model = opened()
    sae, error = codec(model), f"{STREAM}.error"
    kept = model.trace(TOKENS, capture=error)
    before = "blocks.1.resid_pre"

    def metric(logits: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, 7]

    held = [at(error).patch(kept)]
    found = model.gradients(metric, [before, STREAM], TOKENS, interventions=held)
    usual = model.gradients(metric, before, TOKENS)
    # the value is what it was, bit for bit, only its slope is another
    torch.testing.assert_close(found.metric, usual.metric, rtol=0, atol=0)
    assert not torch.allclose(found[before], usual[before], rtol=1e-2)
    change = at("blocks.1.resid_post").apply(lambda x: sae.decode(sae.encode(x)) + kept[error])
    by_hand = plain().gradients(metric, before, TOKENS, interventions=[change])
    torch.testing.assert_close(found[before], by_hand[before], rtol=1e-4, atol=1e-6)


def test_gradients_from_latent_to_latent() -> None:
    model = plain()
    width = model.anatomy.d_model  # type: ignore[union-attr]
    early, late = DenseSAE(width, 10), DenseSAE(width, 8, seed=4)
    model = model.attach("a", early, at="blocks.0.resid_post")
    model = model.attach("b", late, at="blocks.1.resid_post")
    model.module.requires_grad_(False)
    one, two = "blocks.0.resid_post/a", "blocks.1.resid_post/b"
    trace = model.trace(TOKENS[:1], capture=[one, two], grad=True)
    # the codec's parameters make the graph start at the first latents
    target = int(trace[two][0, -1].detach().argmax())
    slope = torch.autograd.grad(trace[two][0, -1, target], trace[one])[0]

    def moved(step: float) -> torch.Tensor:
        change = at(f"{one}[latent=2][pos=4]").add(step)
        return model.trace(TOKENS[:1], capture=two, interventions=[change])[two][0, -1, target]

    difference = float((moved(0.05) - moved(-0.05)) / 0.1)
    assert float(slope[0, 4, 2]) == pytest.approx(difference, rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_generation_with_a_cache_and_scopes(family: str) -> None:
    model = opened(family)
    prompts = [[5, 6, 7, 8], [9, 10]]
    cases = [
        [at(f"{STREAM}[latent=3]").add(8.0)],
        [at(f"{STREAM}[latent=3][pos=-1]").add(8.0), at(f"{MLP}[latent=2]").set(9.0)],
        [model.attached("sae")[0].splice(), at("blocks.0.mlp.out/tc.error").zero()],
    ]
    usual = model.generate(prompts, max_new_tokens=6)
    for changes in cases:
        cached, whole = (
            model.generate(prompts, max_new_tokens=6, interventions=changes, use_cache=c)
            for c in (True, False)
        )
        assert cached.tokens == whole.tokens != usual.tokens
        alone = [
            model.generate([p], max_new_tokens=6, interventions=changes).tokens[0] for p in prompts
        ]
        assert tuple(alone) == cached.tokens
    only_new = model.generate(prompts, max_new_tokens=6, interventions=cases[0], steps="new")
    assert [row[0] for row in only_new.tokens] == [row[0] for row in usual.tokens]
    wanted = model.trace(TOKENS, interventions=cases[0]).logits
    with model.under(cases[0]):
        got = model.module(TOKENS).logits
    torch.testing.assert_close(got, wanted)
    with model.under(cases[0]):
        model.module(TOKENS).logits.sum().backward()
    assert all(p.grad is not None for p in model.module.parameters() if p.requires_grad)


def test_replays_with_changed_latents_are_the_whole_pass() -> None:
    model = opened("llama")
    base = model.record([[5, 6, 7, 8], [9, 10, 11]], keys=True, capture=STREAM)
    rows = torch.tensor([0, 1])
    changes = [at(f"{STREAM}[latent=3]").add(4.0), at(f"{MLP}[latent=1]").add(4.0)]
    last = model.replay(base, 0, base.streams[0][rows], rows=rows, interventions=changes)
    whole = model.trace([[5, 6, 7, 8], [9, 10, 11]], interventions=changes)
    torch.testing.assert_close(model.tail(last, torch.tensor([[3], [2]]))[:, 0], whole.last())
    assert base.captured[STREAM].shape == (2, 4, 24)


def test_a_float32_codec_in_a_bfloat16_model() -> None:
    model = load(build("llama"), dtype="bfloat16")
    width = model.anatomy.d_model  # type: ignore[union-attr]
    sae = TopKSAE(width, 24)
    coded = model.attach("sae", sae, at="blocks.1.resid_post")
    trace = coded.trace(TOKENS, capture=[STREAM, f"{STREAM}.error", "blocks.1.resid_post"])
    assert torch.equal(trace.logits, model.module(TOKENS).logits)  # type: ignore[arg-type]
    assert trace[STREAM].dtype == torch.float32
    assert trace["blocks.1.resid_post"].dtype == torch.bfloat16
    same = [at(STREAM).scale(1.0), at(f"{STREAM}.error").scale(1.0)]
    assert torch.equal(coded.trace(TOKENS, interventions=same).logits, trace.logits)  # type: ignore[arg-type]
    wanted = sae.decode(sae.encode(trace["blocks.1.resid_post"].float()))
    spliced = coded.trace(
        TOKENS, capture="blocks.1.resid_post", interventions=[coded.attached("sae")[0].splice()]
    )
    assert torch.equal(spliced["blocks.1.resid_post"], wanted.to(torch.bfloat16))
    slopes = coded.gradients(lambda logits, _: logits[:, -1, 7], [STREAM], TOKENS)
    assert slopes[STREAM].dtype == torch.float32 and float(slopes[STREAM].abs().max()) > 0


def test_a_codec_in_bfloat16() -> None:
    model = plain("llama")
    width = model.anatomy.d_model  # type: ignore[union-attr]
    coded = model.attach("sae", TopKSAE(width, 24).bfloat16(), at="blocks.1.resid_post")
    names = [STREAM, f"{STREAM}.error", "blocks.1.resid_post"]
    trace = coded.trace(TOKENS, capture=names)
    assert coded.codecs[0].affine and trace[STREAM].dtype == torch.bfloat16
    assert trace[f"{STREAM}.error"].dtype == torch.float32
    total = codec(coded).decode(trace[STREAM]) + trace[f"{STREAM}.error"]
    torch.testing.assert_close(total, trace["blocks.1.resid_post"])
    same = [at(STREAM).scale(1.0), at(f"{STREAM}.error").scale(1.0)]
    assert torch.equal(coded.trace(TOKENS, interventions=same).logits, trace.logits)  # type: ignore[arg-type]
    slopes = coded.gradients(lambda logits, _: logits[:, -1, 7], names, TOKENS)
    assert slopes[STREAM].dtype == torch.bfloat16
    assert all(bool(torch.isfinite(slopes[n]).all()) for n in names)


def test_the_model_itself_is_not_changed() -> None:
    model = plain()
    coded = opened()
    assert repr(coded).endswith("with sae, tc)")
    assert not model.codecs and [one.name for one in coded.codecs] == ["sae", "tc"]
    assert coded.detach("sae").module is coded.module
    with pytest.raises(SiteError, match="model = model.attach"):
        model.trace(TOKENS, capture=STREAM)
    with pytest.raises(SiteError, match="No codec has the site"):
        coded.detach("sae").trace(TOKENS, capture=STREAM)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in coded.module.modules())


def test_verification_covers_what_is_attached() -> None:
    found = opened("llama").verify()
    assert found.passed, found.failures()
    checked = {s.info.name: s for s in found.sites if "/" in s.info.name}
    assert len(checked) == 4 and all(s.read and s.written for s in checked.values())


def test_affine_codecs_are_told_from_others() -> None:
    model = plain()
    width = model.anatomy.d_model  # type: ignore[union-attr]
    coded = model.attach("a", DenseSAE(width, 8), at="blocks.0.resid_post").attach(
        "b", Squares(width, 8), at="blocks.1.resid_post"
    )
    one, other = coded.codecs
    assert one.affine and not other.affine and one.fingerprint != other.fingerprint
    directions = one.directions(torch.tensor([3, 0]))
    torch.testing.assert_close(directions, codec(coded, "a").w_dec[[3, 0]], rtol=1e-4, atol=1e-6)


def test_a_target_without_its_source_is_an_error() -> None:
    model = plain()
    width = model.anatomy.d_model  # type: ignore[union-attr]
    model = model.attach("x", DenseSAE(width, 8), at="blocks.0.mlp.in", to="blocks.1.mlp.out")
    base = model.record([[5, 6, 7]])
    rows = torch.tensor([0])
    change = [at("blocks.0.mlp.in/x[latent=1]").add(1.0)]
    whole = model.trace([[5, 6, 7]], interventions=change)
    assert not torch.equal(whole.logits, base.logits)  # type: ignore[arg-type]
    with pytest.raises(HookError, match="without"):
        model.replay(base, 0, base.streams[0], rows=rows, interventions=change)


def test_a_transcoder_may_write_the_stream_of_its_own_block() -> None:
    model = plain()
    width = model.anatomy.d_model  # type: ignore[union-attr]
    ends = {"at": "blocks.0.mlp.in", "to": "blocks.0.resid_post"}
    found = model.attach("tc", DenseSAE(width, 8), **ends)
    untouched = model.module(TOKENS).logits
    change = at("blocks.0.mlp.in/tc[latent=2]")
    same = found.trace(TOKENS, interventions=[change.scale(1.0)]).logits
    assert torch.equal(same, untouched)  # type: ignore[arg-type]
    moved = found.trace(TOKENS, interventions=[change.add(2.0)]).logits
    direction = 2 * codec(found, "tc").w_dec[2].detach()
    wanted = model.trace(TOKENS, interventions=[at("blocks.0.resid_post").add(direction)]).logits
    torch.testing.assert_close(moved, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="does not lie behind"):
        model.attach("tc", DenseSAE(width, 8), at="blocks.0.resid_post", to="blocks.0.mlp.out")
