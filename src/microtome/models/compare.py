"""Comparing recorded values: relative errors and the scale between two tensors."""

from __future__ import annotations

import torch

MATCH = 2e-5
"""Relative error up to which two recorded float32 values count as the same."""

NEARLY_ONE = 0.02
"""How far from 1 a scale fitted to rounded values may be to count as 1."""

ROUNDINGS = 4
"""Roundings that one entry of an addition in a short type may have gone through."""

UNEXPLAINED = 0.2
"""Share of an addend's size that may be left over in a short type."""


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Return ``max |value - expected| / max |expected|`` in float64 (0 when both are zero)."""
    a, b = value.double(), expected.double()
    # masked scores may be infinite on both sides, which is no difference
    difference = torch.where(a == b, 0.0, a - b).abs().max().item()
    size = torch.where(b.isfinite(), b, 0.0).abs().max().item()
    return difference / size if size > 0 else difference


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative error up to which identities hold in a dtype."""
    return MATCH if dtype in (torch.float32, torch.float64) else 8 * torch.finfo(dtype).eps


def fitted_scale(target: torch.Tensor, part: torch.Tensor) -> float | None:
    """Return ``s`` with ``target = s * part`` within tolerance, or None.

    A scale within tolerance of 1 is returned as exactly 1.
    """
    flat_target, flat_part = target.double().flatten(), part.double().flatten()
    if flat_target.numel() != flat_part.numel():
        return None
    power = float(flat_part @ flat_part)
    if power == 0.0:
        return None
    scale = float(flat_target @ flat_part) / power
    limit = tolerance(part.dtype)
    if abs(scale - 1.0) < limit:
        scale = 1.0
    if scale == 0.0 or relative_error(flat_target, scale * flat_part) > limit:
        return None
    return scale


def addition_scale(total: torch.Tensor, base: torch.Tensor, part: torch.Tensor) -> float | None:
    """Return ``s`` with ``total = base + s * part`` within tolerance, or None.

    None is also returned where ``part`` is too small beside ``total`` to tell.
    """
    if total.shape != base.shape or part.numel() != total.numel():
        return None
    total64, base64 = total.double(), base.double()
    part64 = part.double().reshape(total.shape)
    power = float((part64 * part64).sum())
    size = float(total64.abs().max())
    if power == 0.0 or size == 0.0:
        return None
    scale = float(((total64 - base64) * part64).sum()) / power
    if total.dtype not in (torch.float32, torch.float64):
        return _rounded_addition(scale, total64, base64, part64, torch.finfo(total.dtype).eps)
    limit = tolerance(total.dtype)
    if abs(scale - 1.0) < 50 * limit:
        scale = 1.0
    if abs(scale) * float(part64.abs().max()) < 20 * limit * size:
        return None
    error = float((total64 - base64 - scale * part64).abs().max()) / size
    return scale if error <= limit else None


def _rounded_addition(
    scale: float, total: torch.Tensor, base: torch.Tensor, part: torch.Tensor, eps: float
) -> float | None:
    """Return the scale of an addition whose terms and sum were rounded to a short type.

    Every entry has to be right within the rounding of its terms, and the part has to explain nearly
    all of the difference, which rounding alone could not.
    """
    if abs(scale - 1.0) < NEARLY_ONE:
        scale = 1.0
    rest = total - base - scale * part
    rounding = ROUNDINGS * eps * (total.abs() + base.abs() + part.abs())
    if scale == 0.0:
        return None
    explained = float(rest.norm()) <= UNEXPLAINED * abs(scale) * float(part.norm())
    return scale if explained and bool((rest.abs() <= rounding).all()) else None
