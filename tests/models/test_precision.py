"""Models of short floating-point type are seen as they are in float32, and stay what they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from microtome.models import precision
from microtome.models.compare import addition_scale
from microtome.models.families import build
from microtome.models.precision import in_float32
from microtome.tracing.opening import load


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "cohere", "stablelm", "gemma2"])
def test_a_short_type_hides_no_site(family: str) -> None:
    module = build(family).to(torch.bfloat16)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    short, long = load(module), load(build(family))
    assert short.dtype == torch.bfloat16
    for name, value in module.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])
    assert [(s.name, s.readable) for s in short.sites()] == [
        (s.name, s.readable) for s in long.sites()
    ]
    trace = short.trace([[1, 2, 3]], capture="mlp.out")
    assert trace["blocks.0.mlp.out"].dtype == torch.bfloat16


def test_weights_come_back_after_an_error() -> None:
    module = nn.Linear(3, 3).half()
    own = module.weight.data_ptr()
    with pytest.raises(RuntimeError, match="mine"), in_float32(module):
        assert module.weight.dtype == torch.float32
        raise RuntimeError("mine")
    assert module.weight.dtype == torch.float16 and module.weight.data_ptr() == own


def test_large_models_are_not_held_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "LARGEST", 10)
    module = nn.Linear(3, 3).half()
    with in_float32(module):
        assert module.weight.dtype == torch.float16


def test_additions_of_rounded_values_are_recognized() -> None:
    draw = torch.Generator().manual_seed(0)
    base, part, other = (torch.randn(4, 9, generator=draw).bfloat16() for _ in range(3))
    assert addition_scale(base + part, base, part) == 1.0
    scale = addition_scale(base + 0.22 * part, base, part)
    assert scale == pytest.approx(0.22, rel=0.05)
    assert addition_scale(base + part, base, other) is None
    assert addition_scale(base, base, 1e-3 * part) is None
