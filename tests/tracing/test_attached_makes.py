"""Coders of every make in the model: unchanged they change nothing, changed what hooks would."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.sae import makes

from microtome.models.families import build
from microtome.sae import SAE
from microtome.tracing.model import Model
from microtome.tracing.opening import load
from microtome.tracing.sites import at

ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22, 23, 24]]
MAKES = ["relu", "topk", "batchtopk", "abstopk", "jumprelu", "gated", "tied", "kronecker"]


def coder(name: str, width: int) -> SAE:
    """A coder of a make with weights of which none is special."""
    small = makes.made(name)
    make = replace(small.architecture, d_in=width, d_out=width, sources=(), targets=())
    found = SAE(make, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in found.weights.items():
            noise = torch.randn(value.shape, generator=generator) * 0.3
            value.copy_(noise.abs()) if key == "threshold" else value.add_(noise)
    return found


def opened(name: str, *, double: bool = False) -> tuple[Model, Model, SAE, str, str]:
    """A model with and without a coder, the coder, the sites that it reads and writes."""
    module = build("gpt2")
    plain = load(module.double() if double else module)
    width = plain.anatomy.d_model  # type: ignore[union-attr]
    found = coder(name, width)
    found = found.double() if double else found
    two = name == "transcoder"
    source, target = (
        ("blocks.0.mlp.in", "blocks.0.mlp.out") if two else ("blocks.1.resid_post",) * 2
    )
    return (
        plain, plain.attach("s", found, at=source, to=target if two else None), found, source,
        target,
    )  # fmt: skip


@pytest.mark.parametrize("name", [*MAKES, "transcoder"])
def test_what_is_unchanged_changes_no_bit_and_what_is_changed_equals_a_hook(name: str) -> None:
    plain, model, sae, source, target = opened(name)
    latents, error = f"{source}/s", f"{target}/s.error"
    base = plain.trace(ROWS, capture=source)
    own = model.trace(ROWS, capture=[latents, error])
    assert torch.equal(own.logits, base.logits)  # type: ignore[arg-type]
    assert not own[latents].requires_grad
    for same in (
        [at(latents).scale(1.0), at(error).patch(own)],
        [at(error).scale(1.0), at(latents).patch(own), at(latents).scale(1.0)],
    ):
        assert torch.equal(model.trace(ROWS, interventions=same).logits, base.logits)  # type: ignore[arg-type]

    read = base[source]

    def moved(value: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            old = sae.encode(read)
            new = old.clone()
            new[..., 4], new[..., 7] = 2.5, 0.3 * old[..., 7]
            return value + sae.decode(new) - sae.decode(old)

    def made(value: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return sae(read)

    changes = [at(f"{latents}[latent=4]").set(2.5), at(f"{latents}[latent=7]").scale(0.3)]
    for by_hand, asked in ((moved, changes), (made, [model.attached("s")[0].splice()])):
        wanted = plain.trace(ROWS, interventions=[at(target).apply(by_hand)]).logits
        got = model.trace(ROWS, interventions=asked).logits
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(got, base.logits)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*MAKES, "transcoder"])
def test_padded_rows_are_those_alone_and_caches_change_nothing(name: str) -> None:
    _, model, _, source, target = opened(name)
    changes = [at(f"{source}/s[latent=4][pos=-1]").add(2.0), at(f"{target}/s.error[pos=1]").zero()]
    many = model.trace(ROWS, interventions=changes, logits="last").logits
    for row, wanted in zip(ROWS, many, strict=True):  # type: ignore[arg-type]
        alone = model.trace([row], interventions=changes, logits="last").logits
        torch.testing.assert_close(alone[0], wanted, rtol=1e-4, atol=1e-5)  # type: ignore[index]
    steered = [at(f"{source}/s[latent=4]").add(3.0), model.attached("s")[0].splice()]
    cached, whole = (
        model.generate(ROWS, max_new_tokens=4, interventions=steered, use_cache=cache).tokens
        for cache in (True, False)
    )
    assert cached == whole


@pytest.mark.parametrize("name", [*MAKES, "transcoder"])
def test_gradients_are_finite_differences(name: str) -> None:
    _, model, _, source, target = opened(name, double=True)
    latents, error = f"{source}/s", f"{target}/s.error"
    kept = model.trace(ROWS[:1], capture=[latents, error])
    cases = [
        [],
        [at(f"{latents}[latent=2]").add(1.5), at(error).scale(0.7)],
        [at(error).patch(kept)],
        [at(latents).patch(kept)],  # constants, whose gradient is asked for
    ]

    def metric(logits: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        return logits[:, -1, 7] - logits[:, 2, 11]

    for changes in cases:
        found = model.gradients(metric, [latents, error], ROWS[:1], interventions=changes)
        for site in (latents, error):
            generator = torch.Generator().manual_seed(0)
            way = torch.randn(found[site].shape, generator=generator, dtype=torch.float64)

            def value(step: float, site: str = site, way: torch.Tensor = way) -> float:
                asked = [*changes, at(site).apply(lambda v: v + step * way)]  # noqa: B023
                return float(metric(model.trace(ROWS[:1], interventions=asked).logits, None))  # type: ignore[arg-type]

            slope = (value(1e-6) - value(-1e-6)) / 2e-6
            assert float((found[site] * way).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_a_model_that_keeps_its_cache_to_itself_generates() -> None:
    model = load(build("recurrent_gemma"))
    cached, whole = (
        model.generate(ROWS[:1], max_new_tokens=5, use_cache=cache).tokens
        for cache in (True, False)
    )
    row = list(ROWS[0])
    for _ in range(5):
        row.append(int(model.trace([row], logits="last").logits[0, -1].argmax()))  # type: ignore[index]
    assert cached == whole == (tuple(row[len(ROWS[0]) :]),)


@pytest.mark.parametrize(
    "family", ["gpt2", "mamba", "bamba", "qwen3_next", "convbert", "roberta-decoder"]
)
def test_generated_rows_are_those_alone_whatever_the_family(family: str) -> None:
    model = load(build(family))
    site = at("blocks.1.resid_post")
    for changes in ([], [site.scale(1.5, rows=[2])], [site.set(0.5, rows=[1, 0])]):
        wanted = []
        for number, row in enumerate(ROWS):
            mine = [
                replace(change, rows=None)
                for change in changes
                if number in (change.rows or (number,))
            ]
            text = list(row)
            for _ in range(4):
                logits = model.trace([text], interventions=mine, logits="last").logits
                text.append(int(logits[0, -1].argmax()))  # type: ignore[index]
            wanted.append(tuple(text[len(row) :]))
        for cache in (True, False):
            found = model.generate(ROWS, max_new_tokens=4, interventions=changes, use_cache=cache)
            assert found.tokens == tuple(wanted)
            assert found.prompts == tuple(map(tuple, ROWS))
