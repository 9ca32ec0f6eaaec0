"""Optimization of pixels: an image that excites a unit of an image network, by gradient ascent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microtome.attribution.maximization_results import PixelMaximization
from microtome.attribution.units import one
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import collect
from microtome.core.seeds import rng
from microtome.errors import ConfigError, SelectorError, ShapeError, SiteError
from microtome.tracing.gradients import frozen
from microtome.tracing.sites import Site, at

if TYPE_CHECKING:
    from microtome.tracing.model import Model

_NOISE = 0.15
"""Spread of the first images around the mean image, as a share of the range of the pixels."""


def optimize_pixels(
    model: Model,
    site: str | Site,
    *,
    images: Tensor,
    steps: int = 200,
    starts: int = 8,
    rate: float = 0.03,
    jitter: int = 1,
    l2: float = 0.05,
    total_variation: float = 0.1,
    seed: int = 0,
    progress: Progress = quiet,
) -> PixelMaximization:
    """Find an image that excites a channel of an image network, beside the data and a random unit.

    Adam climbs activation / (largest of the data) - l2 x (mean square / that of the data) - total
    variation weight x (total variation / median of the data), on an image that is shifted by a few
    random pixels at each step and kept inside the range of the data's pixels (after Mordvintsev et
    al. 2015; Olah et al. 2017). A channel's activation is its largest over the places of its map.
    Reported is the image of the largest goal seen, unshifted.

    Args:
        model: An image network.
        site: ``"module:PATH:out[neuron=k]"``: channel k (axis 1) of a module's output.
        images: The data ``[image, channel, height, width]``, on the scale that the network expects.
        steps: Steps of the ascent.
        starts: Random images it begins from, climbed together.
        rate: Learning rate, as a share of the range of the pixels.
        jitter: Largest shift in pixels.
        l2: Weight of the mean square.
        total_variation: Weight of the total variation.
        seed: Seed of the first image, the shifts and the random unit.
        progress: Told how far it is.

    Raises:
        ConfigError: If a number is out of range.
        SelectorError: If the site does not select one channel.
        ShapeError: If the images are no batch of images.
        SiteError: If it is no ``module:`` site, or does not exist.

    Example:
        >>> import microtome as mt
        >>> from microtome.attribution import optimize_pixels
        >>> from microtome.models.digits import digits
        >>> found = optimize_pixels(
        ...     mt.load("digits-cnn"), "module:conv2:out[neuron=3]",
        ...     images=digits().images, steps=20,
        ... )
        >>> found.image.shape
        (1, 8, 8)
    """
    settings = _Settings(steps, starts, rate, jitter, l2, total_variation, seed)
    _check_images(images)
    unit = _Channel(model, _checked(site))
    other = unit.other(images, seed)
    searches = []
    for number, channel in enumerate((unit, other)):
        search = _Ascent(channel, images, settings)
        for done in search.run():
            progress.step(number * steps + done, 2 * steps, "pixel ascent")
        searches.append(search)
    own, beside = searches
    return PixelMaximization(
        unit=str(unit.site),
        image=own.image[0].numpy(),
        activation=own.activation,
        best_image=images[own.best].numpy(),
        best_index=own.best,
        best_activation=own.largest,
        total_variation=float(_variation(own.image)[0]),
        median_total_variation=float(_variation(images).median()),
        history=np.array(own.history),
        random_unit=str(other.site),
        random_activation=beside.activation,
        random_best_activation=beside.largest,
        random_on_image=float(other(own.image)[0]),
        provenance=collect(model, {"method": "pixel ascent", **vars(settings)}, seed=seed),
    )


@dataclass(frozen=True)
class _Settings:
    """The numbers of an ascent, checked."""

    steps: int
    starts: int
    rate: float
    jitter: int
    l2: float
    total_variation: float
    seed: int

    def __post_init__(self) -> None:
        least = {"steps": 1, "starts": 1, "jitter": 0, "l2": 0, "total_variation": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if not low <= value < float("inf"):
                raise ConfigError(f"{name}={value}; expected a number from {low}.")
        if not 0 < self.rate <= 1:
            raise ConfigError(f"rate={self.rate}; expected a share of the range, above 0 up to 1.")


@dataclass(frozen=True, eq=False)
class _Channel:
    """One channel of a module's output."""

    model: Model
    site: Site

    def __call__(self, images: Tensor, *, grad: bool = False) -> Tensor:
        """Return the channel's largest activation over its map ``[image]``."""
        value = self._value(images, grad=grad)
        return value[:, one(self.site, "neuron", value.shape[1])].flatten(1).amax(1).float().cpu()

    def other(self, images: Tensor, seed: int) -> _Channel:
        """Return another channel of the same module, drawn at random."""
        size = self._value(images[:1], grad=False).shape[1]
        mine = one(self.site, "neuron", size)
        others = [i for i in range(size) if i != mine]
        if not others:
            raise SelectorError(f"{self.site} is the only channel; no random one is left beside.")
        drawn = int(rng(seed, "random unit", str(self.site)).choice(others))
        return _Channel(self.model, Site(self.site.name, neuron=(drawn,)))

    def _value(self, images: Tensor, *, grad: bool) -> Tensor:
        whole = self.site.whole()
        value = self.model.trace(images, capture=whole, logits=None, grad=grad)[whole]
        if value.ndim < 2:
            raise ShapeError(f"{self.site}: the value has shape {tuple(value.shape)}, no channels.")
        return value


