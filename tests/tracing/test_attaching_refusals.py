"""What cannot be attached, how sites of codecs are written, and what is not there."""

from __future__ import annotations

import pytest
import torch
from tests.codecs import DenseSAE
from tests.tracing.test_attaching import STREAM, TOKENS, opened, plain
from torch import nn

from microtome.errors import (
    ConfigError,
    ModelSupportError,
    SelectorError,
    ShapeError,
    SiteAbsentError,
    SiteError,
    SiteWriteError,
)
from microtome.sae import SAE, Architecture, Origin
from microtome.tracing.opening import load
from microtome.tracing.sites import at


@pytest.mark.parametrize("given", [{"at": 5}, {"at": STREAM.split("/")[0], "to": 5}])
def test_what_is_no_site_or_name_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(SiteError, match="A site is a text .* got 5"):
        plain().attach("sae", DenseSAE(16, 8), **given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="name=5"):
        plain().attach(5, DenseSAE(16, 8), at="blocks.1.resid_post")  # type: ignore[arg-type]


def test_a_trained_coders_own_sites_in_another_order_are_refused() -> None:
    model = plain()
    width = model.anatomy.d_model
    sites = ("blocks.0.resid_post", "blocks.1.resid_post")
    make = Architecture(2 * width, 8, sources=(width,) * 2, targets=(width,) * 2)
    cross = SAE(make, seed=1, origin=Origin(sites, sites))
    with pytest.raises(ConfigError, match="reads blocks.0.resid_post, blocks.1.resid_post in this"):
        model.attach("cross", cross, at=sites[::-1])
    assert model.attach("cross", cross, at=sites).attached("cross")[0].reads == tuple(
        map(at, sites)
    )
    ends = ("blocks.1.mlp.in",), ("blocks.1.mlp.out",)
    transcoder = SAE(Architecture(width, 8, center=False), seed=1, origin=Origin(*ends))
    with pytest.raises(ConfigError, match=r"writes blocks\.1\.mlp\.out; give to="):
        model.attach("tc", transcoder, at="blocks.1.mlp.in")
    for where in ({}, {"at": "blocks.0.mlp.in"}, {"at": ends[0], "to": ends[1]}):
        model.attach("tc", transcoder, **where)  # type: ignore[arg-type]


def test_sites_have_a_text_form() -> None:
    for text in (f"{STREAM}[latent=5]", f"{STREAM}.error[pos=-1]", "embed.token/x", "attn.z/a-b_1"):
        assert str(at(str(at(text)))) == str(at(text))
    assert str(at("blocks.1.hook_resid_post/sae")) == STREAM
    assert str(at("resid_post/sae", layer=1, latent=[2, 3])) == f"{STREAM}[latent=2,3]"
    for text, match in (
        ("blocks.1.resid_post/", "form SITE/NAME"),
        ("blocks.1.resid_post/a b", "form SITE/NAME"),
        ("blocks.1.resid_past/sae", "resid_post"),
        ("blocks.1.hook_resid_post.hook_sae_acts_post", "attach the SAE"),
    ):
        with pytest.raises(SiteError, match=match):
            at(text)
    for text in (f"{STREAM}[head=1]", "blocks.1.resid_post[latent=2]", f"{STREAM}.error[latent=1]"):
        with pytest.raises(SelectorError):
            at(text)


class Odd(DenseSAE):
    """A codec with one fault."""

    fault = ""

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        found = super().encode(values)
        if self.fault == "mixes":
            return found - found.mean(1, keepdim=True)
        if self.fault == "shares":
            least = found.flatten().topk(2 * found[..., 0].numel()).values[-1]
            return torch.where(found >= least, found, 0.0)
        if self.fault == "raises":
            raise RuntimeError("my own fault")
        return found * float("nan") if self.fault == "nan" else found[..., :-1]


def odd(fault: str, width: int) -> Odd:
    found = Odd(width, 8)
    found.fault = fault
    return found


