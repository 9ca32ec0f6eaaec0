"""The sparse coder: one module for SAEs, transcoders, crosscoders and cross-layer transcoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from microtome.core.protocols import CodecPart
from microtome.core.seeds import torch_generator
from microtome.errors import ShapeError, UsageError
from microtome.sae.architecture import Architecture
from microtome.sae.encoding import activate, pre_activations
from microtome.sae.latents import SparseLatents
from microtome.sae.parts import parts_of
from microtome.sae.selecting.sparse_encoding import active_latents

if TYPE_CHECKING:
    from microtome.sae.results import TrainingSummary

BLOCK_ENTRIES = 2**23
"""Dense pre-activations formed at a time while encoding sparsely (32 MiB of float32)."""


@dataclass(frozen=True)
class Origin:
    """Where a coder comes from and where it belongs.

    Attributes:
        sources: Sites it reads, in the order of the architecture's sources; empty if unknown.
        targets: Sites it writes; those it reads, for an SAE.
        model: Name of the model, empty if unknown.
        fingerprint: Fingerprint of the model, empty if unknown.
        details: Whatever else is known: data, steps, configuration, foreign metadata.
    """

    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    model: str = ""
    fingerprint: str = ""
    details: dict[str, Any] = field(default_factory=dict)


class SAE(nn.Module):
    """A sparse coder: ``decode(encode(x)) + bypass(x)`` approximates its targets.

    Parameters, by the architecture: ``W_enc`` ``[d_sae, d_in]`` (``[d_sae, widest source]`` where
    latents read their own source) and ``b_enc`` ``[d_sae]``, or ``W_left``, ``b_left``,
    ``W_right``, ``b_right`` of a Kronecker encoder; ``W_dec`` ``[d_sae, d_out]``, one direction a
    row; ``b_dec`` ``[d_out]``; ``W_skip`` ``[d_out, d_in]``; ``b_gate``, ``r_mag``, ``b_mag``
    ``[d_sae]`` of gated coders. ``threshold`` ``[d_sae]`` of JumpReLU and BatchTopK coders.

    Args:
        architecture: What it is made of.
        seed: Seed of the initial weights: decoder rows of norm 1 in random directions, the encoder
            their transpose; with a Kronecker encoder, directions between a latent's two units.
        origin: Where it belongs.
        weights: The weights by name, used as they are, instead of initial ones.

    Raises:
        ShapeError: Given weights lack a name, have one too many, or one of another shape.

    Attributes:
        architecture: What it is made of.
        origin: Where it belongs.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        seed: int = 0,
        origin: Origin | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.origin = origin or Origin()
        self._summary: TrainingSummary | None = None
        if weights is None:
            weights = initial_weights(architecture, seed)
        else:
            _check_weights(architecture, weights)
        for name in weight_shapes(architecture):
            self.register_parameter(name, nn.Parameter(weights[name]))

    @property
    def d_in(self) -> int:
        """Width of what is encoded."""
        return self.architecture.d_in

    @property
    def d_out(self) -> int:
        """Width of what is decoded."""
        return self.architecture.d_out

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.architecture.d_sae

    @property
    def summary(self) -> TrainingSummary:
        """How it was trained: figures, history, settings; it is not saved with the coder.

        Raises:
            UsageError: It does not come from a training, but from a file or from weights.
        """
        if self._summary is None:
            raise UsageError(
                "the coder comes from a file or from weights and has no summary; a run's folder "
                "keeps it: TrainingSummary.load(folder / 'training.json')"
            )
        return self._summary

    @summary.setter
    def summary(self, summary: TrainingSummary) -> None:
        self._summary = summary

    @property
    def weights(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return dict(self.named_parameters())

    def encode(self, values: Tensor) -> Tensor:
        """Return the latents ``[..., d_sae]`` of values ``[..., d_in]``, differentiable.

        Raises:
            ShapeError: The last axis is not ``d_in`` wide.
        """
        self._check(values, self.d_in, "encode", "d_in")
        weights = self.weights
        return activate(
            self.architecture, weights, pre_activations(self.architecture, weights, values)
        )

    @torch.no_grad()
    def encode_sparse(self, values: Tensor) -> SparseLatents:
        """Return the active latents of values ``[row, d_in]``, formed block by block.

        Raises:
            ShapeError: ``values`` is not a matrix ``d_in`` wide.
        """
        if values.dim() != 2:
            raise ShapeError(f"values of shape {tuple(values.shape)}; expected row, d_in")
        block = max(1, BLOCK_ENTRIES // self.d_sae)
        self._check(values, self.d_in, "encode", "d_in")
        make, weights = self.architecture, self.weights
        parts = [active_latents(make, weights, rows) for rows in values.split(block)]
        return SparseLatents.join(parts)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the values ``[..., d_out]`` of latents ``[..., d_sae]``, differentiable.

        Raises:
            ShapeError: The last axis is not ``d_sae`` wide.
        """
        self._check(latents, self.d_sae, "decode", "d_sae")
        return latents @ self.weights["W_dec"] + self.weights["b_dec"]

    def bypass(self, values: Tensor) -> Tensor | None:
        """Return what the skip connection adds ``[..., d_out]``, None without one."""
        if not self.architecture.skip:
            return None
        self._check(values, self.d_in, "bypass", "d_in")
        past: Tensor = values @ self.weights["W_skip"].T
        return past

    def parts(self) -> tuple[CodecPart, ...]:
        """Return the parts that are attached to a model; see :mod:`microtome.sae.parts`.

        Raises:
            ConfigError: If latents of one source cannot be told without those of others.
        """
        return parts_of(self)

    def forward(self, values: Tensor) -> Tensor:
        """Return the reconstruction ``[..., d_out]`` from values ``[..., d_in]``."""
        decoded = self.decode(self.encode(values))
        past = self.bypass(values)
        return decoded if past is None else decoded + past

    @staticmethod
    def _check(values: Tensor, width: int, verb: str, name: str) -> None:
        if values.dim() == 0 or values.shape[-1] != width:
            raise ShapeError(
                f"cannot {verb} values of shape {tuple(values.shape)}: expected a last axis of "
                f"{name} = {width}"
            )


def weight_shapes(make: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of a coder by name."""
    shapes: dict[str, tuple[int, ...]] = {
        "W_dec": (make.d_sae, make.d_out),
        "b_dec": (make.d_out,),
    }
    if make.kronecker is not None:
        heads, left, right = make.kronecker
        for side, units in (("left", heads * left), ("right", heads * right)):
            shapes |= {f"W_{side}": (units, make.d_in), f"b_{side}": (units,)}
    elif make.encoder == "dense":
        width = make.d_in if make.reach == "all" else max(make.sources)
        shapes["W_enc"] = (make.d_sae, width)
    if make.activation == "gated":
        shapes |= {name: (make.d_sae,) for name in ("b_gate", "r_mag", "b_mag")}
    elif make.kronecker is None:
        shapes["b_enc"] = (make.d_sae,)
    if make.activation in ("jumprelu", "batchtopk"):
        shapes["threshold"] = (make.d_sae,)
    if make.skip:
        shapes["W_skip"] = (make.d_out, make.d_in)
    return shapes


def _check_weights(make: Architecture, weights: Mapping[str, Tensor]) -> None:
    shapes = weight_shapes(make)
    if set(weights) != set(shapes):
        raise ShapeError(
            f"weights {', '.join(sorted(weights))} for a coder whose weights are "
            f"{', '.join(sorted(shapes))}; give exactly these"
        )
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape:
            raise ShapeError(
                f"{name} has shape {tuple(weights[name].shape)}; expected {shape} for {make}"
            )


def initial_weights(make: Architecture, seed: int) -> dict[str, Tensor]:
    """Return the weights that training starts from, by name.

    The stream is its own: with the stream of synthetic data, the dictionary would begin as the
    truth it is meant to find.
    """
    generator = torch_generator(seed, "sae", "init")
    decoder = torch.randn(make.d_sae, make.d_out, generator=generator)
    mask = reach_mask(make)
    if mask is not None:
        decoder *= mask
    decoder /= decoder.norm(dim=1, keepdim=True)
    weights = {name: torch.zeros(shape) for name, shape in weight_shapes(make).items()}
    weights["W_dec"] = decoder
    for name in sorted(weights.keys() & {"W_left", "W_right"}):
        rows = torch.randn(weights[name].shape, generator=generator)
        weights[name] = rows / rows.norm(dim=1, keepdim=True)
    if make.kronecker is not None and make.d_in == make.d_out:
        weights["W_dec"] = _pairs(make.kronecker, weights["W_left"], weights["W_right"])
    if "W_enc" in weights:
        weights["W_enc"] = _initial_encoder(make, decoder, generator)
    return weights


def _pairs(shape: tuple[int, int, int], left: Tensor, right: Tensor) -> Tensor:
    """Return for each latent the direction between its two units ``[d_sae, d_in]``.

    It is what both see most of, as a dense encoder's row is its decoder's.
    """
    heads, lefts, rights = shape
    both = left.view(heads, lefts, 1, -1) + right.view(heads, 1, rights, -1)
    return torch.nn.functional.normalize(both.flatten(0, 2), dim=1)


def reach_mask(make: Architecture) -> Tensor | None:
    """Return which entries of the decoder exist ``[d_sae, d_out]``, None where all do."""
    if make.reach == "all":
        return None
    mask = torch.zeros(make.d_sae, make.d_out)
    last = len(make.targets) if make.reach == "later" else None
    for number, latents in enumerate(make.latent_slices):
        for target in make.target_slices[number : last or number + 1]:
            mask[latents, target] = 1
    return mask


def skip_mask(make: Architecture) -> Tensor | None:
    """Return which entries of the skip connection exist ``[d_out, d_in]``, None where all do.

    It leads from a source to the targets that the source's latents write.
    """
    if not make.skip or make.reach == "all":
        return None
    mask = torch.zeros(make.d_out, make.d_in)
    last = len(make.targets) if make.reach == "later" else None
    for number, source in enumerate(make.source_slices):
        for target in make.target_slices[number : last or number + 1]:
            mask[target, source] = 1
    return mask


def _initial_encoder(make: Architecture, decoder: Tensor, generator: torch.Generator) -> Tensor:
    if make.reach == "all" and make.d_in == make.d_out:
        return decoder.clone()
    encoder: Tensor = torch.randn(make.d_sae, make.d_in, generator=generator)
    if make.reach != "all":
        # a view of other strides is not trained: fused Adam takes its memory for contiguous
        encoder = encoder[:, : max(make.sources)].contiguous()
        for source, latents in zip(make.sources, make.latent_slices, strict=True):
            encoder[latents, source:] = 0
    encoder /= encoder.norm(dim=1, keepdim=True)
    return encoder
