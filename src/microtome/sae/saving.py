"""Saving and loading coders in any format, with a check that nothing was lost."""

from __future__ import annotations

import math
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

_WIDER = "a wider dtype, or another format, keeps the coder"

_REMEDIES = {
    "bfloat16": (
        "bfloat16 keeps 8 bits of a weight, too few where latents begin at a threshold: "
        "dtype='float16' takes as little room and keeps 11, 'float32' keeps all; or round the "
        "coder first, evaluate what is left of it, and save that: coder.bfloat16().float()"
    ),
    "float16": (
        "dtype='float32' keeps the coder; or round it first, evaluate what is left of it, and save "
        "that: coder.half().float()"
    ),
}
"""What to do where weights in fewer bits are another coder."""


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
        return _read(require_format(format), path)
    for known in FORMATS.values():
        if known.recognizes(path):
            return _read(known, path)
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
            ``"bfloat16"`` is refused for most coders with thresholds: its 8 bits move activations
            across them. ``"float16"`` is not; or round the coder first: ``coder.half().float()``.
        sample: Inputs ``[row, d_in]``, or inputs and targets ``[row, d_out]``, on which FVU and L0
            must be the same; drawn from the coder's own directions unless given.

    Returns:
        The folder.

    Raises:
        ConfigError: The format cannot hold this coder, the dtype is not known, or the folder holds
            a coder in another format.
        ShapeError: The sample does not fit, or all its rows are the same.
        FormatError: What was read back differs by more than 1e-4; nothing is left on disk.
        OutputError: The folder could not be written.
    """
    chosen = require_format(format)
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    if reason := chosen.objection(coder):
        raise ConfigError(
            f"cannot write this coder as {format}: {reason}; format='{native.NAME}' takes it"
        )
    for other in FORMATS.values():
        if other is not chosen and other.recognizes(Path(folder)):
            raise ConfigError(
                f"{folder} holds a coder as {other.name}, and beside it one as {format} would be "
                "mistaken for it; give another folder"
            )
    with atomic_folder(folder) as temporary:
        chosen.write(coder, temporary, DTYPES[dtype])
        what = f"{folder} as {format} in {dtype}"
        _require_same(coder, _read(chosen, temporary), sample, what, _REMEDIES.get(dtype, _WIDER))
    return Path(folder)


def _shipped(name: str) -> Path | None:
    """Return the folder of the coder that ships with a specimen, None if there is none."""
    folder = None if Path(name).exists() else specimen_folder(name)
    return folder / "sae" if folder is not None and (folder / "sae").is_dir() else None


def _read(format: Format, place: Path) -> SAE:
    """Read a coder; where some weights are in double precision, all are."""
    coder = format.read(place)
    wide = any(w.dtype == torch.float64 for w in coder.weights.values())
    return coder.double() if wide else coder


def require_format(name: str) -> Format:
    """Return a format by its name.

    Raises:
        UnknownNameError: There is none of this name.
    """
    if name not in FORMATS:
        raise UnknownNameError(f"no format {name!r}{nearest(name, FORMATS)}")
    return FORMATS[name]


def _require_same(
    coder: SAE,
    again: SAE,
    sample: Tensor | tuple[Tensor, Tensor] | None,
    what: str,
    remedy: str,
) -> None:
    for inputs, targets in _own_samples(coder) if sample is None else [_pair(coder, sample)]:
        before, after = _measure(coder, inputs, targets), _measure(again, inputs, targets)
        if math.isnan(before.fvu):
            raise ShapeError(
                f"the {len(inputs)} rows of the sample have the same target, so FVU says nothing; "
                "give rows that differ"
            )
        fvu = abs(before.fvu - after.fvu) / max(1.0, abs(before.fvu))
        l0 = abs(before.l0 - after.l0) / max(1.0, before.l0)
        if not max(fvu, l0) <= TOLERANCE:
            raise FormatError(
                f"refused to save {what}: read back, FVU is {after.fvu:.6f} and L0 {after.l0:.4f} "
                f"where they were {before.fvu:.6f} and {before.l0:.4f}; {remedy}"
            )


@torch.no_grad()
def _pair(coder: SAE, sample: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of a sample that was given."""
    inputs, targets = sample if isinstance(sample, tuple) else (sample, sample)
    if inputs.dim() != 2 or inputs.shape[-1] != coder.d_in:
        raise ShapeError(f"sample of shape {tuple(inputs.shape)}; expected row, {coder.d_in}")
    if not isinstance(sample, tuple) and coder.d_in != coder.d_out:
        targets = coder(inputs.to(coder.weights["b_dec"]))
    if targets.shape != (len(inputs), coder.d_out):
        raise ShapeError(
            f"targets of shape {tuple(targets.shape)}; expected {len(inputs)}, {coder.d_out}"
        )
    return inputs, targets


@torch.no_grad()
def _own_samples(coder: SAE, rows: int = 256) -> list[tuple[Tensor, Tensor]]:
    """Return inputs of ordinary size, and where these activate little, larger ones that do.

    The targets are what the coder gives and some noise.
    """
    generator = torch_generator(0, "sae", "save-check")
    weight = coder.weights["b_dec"]
    inputs = torch.randn(rows, coder.d_in, generator=generator).to(weight)
    noise = torch.randn(rows, coder.d_out, generator=generator).to(weight)
    middle = weight if coder.architecture.center else torch.zeros_like(inputs[0])
    scale, scales = 1.0, [1.0]
    # What no input activates cannot be compared, and thresholds may lie far out.
    while scale < 1e6 and not _mostly_active(coder, inputs * scale + middle):
        scale *= 2
    scales += [scale] if scale > 1 else []
    found = []
    for scale in scales:
        outputs = coder(inputs * scale + middle)
        spread = outputs.std().clamp_min(1e-3)
        found.append((inputs * scale + middle, outputs + 0.3 * spread * noise))
    return found


def _mostly_active(coder: SAE, inputs: Tensor) -> bool:
    """Return whether most inputs activate some latent."""
    return float((coder.encode(inputs) != 0).any(1).float().mean()) > 0.5


@torch.no_grad()
def _measure(coder: SAE, inputs: Tensor, targets: Tensor) -> Reconstruction:
    tally = ReconstructionTally(coder)
    weight = coder.weights["b_dec"]
    tally.add(targets, coder(inputs.to(weight)), coder.encode(inputs.to(weight)))
    return tally.result()
