"""Neurons ranked by attribution and confirmed exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.small import code_model

from microtome.attribution import NeuronEffects, neuron_attribution, top_neurons
from microtome.behaviors import Examples, quote_closing
from microtome.errors import ConfigError, EmptyDataError, ModelSupportError
from microtome.models.families import build
from microtome.sweeps import sweep
from microtome.tracing.opening import load


def test_estimates_are_the_slope_of_a_small_patch() -> None:
    model = code_model()
    examples = quote_closing(20).prepare(model)[:3]
    estimates = neuron_attribution(model, examples)
    assert sorted(estimates) == [0, 1]
    gradients = model.gradients(
        lambda logits, _: (
            logits[:, -1, examples[0].answers[0][0]] - logits[:, -1, examples[0].wrongs[0][0]]
        ),
        "blocks.1.mlp.act",
        examples[:1].clean,
    )
    other = model.trace(examples[:1].corrupt, capture="blocks.1.mlp.act")
    by_hand = (other["blocks.1.mlp.act"] - gradients.value("blocks.1.mlp.act")) * gradients[
        "blocks.1.mlp.act"
    ]
    one = neuron_attribution(model, examples[:1])
    np.testing.assert_allclose(one[1], by_hand.sum((0, 1)).numpy(), atol=1e-5)


@pytest.mark.parametrize("base", ["clean", "corrupt"])
def test_the_strongest_are_confirmed_by_the_sweep(base: str, tmp_path: Path) -> None:
    model = code_model()
    examples = quote_closing(20).prepare(model)
    found = top_neurons(model, examples, top=6, base=base)  # type: ignore[arg-type]
    estimates = neuron_attribution(model, examples, base=base)  # type: ignore[arg-type]
    everything = np.sort(np.abs(np.concatenate(list(estimates.values()))))[::-1]
    np.testing.assert_allclose(np.abs(found.estimated), everything[:6])
    assert found.considered == len(everything)
    layer, neuron = found.layers[0], found.neurons[0]
    exact = sweep(model, examples, f"blocks.{layer}.mlp.act", neurons=[neuron], base=base)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.values[:, 0], exact.values.to_numpy()[:, 0, 0], atol=1e-5)
    assert found.certificate["passed"]
    frame = found.to_frame()
    assert (frame.low <= frame.effect).all()
    assert (frame.effect <= frame.high).all()
    assert NeuronEffects.load(found.save(tmp_path / "n.json")).neurons == found.neurons


def test_integrated_gradients_agree_better_or_as_well() -> None:
    model = code_model()
    examples = quote_closing(20).prepare(model)
    plain = top_neurons(model, examples, top=16)
    finer = top_neurons(model, examples, top=16, steps=8)
    assert finer.agreement > 0.5
    assert plain.method != finer.method


def test_wrong_usage() -> None:
    model = code_model()
    examples = quote_closing(20).prepare(model)
    with pytest.raises(ConfigError, match="top=0"):
        top_neurons(model, examples, top=0)
    with pytest.raises(ConfigError, match="steps=0"):
        neuron_attribution(model, examples, steps=0)
    with pytest.raises(EmptyDataError):
        top_neurons(model, Examples(()))
    with pytest.raises(ModelSupportError, match=r"mlp\.act"):
        neuron_attribution(load(build("mixtral")), examples)
