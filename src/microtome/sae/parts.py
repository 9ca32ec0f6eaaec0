"""The parts of a coder of several sites whose latents are known at the same moment.

All latents of a crosscoder read all of its sources: it is one part. The latents of a cross-layer
transcoder read one source each: those of each source are a coder of their own, from that source to
the targets from there on, and what these give adds up to what the whole gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from microtome.core.protocols import CodecPart
from microtome.errors import ConfigError
from microtome.sae.architecture import Architecture
from microtome.sae.encoding import Weights

if TYPE_CHECKING:
    from microtome.sae.coder import SAE


def parts_of(coder: SAE) -> tuple[CodecPart, ...]:
    """Return the parts of a coder; large weights are views of the coder's own.

    Raises:
        ConfigError: If latents of different sources compete to be kept, or a skip connection leads
            from a source to a target before it.
    """
    make = coder.architecture
    if make.reach == "all" or len(make.sources) == 1:
        every = (tuple(range(len(widths))) for widths in (make.sources, make.targets))
        return (CodecPart(coder, *every),)
    if make.activation in ("topk", "abstopk"):
        raise ConfigError(
            f"Of all latents of a row this coder keeps the {make.k} largest ({make.activation}), "
            "so those of one source depend on the sources behind it and are not known where it is "
            "read. Train with activation='batchtopk', a threshold afterwards, or 'jumprelu'."
        )
    return tuple(_part(coder, number) for number in range(len(make.sources)))


def _part(coder: SAE, number: int) -> CodecPart:
    """Return the coder from one source to the targets that its latents write."""
    from microtome.sae.coder import SAE

    make, weights = coder.architecture, coder.weights
    last = len(make.targets) if make.reach == "later" else number + 1
    source, latents = make.source_slices[number], make.latent_slices[number]
    start, stop = make.target_slices[number].start, make.target_slices[last - 1].stop
    width = make.sources[number]
    part = Architecture(
        width,
        latents.stop - latents.start,
        d_out=stop - start,
        activation=make.activation,
        k=min(make.k, latents.stop - latents.start),
        targets=make.targets[number:last],
        skip=make.skip,
        center=False,
    )
    with torch.no_grad():
        found = {
            name: weight[latents]
            for name, weight in weights.items()
            if name not in ("W_dec", "b_dec", "W_enc", "W_skip")
        }
        found["W_enc"] = weights["W_enc"][latents, :width]
        found["W_dec"] = weights["W_dec"][latents, start:stop]
        # each target has one bias: the part of its own number brings it
        found["b_dec"] = weights["b_dec"].new_zeros(stop - start)
        own = make.target_slices[number]
        found["b_dec"][: own.stop - own.start] = weights["b_dec"][own]
        if make.center:
            found |= _uncentered(found, found["W_enc"] @ weights["b_dec"][source])
        if make.skip:
            found["W_skip"] = _skip(coder, number, start, stop)
    writes = tuple(range(number, last))
    return CodecPart(SAE(part, weights=found, origin=coder.origin), (number,), writes)


def _uncentered(weights: Weights, center: Tensor) -> dict[str, Tensor]:
    """Return the biases that do what subtracting a center from the input did."""
    if "b_gate" not in weights:
        return {"b_enc": weights["b_enc"] - center}
    return {
        "b_gate": weights["b_gate"] - center,
        "b_mag": weights["b_mag"] - center * weights["r_mag"].exp(),
    }


def _skip(coder: SAE, number: int, start: int, stop: int) -> Tensor:
    """Return the skip connection from one source to the targets from its own number on."""
    make, skip = coder.architecture, coder.weights["W_skip"]
    columns = skip[:, make.source_slices[number]]
    outside = torch.cat([columns[:start], columns[stop:]])
    if bool(outside.any()):
        raise ConfigError(
            f"The skip connection of this coder leads from source {number} to targets that its "
            f"latents do not write (reach={make.reach!r}); a coder of several sites can be "
            "attached without skip=True, or with those weights zero."
        )
    return columns[start:stop]