@pytest.mark.parametrize(
    ("name", "width", "where", "error", "match"),
    [
        ("a.b", 0, {"at": "blocks.0.resid_post"}, ConfigError, "letters, digits"),
        ("", 0, {"at": "blocks.0.resid_post"}, ConfigError, "letters, digits"),
        ("sae", 0, {"at": "blocks.1.resid_post"}, ConfigError, "is taken at blocks.1.resid_post"),
        ("x", 7, {"at": "blocks.0.resid_post"}, ShapeError, "reads 7 numbers"),
        ("x", 0, {"at": "blocks.0.mlp.act"}, ShapeError, "d_in"),
        ("x", 0, {"at": "blocks.0.mlp.in", "to": "blocks.0.mlp.act"}, ShapeError, "d_out"),
        ("x", 0, {"at": "blocks.0.mlp.out", "to": "blocks.0.mlp.in"}, ConfigError, "behind"),
        ("x", 0, {"at": "blocks.1.mlp.in", "to": "blocks.0.mlp.out"}, ConfigError, "behind"),
        ("x", 0, {"at": "resid_post"}, SiteError, "means . places"),
        ("x", 0, {"at": "blocks.0.resid_post[pos=1]"}, SiteError, "whole site"),
        ("x", 0, {"at": "blocks.9.resid_post"}, SelectorError, "out of range"),
        ("x", 0, {"at": "blocks.0.resid_pst"}, SiteError, "resid_post"),
        ("x", 0, {"at": "blocks.0.attn.norm.scale"}, SiteWriteError, "read only"),
        ("x", 0, {"at": "blocks.0.attn.in.q"}, SiteAbsentError, "write only"),
        ("x", 0, {"at": "blocks.0.attn.pattern"}, SiteError, "batch, pos"),
        ("x", 0, {"at": f"{STREAM}"}, SiteError, "another codec"),
        ("x", 0, {"at": "module:transformer.h.0:out"}, SiteError, "named site"),
    ],
)
def test_what_cannot_be_attached(
    name: str, width: int, where: dict[str, str], error: type[Exception], match: str
) -> None:
    model = opened()
    sae = DenseSAE(width or model.anatomy.d_model, 8)  # type: ignore[union-attr]
    with pytest.raises(error, match=match):
        model.attach(name, sae, **where)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fault", "error", "match"),
    [
        ("mixes", ConfigError, "other positions"),
        ("shares", ConfigError, r"codec\.eval\(\)"),
        ("raises", ConfigError, "my own fault"),
        ("nan", ShapeError, "NaN"),
        ("short", ShapeError, "expected"),
    ],
)
def test_codecs_with_a_fault_are_refused(fault: str, error: type[Exception], match: str) -> None:
    model = plain()
    with pytest.raises(error, match=match):
        model.attach("x", odd(fault, model.anatomy.d_model), at="blocks.0.resid_post")  # type: ignore[union-attr]


def test_a_codec_on_another_device_is_refused() -> None:
    model = plain()
    sae = DenseSAE(model.anatomy.d_model, 8).to("meta")  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"codec\.to\('cpu'\)"):
        model.attach("x", sae, at="blocks.0.resid_post")


def test_what_is_asked_of_codecs_that_are_not_there() -> None:
    model = opened()
    for text, match in (
        ("blocks.1.resid_post/sea", "sae"),
        ("blocks.0.resid_post/sae", STREAM),
        ("blocks.0.mlp.in/tc.error", "blocks.0.mlp.out/tc.error"),
        (f"{STREAM}[latent=24]", "out of range; there are 24"),
    ):
        with pytest.raises((SiteError, SelectorError), match=match):
            model.trace(TOKENS, capture=text)
    with pytest.raises(ConfigError, match="'sea'.*sae"):
        model.detach("sea")
    with pytest.raises(ModelSupportError, match="Attaching"):
        load(nn.Linear(3, 3)).attach("x", DenseSAE(3, 4), at="final.norm")
