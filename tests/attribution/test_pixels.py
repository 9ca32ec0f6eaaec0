"""Optimization of pixels, on the digits network and where the answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from microtome.attribution import PixelMaximization, optimize_pixels
from microtome.errors import ConfigError, SelectorError, ShapeError, SiteError
from microtome.models.digits import digits
from microtome.tracing.model import Model
from microtome.tracing.opening import load

UNIT = "module:conv2:out[neuron=3]"


@pytest.fixture(scope="module")
def model() -> Model:
    return load("digits-cnn")


def test_the_image_beats_the_data_and_the_unit_is_specific(model: Model, tmp_path: Path) -> None:
    images = digits().images[:200]
    found = optimize_pixels(model, UNIT, images=images, steps=80, starts=4)
    with torch.no_grad():
        first = torch.relu(model.module.conv1(images))
        value = model.module.conv2(first)[:, 3].flatten(1).amax(1)
        again = torch.relu(model.module.conv1(torch.tensor(found.image)[None]))
        reached = float(model.module.conv2(again)[0, 3].max())
    assert found.best_activation == pytest.approx(float(value.max()), abs=1e-5)
    assert found.best_index == int(value.argmax())
    np.testing.assert_array_equal(found.best_image, images[found.best_index].numpy())
    assert found.activation == pytest.approx(reached, abs=1e-5)
    assert found.activation > found.best_activation
    assert found.activation > found.history[0] and len(found.history) == 81
    assert found.image.min() >= 0 and found.image.max() <= 1
    assert found.random_unit != UNIT and found.random_unit.startswith("module:conv2:out")
    assert found.random_activation > found.random_on_image
    kept = PixelMaximization.load(found.save(tmp_path / "found"))
    assert kept.to_frame().equals(found.to_frame()) and len(kept.to_frame()) == 5


def test_a_template_is_found() -> None:
    """Without penalties the best image of a linear unit is bright exactly where it is positive."""
    template = nn.Conv2d(1, 2, 4)
    pattern = torch.tensor([[1.0, -1, 1, -1], [-1, 1, -1, 1], [1, 1, -1, -1], [-1, -1, 1, 1]])
    template.weight.data[:] = torch.stack([pattern, -pattern])[:, None]
    template.bias.data.zero_()
    images = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    found = optimize_pixels(
        load(nn.Sequential(template)), "module:0:out[neuron=0]", images=images,
        steps=60, jitter=0, l2=0, total_variation=0, rate=0.05,
    )  # fmt: skip
    np.testing.assert_allclose(found.image[0], (pattern > 0).float().numpy(), atol=1e-6)
    assert found.activation == pytest.approx(8, abs=1e-5)
    assert found.random_unit == "module:0:out[neuron=1]" and found.random_on_image == -8


def test_a_penalty_of_total_variation_smooths(model: Model) -> None:
    images = digits().images[:100]
    rough, smooth = (
        optimize_pixels(model, UNIT, images=images, steps=60, starts=2, total_variation=w)
        for w in (0.0, 1.0)
    )
    assert smooth.total_variation < rough.total_variation
    assert smooth.activation < rough.activation


def test_the_seed_decides(model: Model) -> None:
    images = digits().images[:50]
    runs = [
        optimize_pixels(model, UNIT, images=images, steps=10, starts=2, seed=s).image
        for s in (0, 0, 1)
    ]
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])
    assert all(p.requires_grad for p in model.module.parameters())


def test_what_cannot_be_optimized_is_refused(model: Model) -> None:
    images = digits().images[:10]
    with pytest.raises(SiteError, match="module:conv2:out"):
        optimize_pixels(model, "blocks.0.mlp.act[neuron=1]", images=images)
    with pytest.raises(SiteError, match="conv2"):
        optimize_pixels(model, "module:conv9:out[neuron=1]", images=images)
    with pytest.raises(SelectorError, match="neuron=0"):
        optimize_pixels(model, "module:conv2:out", images=images)
    with pytest.raises(SelectorError, match="there are 16"):
        optimize_pixels(model, "module:conv2:out[neuron=16]", images=images)
    with pytest.raises(ShapeError, match="height, width"):
        optimize_pixels(model, UNIT, images=images[0])
    for options in ({"steps": 0}, {"starts": 0}, {"rate": 0.0}, {"l2": -1.0}, {"jitter": -1}):
        name, value = next(iter(options.items()))
        with pytest.raises(ConfigError, match=f"{name}={value}"):
            optimize_pixels(model, UNIT, images=images, **options)
