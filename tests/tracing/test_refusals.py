"""What used to act silently wrong: nested scopes, threads, patches of nothing, odd operands."""

from __future__ import annotations

from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration

from microtome.errors import (
    ConfigError,
    MetricError,
    ModelSupportError,
    PromptError,
    SelectorError,
    ShapeError,
    UsageError,
)
from microtome.models.families import build
from microtome.tracing.opening import load
from microtome.tracing.sites import at

TOKENS = torch.randint(5, 90, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_attention_sites_of_nested_scopes_act_in_order(family: str) -> None:
    model = load(build(family))
    z = at("attn.z", layer=1, head=0)
    outer, inner = [z.scale(2.0), at("attn.q", layer=0).scale(3.0)], [z.add(1.0)]
    wanted = model.trace(TOKENS, capture=z, interventions=outer + inner)
    with model.under(outer):
        inside = model.trace(TOKENS, capture=z, interventions=inner)
        with model.under(inner):
            nested = model.module(TOKENS).logits
    assert torch.equal(inside[z], wanted[z])
    for logits in (inside.logits, nested):
        assert torch.equal(logits, wanted.logits)  # type: ignore[arg-type]


@pytest.mark.parametrize("direction", [torch.zeros(48), torch.ones(1), 3.0])
def test_what_is_no_direction_cannot_be_projected_out(direction: torch.Tensor | float) -> None:
    site = at("resid_post", layer=0)
    with pytest.raises(ShapeError, match="direction"):
        load(build("gpt2")).trace(TOKENS, interventions=[site.project_out(direction)])  # type: ignore[arg-type]


def test_steps_count_rows_from_the_end_and_refuse_what_changes_nothing() -> None:
    model = load(build("gpt2"))
    site = at("resid_post", layer=1)

    def new(rows: list[int], steps: str | range = "new") -> tuple[tuple[int, ...], ...]:
        change = site.add(torch.linspace(-9, 9, 48), rows=rows)
        return model.generate(TOKENS, max_new_tokens=4, interventions=[change], steps=steps).tokens  # type: ignore[arg-type]

    assert new([-1]) == new([2]) != model.generate(TOKENS, max_new_tokens=4).tokens
    with pytest.raises(SelectorError, match="row 7"):
        new([7])
    with pytest.raises(ConfigError, match="no step"):
        new([0], range(0, 0))


def test_a_patch_from_what_the_source_does_not_have_is_refused() -> None:
    model = load(build("gpt2"))
    site = at("resid_post", layer=0, pos=-1)
    source = model.trace(TOKENS[:2, :4], capture="resid_post")
    with pytest.raises(SelectorError, match="position 8 of row 0"):
        model.trace(TOKENS[:2], interventions=[site.patch(source)])
    with pytest.raises(SelectorError, match="source has 2 rows"):
        model.trace(TOKENS[:, :4], interventions=[site.patch(source, rows=[-1])])
    with pytest.raises(ShapeError, match="NaN"):
        model.trace(TOKENS, interventions=[site.patch(torch.full((3, 9, 48), torch.nan))])


def test_interventions_are_a_list_of_interventions_and_are_recorded() -> None:
    model = load(build("gpt2"))
    zero = at("resid_post", layer=0).zero()
    assert model.trace(TOKENS, interventions=(i for i in [zero])).provenance["interventions"]
    for wrong in (zero, "zero", [at("resid_post", layer=0)]):
        with pytest.raises(UsageError, match="is a list such as"):
            model.trace(TOKENS, interventions=wrong)  # type: ignore[arg-type]


def test_threads_take_turns_on_one_module() -> None:
    model = load(build("gpt2"))
    site = at("resid_post", layer=1)
    plain = model.trace(TOKENS).logits
    zero = model.trace(TOKENS, interventions=[site.zero()]).logits

    def right(number: int) -> bool:
        changes = [site.zero()] if number % 2 else []
        found = model.trace(TOKENS, interventions=changes).logits
        return torch.equal(found, zero if number % 2 else plain)  # type: ignore[arg-type]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(right, range(40)))


def test_a_generation_of_nan_is_refused() -> None:
    change = at("resid_post", layer=0).apply(lambda value: value * torch.nan)
    with pytest.raises(ShapeError, match="logits hold NaN"):
        load(build("gpt2")).generate(TOKENS, max_new_tokens=2, interventions=[change])
    with pytest.raises(ConfigError, match="temperature"):
        load(build("gpt2")).generate(TOKENS, max_new_tokens=2, temperature=1e-45)


def test_two_stacks_are_refused_and_the_encoder_alone_opens() -> None:
    config = BartConfig(
        vocab_size=50, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        max_position_embeddings=32,
    )  # fmt: skip
    both = BartForConditionalGeneration(config)
    with pytest.raises(ModelSupportError, match="get_encoder"):
        load(both)
    encoder = load(both.get_encoder())
    assert encoder.trace([[1, 2, 3]], capture="resid_post").sites[-1] == "blocks.1.resid_post"


@pytest.mark.parametrize(
    "metric", [lambda *_: 3.0, lambda logits, _: logits.argmax(-1)[:, -1], lambda *_: torch.ones(3)]
)
def test_a_metric_without_a_gradient_is_refused(metric: Any) -> None:
    with pytest.raises(MetricError, match="differentiably"):
        load(build("gpt2")).gradients(metric, "resid_post", TOKENS)


def test_a_named_tuple_can_be_written() -> None:
    pair = namedtuple("pair", "first second")

    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return pair(x, 2 * x)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = Two()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(x).first + 0.0

    model = load(Outer())
    changed = model.trace(torch.ones(2, 3), interventions=[at("module:two:out").zero()])
    assert not bool(changed.logits.any())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "prompt", [b"ab", [[1.7]], torch.zeros(0, 3).long(), torch.tensor([[1 + 0j]]), [[float("inf")]]]
)
def test_prompts_are_not_guessed(prompt: Any) -> None:
    with pytest.raises(PromptError):
        load(build("gpt2")).trace(prompt)


def test_what_cannot_be_opened_or_asked_for_says_so() -> None:
    with pytest.raises(ConfigError, match="device='foo' is unknown"):
        load(build("gpt2"), device="foo")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no GPU"):
            load(build("gpt2"), device="cuda")
    model = load(build("gpt2"))
    with pytest.raises(ConfigError, match="logits='foo'"):
        model.trace(TOKENS, logits="foo")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="got NoneType"):
        model.trace(TOKENS, capture=None)  # type: ignore[arg-type]
    picture = load(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()))
    assert "2 x 1 x 5 x 5" in repr(picture.trace(torch.zeros(2, 1, 5, 5), capture="module:0:out"))
