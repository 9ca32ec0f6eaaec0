"""Independent random streams from one seed, without global state.

A stream is named by the seed and any number of words. Streams of different names are
independent, so adding a random step to one method never shifts the numbers of another.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from microtome.errors import ConfigError

if TYPE_CHECKING:
    import torch


def rng(seed: int, *names: str) -> np.random.Generator:
    """Return the numpy generator of a named random stream.

    Args:
        seed: The user's seed; any integer from 0.
        names: Words that name the stream, for example ``"bootstrap"``.

    Returns:
        A PCG64 generator that depends on nothing but the seed and the names.

    Raises:
        ConfigError: The seed is not an integer from 0.

    Example:
        >>> from microtome.core.seeds import rng
        >>> bool(rng(0, "a").random() == rng(0, "a").random())
        True
        >>> bool(rng(0, "a").random() == rng(0, "b").random())
        False
    """
    return np.random.Generator(np.random.PCG64(_entropy(seed, names)))


def torch_generator(seed: int, *names: str) -> torch.Generator:
    """Return the CPU torch generator of a named random stream.

    Args:
        seed: The user's seed; any integer from 0.
        names: Words that name the stream.

    Returns:
        A generator seeded by the first 63 bits of the stream's digest.

    Raises:
        ConfigError: The seed is not an integer from 0.
    """
    import torch

    generator = torch.Generator()
    generator.manual_seed(_entropy(seed, names) >> (256 - 63))
    return generator


def _entropy(seed: int, names: tuple[str, ...]) -> int:
    """Return the 256-bit number that a seed and a stream's names stand for."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"seed is {seed!r}; expected an integer from 0")
    text = json.dumps([int(seed), *names], ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
