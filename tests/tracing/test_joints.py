"""Codecs of several sites attached to a model: crosscoders and cross-layer transcoders."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.tracing.test_attaching import TOKENS, plain

from microtome.errors import ConfigError, ShapeError, SiteError, SiteWriteError
from microtome.models.families import build
from microtome.sae import SAE, Architecture, Origin
from microtome.sweeps import sweep
from microtome.tracing.model import Model
from microtome.tracing.opening import load
from microtome.tracing.sites import at

from tests.sweeps.test_sweeps import pairs  # isort: skip

FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox", "bert", "granite"]
KNOWN, EARLY = "blocks.1.resid_post/cross", "blocks.0.resid_post/cross.error"
STREAMS = ["blocks.0.resid_post", "blocks.1.resid_post"]
BEFORE = ["blocks.0.resid_pre", "blocks.1.resid_pre"]
READS, WRITES = ([f"blocks.{n}.mlp.{end}" for n in range(2)] for end in ("in", "out"))
FIRST, SECOND = (f"blocks.{n}.mlp.in/clt" for n in range(2))
ERRORS = tuple(f"blocks.{n}.mlp.out/clt.error" for n in range(2))


def noisy(make: Architecture, *, origin: Origin | None = None) -> SAE:
    """A coder with random biases and, where it has them, thresholds."""
    coder = SAE(make, seed=3, origin=origin)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in coder.weights.items():
            if weight.ndim == 1:
                weight += 0.1 * torch.randn(weight.shape, generator=generator).abs()
            elif name == "W_skip":
                weight.zero_()
    return coder


def crosscoder(width: int, **settings: object) -> SAE:
    given = {"activation": "relu", "sources": (width, width), "targets": (width, width)}
    return noisy(Architecture(2 * width, 20, **{**given, **settings}))  # type: ignore[arg-type]


def cross_layer(width: int, **settings: object) -> SAE:
    given = {"activation": "relu", "reach": "later", "center": False, "d_out": 2 * width}
    sites = {"sources": (width, width), "targets": (width, width)}
    return noisy(Architecture(2 * width, 24, **{**given, **sites, **settings}))  # type: ignore[arg-type]


def opened(family: str = "gpt2") -> Model:
    """A model with a crosscoder of both streams and a cross-layer transcoder of both MLPs."""
    model = plain(family)
    width = model.anatomy.d_model  # type: ignore[union-attr]
    model = model.attach("cross", crosscoder(width), at=STREAMS)
    return model.attach("clt", cross_layer(width), at=READS, to=WRITES)


def coder(model: Model, name: str) -> SAE:
    found = model.attached(name)[0].codec
    assert isinstance(found, SAE)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_unchanged_latents_and_errors_change_no_bit(family: str) -> None:
    model = opened(family)
    untouched = model.module(TOKENS).logits
    sites = [s.name for s in model.sites() if "/" in s.name]
    assert sorted(sites) == sorted(
        [FIRST, SECOND, *ERRORS, KNOWN, EARLY, "blocks.1.resid_post/cross.error"]
    )
    writable = [s.name for s in model.sites() if "/" in s.name and s.writable]
    assert sorted(set(sites) - set(writable)) == [EARLY]
    other = model.trace(TOKENS, capture=sites)
    assert torch.equal(other.logits, untouched)  # type: ignore[arg-type]
    same = [at(name).scale(1.0) for name in writable] + [at(n).patch(other) for n in writable]
    assert torch.equal(model.trace(TOKENS, interventions=same).logits, untouched)  # type: ignore[arg-type]
    part = [at(f"{KNOWN}[latent=3]").apply(torch.clone), at(f"{FIRST}[pos=2]").add(0.0)]
    assert torch.equal(model.trace(TOKENS, interventions=part).logits, untouched)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{}, {"center": True, "activation": "gated"},
                                      {"activation": "batchtopk", "k": 5}])  # fmt: skip
def test_latents_and_errors_add_up_to_every_target(settings: dict[str, object]) -> None:
    model = plain()
    width = model.anatomy.d_model  # type: ignore[union-attr]
    clt = cross_layer(width, **settings)
    model = model.attach("cross", crosscoder(width), at=STREAMS)
    model = model.attach("clt", clt, at=READS, to=WRITES)
    ends = [f"blocks.{n}.mlp.{end}" for end in ("in", "out") for n in range(2)]
    trace = model.trace(
        TOKENS, capture=[*ends, *STREAMS, "mlp.in/clt", *ERRORS, KNOWN, "resid_post/cross.error"]
    )
    read, given = (torch.cat([trace[s] for s in part], -1) for part in (ends[:2], ends[2:]))
    latents = torch.cat([trace[FIRST], trace[SECOND]], -1)
    torch.testing.assert_close(latents, clt.encode(read).detach())
    errors = torch.cat([trace[s] for s in ERRORS], -1)
    torch.testing.assert_close(clt.decode(latents).detach() + errors, given)
    both = torch.cat([trace[s] for s in STREAMS], -1)
    cross = coder(model, "cross")
    torch.testing.assert_close(trace[KNOWN], cross.encode(both).detach())
    errors = torch.cat([trace[f"{s}/cross.error"] for s in STREAMS], -1)
    torch.testing.assert_close(cross(both).detach() + errors, both)


def directions(model: Model, name: str, latent: int) -> list[torch.Tensor]:
    """What one unit of a latent adds at each target."""
    one = model.attached(name)[0]
    row = one.codec.weights["W_dec"].detach()[latent]  # type: ignore[attr-defined]
    return [row[one.part_of(site)] for site in one.writes]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_changed_latent_is_written_at_every_target_from_where_it_is_known(family: str) -> None:
    model = opened(family)
    change = at(f"{FIRST}[latent=5]").add(2.0)
    moved = model.trace(TOKENS, capture=["mlp.out", FIRST, SECOND, *ERRORS], interventions=[change])
    first, second = directions(model, "clt", 5)
    by_hand = [at("blocks.0.mlp.out").add(2 * first), at("blocks.1.mlp.out").add(2 * second)]
    wanted = model.trace(TOKENS, capture=["mlp.out", FIRST, SECOND], interventions=by_hand)
    torch.testing.assert_close(moved.logits, wanted.logits, rtol=1e-4, atol=1e-5)
    plain_run = model.trace(TOKENS, capture=[FIRST, SECOND, *ERRORS])
    torch.testing.assert_close(moved[FIRST][..., 5], plain_run[FIRST][..., 5] + 2)
    # the second block's latents are encoded from what the change has made of the stream
    torch.testing.assert_close(moved[SECOND], wanted[SECOND], rtol=1e-4, atol=1e-5)
    assert not torch.equal(moved[SECOND], plain_run[SECOND])
    torch.testing.assert_close(moved[ERRORS[0]], plain_run[ERRORS[0]], rtol=1e-4, atol=1e-5)
    steer = at(f"{KNOWN}[latent=2][pos=-1]").add(3.0)
    late = at("blocks.1.resid_post[pos=-1]").add(3 * directions(model, "cross", 2)[1])
    got, by_site = (model.trace(TOKENS, interventions=[c]).logits for c in (steer, late))
    torch.testing.assert_close(got, by_site, rtol=1e-4, atol=1e-5)
    text = model.generate(TOKENS[:1].tolist(), interventions=[steer], max_new_tokens=3)
    again = model.generate(
        TOKENS[:1].tolist(), interventions=[steer], max_new_tokens=3, use_cache=False
    )
    assert text.tokens == again.tokens


def test_patches_and_ablations_equal_changes_of_the_targets() -> None:
    model = opened()
    other = model.trace(TOKENS.flip(1), capture=["mlp.in/clt", *ERRORS])
    clean = model.trace(TOKENS, capture=["mlp.in/clt", "mlp.out"])
    part = model.attached("clt")[0].codec
    with torch.no_grad():
        delta = part.decode(other[FIRST]) - part.decode(clean[FIRST])
    width = model.anatomy.d_model  # type: ignore[union-attr]
    by_hand = [
        at("blocks.0.mlp.out").apply(lambda v: v + delta[..., :width]),
        at("blocks.1.mlp.out").apply(lambda v: v + delta[..., width:]),
    ]
    for got, wanted in (
        ([at(FIRST).patch(other)], by_hand),
        ([at(ERRORS[0]).patch(other)],
         [at("blocks.0.mlp.out").apply(lambda v: part.decode(clean[FIRST])[..., :width].detach()
                                       + other[ERRORS[0]])]),
    ):  # fmt: skip
        found, expected = (model.trace(TOKENS, interventions=c).logits for c in (got, wanted))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # without errors a pass is that of the replacement model
    spliced = [at("mlp.out/clt.error").zero()]
    trace = model.trace(TOKENS, capture=["mlp.in", "mlp.out"], interventions=spliced)
    read = torch.cat([trace[f"blocks.{n}.mlp.in"] for n in range(2)], -1)
    made = cross_layer(width)(read).detach()
    for n, there in enumerate(made.split(width, -1)):
        torch.testing.assert_close(trace[f"blocks.{n}.mlp.out"], there, rtol=1e-4, atol=1e-5)


def test_changes_of_sites_come_before_what_is_known_there() -> None:
    model = opened()
    stream, site = at("blocks.1.resid_post"), at(f"{KNOWN}[latent=2]")
    v = torch.linspace(-1, 1, model.anatomy.d_model)  # type: ignore[union-attr]
    for order in ([stream.add(v), site.add(2.0)], [site.add(2.0), stream.add(v)]):
        trace = model.trace(TOKENS, capture=["resid_post", KNOWN], interventions=order)
        x = model.trace(TOKENS, capture="resid_post").stack("resid_post")
        with torch.no_grad():
            f = coder(model, "cross").encode(torch.cat([x[0], x[1] + v], -1))
        f[..., 2] += 2
        torch.testing.assert_close(trace[KNOWN], f)
        wanted = x[1] + v + 2 * directions(model, "cross", 2)[1]
        torch.testing.assert_close(trace["blocks.1.resid_post"], wanted)


@pytest.mark.parametrize(
    "names", [[FIRST], [FIRST, SECOND], [KNOWN], [KNOWN, "blocks.1.resid_post/cross.error"],
              [*ERRORS], [FIRST, SECOND, *ERRORS]]
)  # fmt: skip
@pytest.mark.parametrize("changed", [False, True])
def test_gradients_against_differences(names: list[str], changed: bool) -> None:
    base = load(build("gpt2").double())
    width = base.anatomy.d_model  # type: ignore[union-attr]
    model = base.attach("cross", crosscoder(width).double(), at=STREAMS)
    model = model.attach("clt", cross_layer(width).double(), at=READS, to=WRITES)
    changes = [at(f"{FIRST}[latent=1]").add(0.5), at(f"{KNOWN}[latent=2]").scale(0.5)]
    changes = changes if changed else []
    prompts = TOKENS[:1]

    def metric(logits: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, 7] - logits[:, -1, 11]

    found = model.gradients(metric, names, prompts, interventions=changes)
    for name in names:
        generator = torch.Generator().manual_seed(0)
        by = torch.randn(found[name].shape, generator=generator, dtype=torch.float64)

        def at_step(step: float, name: str = name, by: torch.Tensor = by) -> torch.Tensor:
            moved = [*changes, at(name).apply(lambda v: v + step * by)]
            return metric(model.trace(prompts, interventions=moved).logits, None)  # type: ignore[arg-type]

        slope = float((at_step(1e-4) - at_step(-1e-4)) / 2e-4)
        assert float((found[name] * by).sum()) == pytest.approx(slope, rel=5e-3, abs=1e-3)


def test_what_lies_before_gets_the_models_own_gradient() -> None:
    model = opened()

    def metric(logits: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, 7]

    sites = ["embed.token", "blocks.0.mlp.out"]
    alone = plain().gradients(metric, sites, TOKENS)
    found = model.gradients(metric, [*sites, FIRST, SECOND, *ERRORS, KNOWN], TOKENS)
    for site in sites:
        torch.testing.assert_close(found[site], alone[site], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp.in/clt", "resid_post/cross", "mlp.out/clt.error"])
def test_a_sweep_equals_one_pass_for_each_cell(name: str) -> None:
    model = opened()
    examples = pairs((7, 7))
    latents = None if name.endswith("error") else [1, 4]
    found = sweep(model, examples, name, base="clean", operation="zero", latents=latents, certify=6)
    assert found.certificate["passed"]
    if latents is None:
        return
    layer = max(found.values.layer.to_numpy().tolist())
    change = at(f"blocks.{layer}.{name}[latent=4]").zero()
    cell = found.values.sel(layer=layer, latent=4).to_numpy()
    logits = model.trace(examples.clean, interventions=[change], logits="last").logits
    whole = logits[:, 0, 11] - logits[:, 0, 12]  # type: ignore[index]
    torch.testing.assert_close(torch.tensor(cell).float(), whole, rtol=1e-4, atol=1e-5)


def test_a_coder_brings_its_own_sites() -> None:
    model = plain()
    width = model.anatomy.d_model  # type: ignore[union-attr]
    reads, writes = tuple(READS), tuple(WRITES)
    make = cross_layer(width).architecture
    named = model.attach("clt", noisy(make, origin=Origin(reads, writes)))
    assert [str(one.at) for one in named.attached("clt")] == list(reads)
    assert [list(map(str, one.writes)) for one in named.attached("clt")] == [
        list(writes), [writes[1]]
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="does not say where"):
        model.attach("clt", noisy(make))


Wrong = Callable[[Model, int], object]


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        (lambda m, w: m.attach("a", crosscoder(w), at=["blocks.0.resid_post"]), ConfigError,
         "reads 2 sites, and 1"),
        (lambda m, w: m.attach("a", crosscoder(w), at=["blocks.0.resid_post"] * 2), ConfigError,
         "a site twice"),
        (lambda m, w: m.attach("a", crosscoder(w + 1), at=STREAMS), ShapeError, "together"),
        (lambda m, w: m.attach("a", cross_layer(w), at=WRITES, to=READS), ConfigError,
         "passed before them"),
        (lambda m, w: m.attach("a", crosscoder(w), at=STREAMS, to=BEFORE), ConfigError,
         "passed before them"),
        (lambda m, w: m.attach("a", cross_layer(w, activation="topk", k=4), at=READS, to=WRITES),
         ConfigError, "batchtopk"),
        (lambda m, w: m.attach("clt", cross_layer(w), at=READS, to=WRITES), ConfigError,
         "is taken"),
        (lambda m, w: m.trace(TOKENS, interventions=[at(EARLY).zero()]), SiteWriteError,
         "known at blocks.1.resid_post"),
        (lambda m, w: m.gradients(lambda lo, _: lo[:, -1, 0], [EARLY], TOKENS), SiteError,
         "cannot be differentiated"),
        (lambda m, w: m.attach("s", SAE(Architecture(w, 8)), at="blocks.1.resid_post").trace(
            TOKENS, interventions=[at(f"{KNOWN}[latent=1]").zero(),
                                   at("blocks.1.resid_post/s[latent=1]").zero()]), SiteError,
         "one at a time"),
        (lambda m, w: m.attached("clt")[0].splice(), ConfigError, "several sites"),
    ],
)  # fmt: skip
def test_what_cannot_be_defined_is_refused(
    wrong: Wrong, error: type[Exception], match: str
) -> None:
    model = opened()
    with pytest.raises(error, match=match):
        wrong(model, model.anatomy.d_model)  # type: ignore[union-attr]


def test_a_skip_connection_leads_forward_only() -> None:
    model = plain()
    width = model.anatomy.d_model  # type: ignore[union-attr]
    clt = cross_layer(width, skip=True)
    with torch.no_grad():
        clt.weights["W_skip"][width:, :width] = 0.1 * torch.eye(width)
    found = model.attach("clt", clt, at=READS, to=WRITES)
    trace = found.trace(TOKENS, capture=["mlp.in", "mlp.in/clt", "mlp.out", *ERRORS])
    read, given = (
        torch.cat([trace[f"blocks.{n}.mlp.{end}"] for n in range(2)], -1) for end in ("in", "out")
    )
    errors = torch.cat([trace[s] for s in ERRORS], -1)
    torch.testing.assert_close(clt(read).detach() + errors, given)
    with torch.no_grad():
        clt.weights["W_skip"][:width, width:] = 1.0
    with pytest.raises(ConfigError, match="skip connection"):
        model.attach("clt", clt, at=READS, to=WRITES)
