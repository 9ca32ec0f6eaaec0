"""Models that keep an identity where a norm would be: nothing is divided there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.circuits.slow_edges import tiny_gpt2
from tests.sweeps.test_sweeps import pairs
from torch import nn

from microtome.attribution import direct_logit_attribution
from microtome.behaviors import Examples
from microtome.circuits import find
from microtome.tracing.model import Model
from microtome.tracing.norms import divides, divisor
from microtome.tracing.opening import load


class Nothing(nn.Module):
    """An identity of the model's own making."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Scale(nn.Module):
    """A gain and a bias without a divisor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8) * 3), nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight + self.bias


class Root(nn.Module):
    """An RMS norm of the model's own making."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize(
    ("norm", "expected"),
    [(nn.Identity(), False), (Nothing(), False), (Scale(), False), (Root(), True),
     (nn.LayerNorm(8), True), (nn.RMSNorm(8), True)],
)  # fmt: skip
def test_only_a_norm_divides(norm: nn.Module, expected: bool) -> None:
    assert divides(norm, 8) is expected
    value = torch.linspace(-1, 3, 16).reshape(1, 2, 8)
    assert bool((divisor(norm, value) == 1).all()) is not expected


@pytest.fixture(scope="module", params=[nn.Identity, Nothing])
def case(request: pytest.FixtureRequest) -> tuple[Model, Examples]:
    module = tiny_gpt2()
    module.transformer.ln_f = request.param()
    return load(module), pairs((6, 9, 7))


def test_contributions_to_the_logits_add_up(case: tuple[Model, Examples]) -> None:
    found = direct_logit_attribution(*case)
    assert found.completeness_error < 1e-5


@pytest.mark.parametrize("method", ["eap", "relp"])
def test_edges_into_logits_that_nothing_bends_are_exact(
    case: tuple[Model, Examples], method: str
) -> None:
    exact, found = (find(*case, method=name) for name in ("exact-edges", method))
    into = [i for i, name in enumerate(exact.universe) if name.endswith("->logits")]
    assert len(into) == 9 and np.abs(exact.mean[into]).max() > 0.1
    np.testing.assert_allclose(found.mean[into], exact.mean[into], rtol=1e-3, atol=1e-4)


def test_the_last_part_is_relevant_for_what_it_adds(case: tuple[Model, Examples]) -> None:
    model, examples = case
    found = find(model, examples, method="contextual-decomposition")
    trace = model.trace(examples.clean, capture="blocks.1.mlp.out", logits=None)
    table = model.module.lm_head.weight.detach()
    for row, example in enumerate(examples):
        written = trace.value("blocks.1.mlp.out")[row, len(example.clean) - 1].detach()
        answer, wrong = example.answers[0][0], example.wrongs[0][0]
        wanted = float(written @ (table[answer] - table[wrong]))
        assert found.values[row, -1] == pytest.approx(wanted, rel=1e-4)