class _Ascent:
    """One ascent: the image with the largest goal so far, and the data's best."""

    def __init__(self, channel: _Channel, images: Tensor, settings: _Settings) -> None:
        self._channel, self._settings = channel, settings
        self._random = rng(settings.seed, "pixels", str(channel.site))
        data = channel(images)
        self.best, self.largest = int(data.argmax()), float(data.max())
        self._scale = max(abs(self.largest), 1e-6)
        self._square = max(float(images.square().mean()), 1e-12)
        self._varies = max(float(_variation(images).median()), 1e-12)
        self._low, self._high = float(images.min()), float(images.max())
        shape = (settings.starts, *images.shape[1:])
        noise = torch.tensor(self._random.standard_normal(shape), dtype=torch.float32)
        begun = images.mean(0) + _NOISE * (self._high - self._low) * noise
        self._images = begun.clamp(self._low, self._high).requires_grad_(True)
        self._highest = -math.inf
        self.history: list[float] = []
        self._note()

    def run(self) -> Iterator[int]:
        """Climb; yield the number of steps done."""
        settings, images = self._settings, self._images
        rate = settings.rate * max(self._high - self._low, 1e-12)
        climber = torch.optim.Adam([images], lr=rate, maximize=True)
        for step in range(settings.steps):
            with frozen(self._channel.model.module), torch.enable_grad():
                down, right = self._random.integers(-settings.jitter, settings.jitter + 1, 2)
                shifted = torch.roll(images, (int(down), int(right)), (2, 3))
                goal = self._goals(images, self._channel(shifted, grad=True)).sum()
                (images.grad,) = torch.autograd.grad(goal, [images])
            climber.step()
            with torch.no_grad():
                images.clamp_(self._low, self._high)
            self._note()
            yield step + 1

    def _note(self) -> None:
        """Keep the image of the largest goal so far, measured unshifted."""
        images = self._images.detach()
        found = self._channel(images)
        goals = self._goals(images, found)
        first = int(goals.argmax())
        if float(goals[first]) > self._highest:
            self._highest = float(goals[first])
            self.image = images[first : first + 1].clone()
            self.activation = float(found[first])
        self.history.append(float(found.max()))

    def _goals(self, images: Tensor, activation: Tensor) -> Tensor:
        square = images.square().flatten(1).mean(1) / self._square
        variation = _variation(images) / self._varies
        penalty = self._settings.l2 * square + self._settings.total_variation * variation
        return activation / self._scale - penalty


def _variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighboring pixels of each image."""
    down = (images[:, :, 1:] - images[:, :, :-1]).abs().flatten(1).mean(1)
    right = (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().flatten(1).mean(1)
    return (down + right) / 2


def _checked(site: str | Site) -> Site:
    found = at(site)
    if not found.name.startswith("module:"):
        raise SiteError(f"{found}: pixels are optimized for module: sites, as module:conv2:out.")
    if not (isinstance(found.neuron, tuple) and len(found.neuron) == 1):
        raise SelectorError(f"{found}: select one channel with [neuron=0].")
    return Site(found.name, neuron=found.neuron)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or not len(images) or min(images.shape[2:]) < 2:
        raise ShapeError(
            f"The images have shape {tuple(images.shape)}; expected [image, channel, height, width]"
            " with at least two pixels each way."
        )
