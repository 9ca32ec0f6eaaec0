"""Codecs attached to a model: where each reads and writes, checked by one probe.

A codec (an SAE or a transcoder) reads the value at one site and stands for that at the same or a
later one. With latents ``f`` and error ``e`` the value there is ``decode(f) + bypass + e``, always
and exactly: nothing changes until one of the two is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from microtome.core.protocols import Codec
from microtome.errors import ConfigError, ShapeError, SiteError, SiteWriteError, nearest
from microtome.models.compare import relative_error
from microtome.models.discovery import probe_tokens
from microtome.models.fingerprint import fingerprint
from microtome.tracing.catalog import require_anatomy
from microtome.tracing.sites import Site, at
from microtome.tracing.vocabulary import BLOCK_ORDER, MODEL_SITES, codec_of, is_codec_name

if TYPE_CHECKING:
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model

SAME = 1e-4
"""Relative difference up to which latents, and sums of decoded latents, count as the same."""

ALONE = 8
"""Positions of the probe that are encoded alone."""


@dataclass(frozen=True, eq=False)
class Attachment:
    """A codec attached to a model under a name, or a part of one that has several sites.

    Attributes:
        name: The name.
        codec: The codec.
        at: The site it reads; of several the last one, where its latents become known.
        to: The site whose value it stands for; that it reads, except for transcoders. Of several
            the first one behind ``at``.
        dtype: Type the codec computes in, whatever the model's is.
        affine: Whether decoded latents add up, which was measured.
        fingerprint: Hash of the codec's weights, or of what it gives for the probe.
        reads: The sites it reads, in the order of its input.
        writes: The sites it stands for, in the order of its output.
        widths: Their widths.
        joint: Whether it is one, or a part of one, of several sites.
    """

    name: str
    codec: Codec
    at: Site
    to: Site
    dtype: torch.dtype
    affine: bool
    fingerprint: str
    reads: tuple[Site, ...] = ()
    writes: tuple[Site, ...] = ()
    widths: tuple[int, ...] = ()
    joint: bool = False

    def __post_init__(self) -> None:
        """Fill in the sites of a codec of one source and one target."""
        object.__setattr__(self, "reads", self.reads or (self.at,))
        object.__setattr__(self, "writes", self.writes or (self.to,))
        object.__setattr__(self, "widths", self.widths or (self.codec.d_out,))

    @property
    def latents(self) -> Site:
        """The site of its latents."""
        return Site(f"{self.at.name}/{self.name}", self.at.layer)

    @property
    def error(self) -> Site:
        """The site of its error at ``to``."""
        return self.error_at(self.to)

    @property
    def errors(self) -> tuple[Site, ...]:
        """The sites of its errors; parts of one codec share those of the sites they both write."""
        return tuple(self.error_at(site) for site in self.writes)

    def error_at(self, site: Site) -> Site:
        """Return the site of its error at one of the sites it writes."""
        return Site(f"{site.name}/{self.name}.error", site.layer)

    def in_time(self, site: Site) -> bool:
        """Return whether its latents are known where a site it writes is passed."""
        return site == self.at or order_of(site) > order_of(self.at)

    def part_of(self, site: Site) -> slice:
        """Return which of the decoded values ``[..., d_out]`` stand for a site it writes."""
        number = self.writes.index(site)
        start = sum(self.widths[:number])
        return slice(start, start + self.widths[number])

    @property
    def two_sites(self) -> bool:
        """Whether it reads another site than it writes."""
        return self.at != self.to

    def splice(self) -> Intervention:
        """Return the intervention that puts the reconstruction in the place of the value.

        It sets the error to zero; ``attachment.error`` with a selector does so at some positions.

        Raises:
            ConfigError: If it has, or is a part of a codec that has, several targets.
        """
        if self.joint:
            raise ConfigError(
                f"{self.name} has several sites; the errors to set to zero are those of "
                f"{', '.join(map(str, self.errors))}: microtome.at(SITE).zero() for each."
            )
        return self.error.zero()

    def encode(self, value: torch.Tensor) -> torch.Tensor:
        """Return the latents ``[batch, pos, d_sae]`` of a value ``[batch, pos, ...]``."""
        return self.codec.encode(self._flat(value))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return what latents ``[..., d_sae]`` stand for ``[..., d_out]``."""
        return self.codec.decode(latents.to(self.dtype))

    def bypass(self, value: torch.Tensor) -> torch.Tensor | None:
        """Return what passes by the latents ``[batch, pos, d_out]``, None for nothing."""
        return self.codec.bypass(self._flat(value))

    def directions(self, latents: torch.Tensor) -> torch.Tensor:
        """Return what one unit of each of some latents adds ``[k, d_out]``.

        Args:
            latents: Their numbers ``[k]``; the codec has to be ``affine``.
        """
        with torch.no_grad():
            nothing = torch.zeros(1, self.codec.d_sae, dtype=self.dtype, device=latents.device)
            parts = []
            for some in latents.split(256):
                units = nothing.repeat(len(some), 1).scatter_(1, some.unsqueeze(1), 1.0)
                parts.append(self.decode(units) - self.decode(nothing))
            return torch.cat(parts)

    def _flat(self, value: torch.Tensor) -> torch.Tensor:
        return value.flatten(2).to(self.dtype)


