"""The digits network: a small convolutional classifier of scikit-learn's 8 x 8 digits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from microtome.core.seeds import rng

TEST_SHARE = 0.2
"""Share of the images that is held out."""


class DigitsCNN(nn.Module):
    """Three convolutions and a linear readout; its sites are ``module:conv2:out`` and the like.

    Input ``[batch, 1, 8, 8]`` in 0 to 1, output logits ``[batch, 10]``. ``conv1`` and ``conv2`` see
    the image at full size, ``conv3`` at half of it.

    Args:
        channels: Units of the three convolutions.
    """

    def __init__(self, channels: tuple[int, int, int] = (8, 16, 16)) -> None:
        super().__init__()
        first, second, third = channels
        self.conv1 = nn.Conv2d(1, first, 3, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1)
        self.readout = nn.Linear(third * 16, 10)

    def forward(self, images: Float[Tensor, "batch 1 8 8"]) -> Float[Tensor, "batch 10"]:
        """Return the logits of the ten digits."""
        hidden = torch.relu(self.conv1(images))
        hidden = self.pool(torch.relu(self.conv2(hidden)))
        hidden = torch.relu(self.conv3(hidden))
        logits: Tensor = self.readout(hidden.flatten(1))
        return logits


@dataclass(frozen=True, eq=False)
class Digits:
    """Images of handwritten digits with their labels.

    Attributes:
        images: ``[image, 1, 8, 8]`` in 0 to 1.
        labels: ``[image]``.
    """

    images: Float[Tensor, "image 1 8 8"]
    labels: Int[Tensor, " image"]


def digits(split: str = "train") -> Digits:
    """Return the training or the held-out images of scikit-learn's digits.

    The split is drawn with seed 0 and is the one that the shipped network was trained on.

    Args:
        split: ``train`` or ``test``.

    Example:
        >>> from microtome.models.digits import digits
        >>> len(digits("train").labels), len(digits("test").labels)
        (1438, 359)
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    order = rng(0, "digits").permutation(len(found.target))
    held_out = int(TEST_SHARE * len(order))
    chosen = order[:held_out] if split == "test" else order[held_out:]
    images = torch.tensor(found.images[chosen] / 16, dtype=torch.float32).unsqueeze(1)
    return Digits(images, torch.tensor(found.target[chosen]))
