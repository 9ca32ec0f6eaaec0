"""The latents that carry a behavior: ranking, confirmation, and how rare they are elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.codecs import DenseSAE, TopKSAE
from tests.small import code_model

from microtome.attribution import LatentEffects, search_corpus, top_latents
from microtome.attribution.latents import active_shares
from microtome.behaviors import Examples, quote_closing
from microtome.errors import ConfigError, EmptyDataError, SiteError
from microtome.tracing.model import Model
from microtome.tracing.sites import at

SITE = "blocks.1.resid_post/sae"
TEXTS = ["x = 1\n", "def f(a):\n    return a + 1\n", "y = 'abc'"]


def coded() -> Model:
    model = code_model()
    for layer in range(2):
        sae = TopKSAE(32, 40, seed=layer)
        model = model.attach("sae", sae, at=f"blocks.{layer}.resid_post")
    return model


def effects(model: Model, examples: Examples, site: str) -> torch.Tensor:
    """First-order effect of each latent, example by example, written out."""
    total = torch.zeros(40, dtype=torch.float64)
    for example in examples:
        right, wrong = example.answers[0][0], example.wrongs[0][0]
        slopes = model.gradients(
            lambda logits, _, r=right, w=wrong: logits[:, -1, r] - logits[:, -1, w],
            site,
            [example.clean],
        )
        other = model.trace([example.corrupt], capture=site)[site]
        total += ((other - slopes.value(site)) * slopes[site]).double().sum((0, 1))
    return total / len(examples)


def test_the_strongest_are_ranked_and_confirmed(tmp_path: Path) -> None:
    model = coded()
    examples = quote_closing(20).prepare(model)[:6]
    one_answer = all(len(e.answers) == len(e.wrongs) == 1 for e in examples)
    assert one_answer
    found = top_latents(model, examples, site=SITE, k=5)
    by_hand = effects(model, examples, SITE).numpy()
    order = np.argsort(-np.abs(by_hand), kind="stable")[:5]
    assert found.latents == tuple(order.tolist()) and set(found.sites) == {SITE}
    np.testing.assert_allclose(found.estimated, by_hand[order], rtol=1e-4, atol=1e-6)
    assert found.certificate["passed"] and found.considered == 40 and found.left_out == 0
    assert np.isnan(found.elsewhere).all()
    for number, latent in enumerate(found.latents[:2]):
        for row, example in enumerate(examples[:3]):
            other = model.trace([example.corrupt], capture=SITE)
            change = at(f"{SITE}[latent={latent}]").patch(other)
            last = model.trace([example.clean], interventions=[change]).last()[0]
            exact = float(last[example.answers[0][0]] - last[example.wrongs[0][0]])
            assert found.values[row, number] == pytest.approx(exact, rel=1e-4, abs=1e-5)
    frame = found.to_frame()
    assert list(frame.latent) == list(found.latents) and (frame.low <= frame.high).all()
    again = LatentEffects.load(found.save(tmp_path / "latents.json"))
    assert again.provenance is not None
    assert set(again.provenance.config["codecs"]) == {SITE, "blocks.0.resid_post/sae"}
    assert again.latents == found.latents and again.agreement == found.agreement


def test_latents_active_elsewhere_are_left_out() -> None:
    model = coded()
    examples = quote_closing(20).prepare(model)[:6]
    everything = top_latents(model, examples, site=SITE, k=40)
    shares, tokens = active_shares(model, [SITE], TEXTS)
    ids = [model.tokenizer(t)["input_ids"] for t in TEXTS]
    assert tokens == sum(map(len, ids))
    assert not model.bos
    seen = torch.cat([model.trace([row], capture=SITE)[SITE][0] for row in ids])
    np.testing.assert_allclose(shares[SITE], (seen != 0).float().mean(0), rtol=1e-6)
    most = float(np.median(shares[SITE][list(everything.latents)]))
    rare = top_latents(model, examples, site=SITE, k=4, elsewhere=TEXTS, most_elsewhere=most)
    wanted = [n for n in everything.latents if shares[SITE][n] <= most][:4]
    assert list(rare.latents) == wanted and rare.elsewhere_tokens == tokens
    np.testing.assert_allclose(rare.elsewhere, shares[SITE][wanted])
    last = everything.latents.index(wanted[-1])
    assert rare.left_out == last + 1 - 4 > 0


def test_latents_of_every_block_are_ranked_together() -> None:
    model = coded()
    examples = quote_closing(20).prepare(model)[:4]
    found = top_latents(model, examples, site="resid_post/sae", k=8, steps=2)
    assert found.considered == 80 and "2 steps" in found.method
    assert {s.split(".")[1] for s in found.sites} == {"0", "1"}
    assert (np.diff(np.abs(found.estimated)) <= 0).all()


def test_windows_of_long_texts_count_each_token_once() -> None:
    model = coded()
    long = list(range(5, 105)) * 4
    shares, tokens = active_shares(model, [SITE], [long])
    assert tokens == 400 and 0 < float(shares[SITE].sum()) <= TopKSAE.k + 1e-6


def test_a_latent_is_a_unit_of_corpus_search() -> None:
    model = coded()
    found = search_corpus(model, f"{SITE}[latent=3]", TEXTS)
    peak = max(float(model.trace([t], capture=SITE)[SITE][..., 3].max()) for t in TEXTS)
    assert max(w.activation for w in found.windows) == pytest.approx(peak, rel=1e-4, abs=1e-6)


class Silent(DenseSAE):
    """A codec no latent of which is ever active."""

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        return super().encode(values) * 0.0


def test_wrong_usage() -> None:
    model = coded()
    examples = quote_closing(20).prepare(model)[:2]
    for settings, error, match in (
        ({"site": SITE, "k": 0}, ConfigError, "k=0"),
        ({"site": SITE, "most_elsewhere": 2.0}, ConfigError, "share from 0 to 1"),
        ({"site": "blocks.1.resid_post"}, SiteError, "not the site of latents"),
        ({"site": f"{SITE}.error"}, SiteError, "not the site of latents"),
        ({"site": f"{SITE}[latent=1]"}, SiteError, "without selectors"),
        ({"site": "blocks.1.resid_post/other"}, SiteError, "No codec"),
        ({"site": SITE, "elsewhere": [""]}, EmptyDataError, "no tokens"),
        ({"site": SITE, "elsewhere": TEXTS, "most_elsewhere": 0.0}, ConfigError, "most_elsewhere"),
    ):
        with pytest.raises(error, match=match):
            top_latents(model, examples, **settings)  # type: ignore[arg-type]
    with pytest.raises(EmptyDataError, match="no examples"):
        top_latents(model, Examples(()), site=SITE)
    silent = code_model().attach("none", Silent(32, 8), at="blocks.0.resid_post")
    with pytest.raises(EmptyDataError, match="differs"):
        top_latents(silent, examples, site="resid_post/none")