def attachment(
    model: Model, name: str, codec: Codec, source: str | Site, target: str | Site | None
) -> Attachment:
    """Check a codec and where it is to be attached; see ``Model.attach`` for the arguments.

    Raises:
        ConfigError: If the name is malformed or taken, or the codec lies on another device, cannot
            compute there, or lets one position's latents depend on others.
        SiteError: If a site cannot be read or written, or means several places.
        ShapeError: If widths do not fit, or the codec gives NaN.
        ModelSupportError: If the model is not a transformer.
    """
    anatomy = require_anatomy(model.anatomy, "Attaching a codec")
    require_name(name)
    read = place(model, source, write=target is None)
    written = read if target is None else place(model, target, write=True)
    if target is not None and order_of(read) >= order_of(written):
        raise ConfigError(
            f"{name}: to={str(written)!r} does not lie behind at={str(read)!r}. For a codec of one "
            "site leave to= out."
        )
    tokens = probe_tokens(anatomy.vocab, anatomy.context, model.device)
    trace = model.trace(tokens, capture=[read, written], logits=None)
    found = probed(name, codec, trace[read], trace[written], read, written)
    require_free(found, model.codecs)
    return found


def require_name(name: str) -> None:
    """Refuse a malformed name.

    Raises:
        ConfigError: If it is one.
    """
    if not isinstance(name, str) or not is_codec_name(name):
        raise ConfigError(
            f"name={name!r}: a codec's name has letters, digits, _ and - and starts with a letter "
            "or digit."
        )


def place(model: Model, given: str | Site, *, write: bool) -> Site:
    """Return one place that can be read, and written where that is asked for."""
    site = at(given)
    if site != site.whole():
        raise SiteError(f"{site}: a codec is attached to a whole site; leave the selectors out.")
    if codec_of(site.name):
        raise SiteError(f"{site}: a codec cannot be attached to what another codec gives.")
    if site.name.startswith("module:"):
        raise SiteError(f"{site}: a codec is attached to a named site such as blocks.3.mlp.out.")
    places = model.catalog.resolve(site)
    if len(places) != 1:
        raise SiteError(
            f"{site} means {len(places)} places; name one block, as in blocks.0.{site.name}. A "
            "codec for each block may be attached under the same name."
        )
    if write:
        try:
            model.catalog.resolve(site, write=True)
        except SiteWriteError as error:
            raise SiteWriteError(f"{error} A codec's site is written, too.") from None
    if site.axes[:2] != ("batch", "pos"):
        raise SiteError(f"{site} has axes {', '.join(site.axes)}; a codec needs batch, pos, width.")
    layer = places[0][1]
    return Site(site.name, None if layer is None else (layer,))


def order_of(site: Site) -> tuple[int, int]:
    """Return where a site lies in the forward pass."""
    if isinstance(site.layer, tuple):
        return site.layer[0], BLOCK_ORDER.index(site.name)
    before = site.name.startswith("embed")
    return (-1 if before else 10**9), list(MODEL_SITES).index(site.name)


def require_free(new: Attachment, others: Iterable[Attachment]) -> None:
    """Refuse a codec whose latents or errors would have the name of another's.

    Raises:
        ConfigError: If they would.
    """
    for other in others:
        if new.name == other.name and (new.at == other.at or set(new.writes) & set(other.writes)):
            raise ConfigError(
                f"The name {new.name!r} is taken at {other.at}. Give another one, or detach that "
                f"codec first: model.detach({new.name!r})."
            )


def named(name: str, codecs: Iterable[Attachment]) -> tuple[Attachment, ...]:
    """Return the codecs attached under a name.

    Raises:
        ConfigError: If there is none.
    """
    known = tuple(codecs)
    found = tuple(one for one in known if one.name == name)
    if not found:
        near = nearest(name, sorted({one.name for one in known}))
        raise ConfigError(f"No codec is attached under the name {name!r}{near}.")
    return found


def fingerprints(codecs: Iterable[Attachment]) -> dict[str, str]:
    """Return the fingerprint of codecs by the site of their latents, for provenance."""
    return {str(one.latents): one.fingerprint for one in codecs}


