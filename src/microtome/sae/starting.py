"""What a training starts from: the device, the memory, the coder's first weights."""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.errors import ConfigError, UsageError
from microtome.sae.architecture import COUNTED, Architecture
from microtome.sae.coder import SAE
from microtome.sae.config import Config
from microtome.sae.selecting.estimation import Precision, fastest_precision

ENCODER_START = 0.1
"""Norm of an encoder's rows at the start where latents compete to be counted.

Which are counted does not depend on it, but how fast they turn does: Adam's steps have a size of
their own. And the sum of many latents that are not yet apart does not overshoot."""


def initial_coder(make: Architecture, config: Config, mean: Tensor) -> SAE:
    """Return the coder that training begins with.

    Args:
        make: Its make.
        config: Settings, the seed among them.
        mean: Mean of the targets as they are trained on ``[d_out]``, its first bias.
    """
    coder = SAE(make, seed=config.seed).to(config.device)
    with torch.no_grad():
        coder.weights["b_dec"].copy_(mean)
        if make.activation == "jumprelu":
            coder.weights["threshold"].fill_(config.threshold)
        if make.activation in COUNTED and make.encoder != "tied":
            for name in coder.weights.keys() & {"W_enc", "W_left", "W_right"}:
                coder.weights[name].mul_(ENCODER_START)
    return coder


def settings_of(config: Config | None) -> Config:
    """Return the settings of a run, which have a device that can compute.

    Raises:
        UsageError: They are none.
        ConfigError: The device cannot be used.
    """
    chosen = Config() if config is None else config
    if not isinstance(chosen, Config):
        raise UsageError(
            f"config is {type(chosen).__name__}, {str(chosen)[:60]!r}; expected a Config such as "
            "Config(k=16); the text that a model reads is text="
        )
    require_device(chosen.device)
    return chosen


def require_device(device: str) -> None:
    """Refuse a device that cannot be used, before anything is read.

    Raises:
        ConfigError: It does not exist, or cannot compute.
    """
    try:
        torch.zeros((), device=torch.device(device)).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(
            f"device is {device!r}, which cannot be used ({str(error).splitlines()[0]}); expected "
            "cpu, or cuda where torch sees a GPU"
        ) from error


def keep_freed_memory() -> None:
    """Have the C library keep what a step frees for the next one, where it is glibc.

    Memory that is fresh from the system costs as much as the gradients that are written to it. How
    much glibc keeps follows from the largest block that was ever freed, up to 32 MiB; this one is
    never touched.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def selecting_precision(config: Config) -> Precision:
    """Return in which numbers latents are proposed: as asked for, or what is fastest here."""
    if config.precision == "auto":
        return fastest_precision(config.device)
    return config.precision
