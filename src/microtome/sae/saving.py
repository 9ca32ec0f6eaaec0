"""Saving and loading coders in any format, with a check that nothing was lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from microtome.core.seeds import torch_generator
from microtome.errors import ConfigError, FormatError, ShapeError, UnknownNameError, nearest
from microtome.models.specimens import specimen_folder
from microtome.sae.formats import dictionary_learning, gemma_scope, native, saelens, sparsify
from microtome.sae.formats.parts import DTYPES
from microtome.sae.reconstruction import Reconstruction, ReconstructionTally
from microtome.store.atomic import atomic_folder

if TYPE_CHECKING:
    from microtome.sae.coder import SAE

TOLERANCE = 1e-4
"""Difference in FVU and, relative to it, in L0 at which a save is refused."""


@dataclass(frozen=True)
class Format:
    """One format of coders on disk.

    Attributes:
        name: How it is asked for.
        recognizes: Whether a place holds it.
        read: Reads a coder from a place.
        objection: Why a coder cannot be written in it, empty if it can.
        write: Writes a coder into an empty folder in a dtype.
    """

    name: str
    recognizes: Callable[[Path], bool]
    read: Callable[[Path], SAE]
    objection: Callable[[SAE], str]
    write: Callable[[SAE, Path, torch.dtype], None]


FORMATS = {
    module.NAME: Format(module.NAME, module.recognizes, module.read, module.objection, module.write)
    for module in (native, saelens, sparsify, dictionary_learning, gemma_scope)
}
"""Formats by name, in the order in which a place is asked whether it holds them."""


def load(place: str | Path, *, format: str | None = None) -> SAE:
    """Read a coder.

    Args:
        place: A folder in any known format, an ``.npz`` file of Gemma Scope, or the name of a
            specimen that ships with one, such as ``"python-code"``.
        format: Name of the format; found by the files in the folder unless given.

    Returns:
        The coder, in float32 unless it was saved in float64, ready for :meth:`SAE.encode`.

    Raises:
        FormatError: The place holds no known format, or a file of it is damaged.
        UnknownNameError: There is no format of this name.
        UnsafeFileError: A weight file is a pickle.
    """
    path = _shipped(str(place)) or Path(place)
    if format is not None:
        return _format(format).read(path)
    for known in FORMATS.values():
        if known.recognizes(path):
            return known.read(path)
    inside = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else "no such folder"
    raise FormatError(
        f"{path} holds no coder in a known format ({inside}); expected one of "
        f"{', '.join(FORMATS)}: give the folder that holds its configuration and weights"
    )


def save(
    coder: SAE,
    folder: str | Path,
    *,
    format: str = native.NAME,
    dtype: str = "float32",
    sample: Tensor | tuple[Tensor, Tensor] | None = None,
) -> Path:
    """Write a coder, read it back, and refuse the save if it is not the same coder.

    Args:
        coder: The coder.
        folder: Where to write.
        format: Name of the format: ``"microtome"`` takes every make, others say what they lack.
        dtype: Floating-point type of the weights; thresholds keep theirs where the format can.
        sample: Inputs ``[row, d_in]``, or inputs and targets ``[row, d_out]``, on which FVU and L0
            must be the same; drawn from the coder's own directions unless given.

    Returns:
        The folder.

    Raises:
        ConfigError: The format cannot hold this coder, or the dtype is not known.
        FormatError: What was read back differs by more than 1e-4; nothing is left on disk.
        OutputError: The folder could not be written.
    """
    chosen = _format(format)
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    if reason := chosen.objection(coder):
        raise ConfigError(
            f"cannot write this coder as {format}: {reason}; format='{native.NAME}' takes it"
        )
    with atomic_folder(folder) as temporary:
        chosen.write(coder, temporary, DTYPES[dtype])
        _require_same(coder, chosen.read(temporary), sample, f"{folder} as {format} in {dtype}")
    return Path(folder)


def _shipped(name: str) -> Path | None:
    """Return the folder of the coder that ships with a specimen, None if there is none."""
    folder = None if Path(name).exists() else specimen_folder(name)
    return folder / "sae" if folder is not None and (folder / "sae").is_dir() else None


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise UnknownNameError(f"no format {name!r}{nearest(name, FORMATS)}")
    return FORMATS[name]


def _require_same(
    coder: SAE, again: SAE, sample: Tensor | tuple[Tensor, Tensor] | None, what: str
) -> None:
    inputs, targets = _pair(coder, sample)
    if inputs.dim() != 2 or inputs.shape[-1] != coder.d_in or targets.shape[-1] != coder.d_out:
        raise ShapeError(
            f"sample of shapes {tuple(inputs.shape)} and {tuple(targets.shape)}; expected row, "
            f"{coder.d_in} and row, {coder.d_out}"
        )
    before, after = _measure(coder, inputs, targets), _measure(again, inputs, targets)
    fvu = abs(before.fvu - after.fvu) / max(1.0, abs(before.fvu))
    l0 = abs(before.l0 - after.l0) / max(1.0, before.l0)
    if not max(fvu, l0) <= TOLERANCE:
        raise FormatError(
            f"refused to save {what}: read back, FVU is {after.fvu:.6f} and L0 {after.l0:.4f} "
            f"where they were {before.fvu:.6f} and {before.l0:.4f}; a wider dtype, or another "
            "format, keeps the coder"
        )


@torch.no_grad()
def _pair(coder: SAE, sample: Tensor | tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    if sample is None:
        return _own_sample(coder)
    if isinstance(sample, tuple):
        return sample
    return (sample, sample) if coder.d_in == coder.d_out else (sample, coder(sample))


@torch.no_grad()
def _own_sample(coder: SAE, rows: int = 256) -> tuple[Tensor, Tensor]:
    """Return inputs that lie along encoder rows, and what the coder gives plus some noise."""
    generator = torch_generator(0, "sae", "save-check")
    weight = coder.weights["b_dec"]
    inputs = torch.randn(rows, coder.d_in, generator=generator).to(weight)
    gain = coder.encode(inputs).abs().amax()
    threshold = coder.weights.get("threshold")
    if threshold is not None and float(gain) <= float(threshold.amax()):
        inputs = inputs * 8 * (1 + threshold.amax().abs())
    if coder.architecture.center:
        inputs = inputs + weight
    outputs = coder(inputs)
    spread = outputs.std().clamp_min(1e-3)
    noise = torch.randn(outputs.shape, generator=generator).to(weight)
    return inputs, outputs + 0.3 * spread * noise


@torch.no_grad()
def _measure(coder: SAE, inputs: Tensor, targets: Tensor) -> Reconstruction:
    tally = ReconstructionTally(coder)
    weight = coder.weights["b_dec"]
    tally.add(targets, coder(inputs.to(weight)), coder.encode(inputs.to(weight)))
    return tally.result()