def probed(
    name: str, codec: Codec, value: torch.Tensor, wanted: torch.Tensor, read: Site, written: Site
) -> Attachment:
    """Run the codec on recorded values of the sites and check what it gives.

    Raises:
        ConfigError: If it cannot compute there, or a position's latents depend on others.
        ShapeError: If widths do not fit, or it gives NaN.
    """
    dtype = _fitting(name, codec, value, wanted, read, written)
    draft = Attachment(name, codec, read, written, dtype, False, "")
    places = tuple(value.shape[:2])
    try:
        with torch.no_grad():
            latents = draft.encode(value)
            _check(name, "latents", latents, (*places, codec.d_sae))
            mixed = _mixes(draft, value, latents)
            past = draft.bypass(value)
            _check(name, "decoded latents", draft.decode(latents), (*places, codec.d_out))
            affine = _adds_up(draft, latents)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"{name} failed on values of {read} ({str(value.dtype).removeprefix('torch.')} on "
            f"{value.device}, given as {str(dtype).removeprefix('torch.')}): {error}"
        ) from error
    if past is not None:
        _check(name, "bypass", past, (*places, codec.d_out))
    if mixed:
        raise ConfigError(
            f"{name}: the latents of a position change with the other positions beside it (as in a "
            "codec left in training mode). Call codec.eval(), or attach one that encodes each "
            "position alone."
        )
    return replace(draft, affine=affine, fingerprint=_hash(codec, latents))


def _fitting(
    name: str, codec: Codec, value: torch.Tensor, wanted: torch.Tensor, read: Site, written: Site
) -> torch.dtype:
    """Return the type the codec computes in; refuse one of another width or on another device."""
    width, out = value.flatten(2).shape[-1], wanted.flatten(2).shape[-1]
    if codec.d_in != width:
        raise ShapeError(f"{name} reads {codec.d_in} numbers (d_in), but {read} has {width}.")
    if codec.d_out != out:
        also = "" if read != written else " A transcoder needs to=, the site it writes."
        raise ShapeError(
            f"{name} writes {codec.d_out} numbers (d_out), but {written} has {out}.{also}"
        )
    dtype, device = _computes_in(codec)
    if device is not None and device != value.device:
        raise ConfigError(
            f"{name} lies on {device} and the model's values on {value.device}. Move the codec: "
            f"codec.to({str(value.device)!r})."
        )
    return dtype


def _check(name: str, what: str, value: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ShapeError(f"{name}: {what} have shape {tuple(value.shape)}; expected {shape}.")
    if not bool(torch.isfinite(value).all()):
        raise ShapeError(f"{name}: {what} hold NaN or infinity.")


def _mixes(draft: Attachment, value: torch.Tensor, latents: torch.Tensor) -> bool:
    """Return whether many positions have other latents when each is encoded alone.

    A few may: of two nearly equal latents rounding can choose the other one.
    """
    slack = max(SAME, 8 * torch.finfo(draft.dtype).eps)
    flat, given = value.flatten(0, 1), latents.flatten(0, 1)
    places = range(0, len(flat), max(1, len(flat) // ALONE))
    wrong = [
        relative_error(draft.encode(flat[n].reshape(1, 1, *value.shape[2:]))[0, 0], given[n])
        > slack
        for n in places
    ]
    return 4 * sum(wrong) > len(wrong)


def _computes_in(codec: Codec) -> tuple[torch.dtype, torch.device | None]:
    """Return the type a codec computes in, and where it lies if it says so."""
    if isinstance(codec, nn.Module):
        floating = [p for p in codec.parameters() if p.is_floating_point()]
        if floating:
            return floating[0].dtype, floating[0].device
    said = getattr(codec, "dtype", None)
    return (said if isinstance(said, torch.dtype) else torch.float32), None


def _adds_up(found: Attachment, latents: torch.Tensor) -> bool:
    """Return whether ``decode(a + b) + decode(0) = decode(a) + decode(b)`` within rounding."""
    generator = torch.Generator().manual_seed(0)
    size = latents.detach().abs().max().clamp(min=1.0)
    shape = (2, latents.shape[-1])
    one, other = (torch.rand(shape, generator=generator).to(latents) * size for _ in range(2))
    both = found.decode(one + other) + found.decode(torch.zeros_like(one))
    slack = max(SAME, 8 * torch.finfo(found.dtype).eps)
    return relative_error(both, found.decode(one) + found.decode(other)) <= slack


def _hash(codec: Codec, latents: torch.Tensor) -> str:
    """Return a hash of a codec's weights and settings, or of what it gives for the probe."""
    if not isinstance(codec, nn.Module):
        rounded = (latents.double() / latents.abs().max().clamp(min=1e-6)).round(decimals=3)
        return hashlib.sha256(rounded.float().cpu().numpy().tobytes()).hexdigest()
    plain = {
        key: value
        for key, value in sorted(vars(codec).items())
        if not key.startswith("_") and (isinstance(value, int | float | str) or is_dataclass(value))
    }
    described = f"{type(codec).__qualname__} {plain!r} {fingerprint(codec)}"
    return hashlib.sha256(described.encode()).hexdigest()
