"""What a sparse coder is made of: its widths, activation, encoder, decoder and connections.

SAE, transcoder, skip transcoder, crosscoder and cross-layer transcoder are values of one type::

    SAE                        Architecture(d_in=64, d_sae=1024)
    transcoder                 Architecture(d_in=64, d_sae=1024, d_out=64, center=False)
    skip transcoder            ... skip=True
    crosscoder                 Architecture(d_in=192, d_sae=1024, sources=(64, 64, 64), targets=...)
    cross-layer transcoder     ... reach="later", center=False
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from itertools import accumulate, pairwise
from typing import Any, Literal, Self, get_args

from microtome.errors import ConfigError, nearest

Activation = Literal["relu", "topk", "batchtopk", "jumprelu", "gated", "abstopk"]
Encoder = Literal["dense", "tied", "kronecker"]
Reach = Literal["all", "own", "later"]

COUNTED: tuple[Activation, ...] = ("topk", "batchtopk", "abstopk")
"""Activations that keep ``k`` latents of a row, or ``k`` of a row on average."""


@dataclass(frozen=True)
class Architecture:
    """The make of one sparse coder; membership of parts, no weights.

    Attributes:
        d_in: Width of what is encoded; several source sites lie side by side.
        d_sae: Number of latents.
        d_out: Width of what is decoded, ``d_in`` unless given.
        activation: ``"relu"``; ``"topk"`` (Gao et al., 2024); ``"batchtopk"`` (Bussmann et al.,
            2024), at inference a threshold; ``"jumprelu"`` (Rajamanoharan et al., 2024b);
            ``"gated"`` (Rajamanoharan et al., 2024a); ``"abstopk"``, the largest absolute values.
        k: Latents kept for each row, for the activations that count.
        encoder: ``"dense"``; ``"tied"``, the decoder's transpose; ``"kronecker"``, latent (i, j)
            of a head is the geometric mean of two smaller units where both are positive
            (KronSAE, arXiv 2505.22255).
        kronecker: Heads, left and right units of a Kronecker encoder; their product is ``d_sae``.
        prefixes: Growing numbers of latents that must reconstruct alone (Matryoshka, Bussmann et
            al., 2025), the last one ``d_sae``; empty for one reconstruction by all.
        sources: Widths of the source sites, ``(d_in,)`` unless given.
        targets: Widths of the target sites, ``(d_out,)`` unless given.
        reach: What a latent reads and writes: ``"all"`` sources and targets; with ``"own"`` and
            ``"later"`` the latents are divided equally among the sources, each reads its own
            source only and writes the target of its own number, or of all from there on.
        skip: Whether an affine map of the input is added to the output past the latents; with a
            ``reach``, of each source to the targets that its latents write.
        center: Whether the decoder's bias is subtracted from the input before encoding.

    Raises:
        ConfigError: The values do not fit together.
    """

    d_in: int
    d_sae: int
    d_out: int = 0
    activation: Activation = "batchtopk"
    k: int = 0
    encoder: Encoder = "dense"
    kronecker: tuple[int, int, int] | None = None
    prefixes: tuple[int, ...] = ()
    sources: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    reach: Reach = "all"
    skip: bool = False
    center: bool = True

    def __post_init__(self) -> None:
        """Fill in what follows from the rest and refuse what does not fit together."""
        for name in ("d_in", "d_sae", "d_out", "k"):
            _whole(name, getattr(self, name), least=int(name in ("d_in", "d_sae")))
        for name, choices in (("activation", Activation), ("encoder", Encoder), ("reach", Reach)):
            _one_of(name, getattr(self, name), get_args(choices))
        for name in ("skip", "center"):
            _one_of(name, getattr(self, name), (False, True))
        for name in ("prefixes", "sources", "targets"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            for number in getattr(self, name):
                _whole(f"a number of {name}", number, least=1)
        if self.d_out == 0:
            object.__setattr__(self, "d_out", sum(self.targets) or self.d_in)
        object.__setattr__(self, "sources", self.sources or (self.d_in,))
        object.__setattr__(self, "targets", self.targets or (self.d_out,))
        if self.activation in COUNTED and self.k == 0:
            object.__setattr__(self, "k", min(32 if self.d_in <= 1024 else 64, self.d_sae))
        self._check_widths()
        self._check_parts()

    def _check_widths(self) -> None:
        for name, total in (("sources", self.d_in), ("targets", self.d_out)):
            widths = getattr(self, name)
            if sum(widths) != total or any(width < 1 for width in widths):
                raise ConfigError(
                    f"{name} are {widths}, {sum(widths)} in all; expected positive widths that "
                    f"add up to {total}"
                )
        if self.center and self.d_in != self.d_out:
            raise ConfigError(
                f"center=True subtracts the decoder's bias ({self.d_out} wide) from the input "
                f"({self.d_in} wide); set center=False for a coder from one site to another"
            )
        if self.reach == "all":
            return
        if len(self.sources) != len(self.targets):
            raise ConfigError(
                f"reach={self.reach!r} pairs sources with targets; there are {len(self.sources)} "
                f"sources and {len(self.targets)} targets"
            )
        if self.d_sae % len(self.sources):
            raise ConfigError(
                f"d_sae is {self.d_sae}; with reach={self.reach!r} it must be a multiple of the "
                f"{len(self.sources)} sources"
            )

    def _check_parts(self) -> None:
        if self.activation not in COUNTED and self.k:
            raise ConfigError(f"k is {self.k}, and activation {self.activation!r} keeps no number")
        if self.k > self.d_sae:
            raise ConfigError(f"k is {self.k}; there are {self.d_sae} latents")
        if (self.encoder == "kronecker") != (self.kronecker is not None):
            raise ConfigError(
                f"encoder is {self.encoder!r} and kronecker {self.kronecker}; a Kronecker encoder "
                "needs its heads, left and right units, and no other encoder has them"
            )
        if self.kronecker is not None:
            object.__setattr__(self, "kronecker", tuple(self.kronecker))
            if len(self.kronecker) != 3:
                raise ConfigError(f"kronecker is {self.kronecker}; expected three numbers")
            for number in self.kronecker:
                _whole("a number of kronecker", number, least=1)
            heads, left, right = self.kronecker
            if heads * left * right != self.d_sae:
                raise ConfigError(
                    f"kronecker is {self.kronecker}, {heads * left * right} latents; expected "
                    f"d_sae = {self.d_sae}"
                )
        if self.encoder == "tied" and self.d_in != self.d_out:
            raise ConfigError("a tied encoder is the decoder's transpose: d_out must be d_in")
        if self.encoder != "dense" and (self.activation == "gated" or self.reach != "all"):
            raise ConfigError(
                f"encoder {self.encoder!r} goes with neither gated activations nor "
                f"reach={self.reach!r}; use the dense encoder"
            )
        growing = all(a < b for a, b in pairwise((0, *self.prefixes)))
        if self.prefixes and (not growing or self.prefixes[-1] != self.d_sae):
            raise ConfigError(
                f"prefixes are {self.prefixes}; expected growing numbers of latents, the last one "
                f"d_sae = {self.d_sae}"
            )

    @property
    def source_slices(self) -> tuple[slice, ...]:
        """Where each source site lies in an input."""
        return _slices(self.sources)

    @property
    def target_slices(self) -> tuple[slice, ...]:
        """Where each target site lies in an output."""
        return _slices(self.targets)

    @property
    def latent_slices(self) -> tuple[slice, ...]:
        """The latents of each source; all of them in one slice where every latent reads all."""
        if self.reach == "all":
            return (slice(0, self.d_sae),)
        return _slices((self.d_sae // len(self.sources),) * len(self.sources))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Return the architecture of a dictionary that :meth:`to_dict` made.

        Raises:
            ConfigError: A field is unknown or does not fit.
        """
        known = {field.name for field in fields(cls)}
        for name in values:
            _one_of("a field of an architecture", name, sorted(known))
        return cls(**values)


def _whole(name: str, value: Any, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; expected a whole number from {least}")


def _one_of(name: str, value: Any, choices: Any) -> None:
    if value not in choices:
        raise ConfigError(
            f"{name} is {value!r}; expected one of {', '.join(map(str, choices))}"
            f"{nearest(str(value), map(str, choices))}"
        )


def _slices(widths: tuple[int, ...]) -> tuple[slice, ...]:
    ends = list(accumulate(widths, initial=0))
    return tuple(slice(a, b) for a, b in pairwise(ends))
