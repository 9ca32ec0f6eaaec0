"""Units: one number per position, read off a neuron, a head, or a direction of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core.seeds import rng
from microtome.errors import SelectorError, ShapeError, SiteError
from microtome.tracing.catalog import require_anatomy
from microtome.tracing.indices import Span
from microtome.tracing.sites import Site, at

if TYPE_CHECKING:
    from microtome.tracing.model import Model

_PARTS = ("head", "neuron", "expert", "latent")
_PART_OF = {
    "head": "head",
    "kv_head": "head",
    "neuron": "neuron",
    "expert": "expert",
    "latent": "latent",
}
_VECTORS = frozenset({"d_model", "d_head", "vocab"})


@dataclass(frozen=True, eq=False)
class Unit:
    """Something that is more or less active at each position.

    Attributes:
        site: One block's (or the model's) site with its selector: ``blocks.2.mlp.act[neuron=5]``,
            ``blocks.1.attn.z[head=3]``, ``blocks.3.resid_post``, or
            ``blocks.3.resid_post/NAME[latent=5]`` of an attached codec. On a ``module:`` site
            ``[neuron=k]`` is the last axis (for images the channel, axis 1).
        direction: A direction of the last axis, taken as it is; None for neurons, and for heads
            that are read by their Euclidean norm.
        offset: Added to the product with the direction (the bias of a latent's encoder).
    """

    site: Site
    direction: Float[Tensor, " dim"] | None = field(default=None, repr=False)
    offset: float = 0.0

    def __str__(self) -> str:
        return f"{self.site} along a direction" if self.direction is not None else str(self.site)

    @property
    def in_module(self) -> bool:
        """Whether the site is a ``module:`` site, whose axes have no names."""
        return self.site.name.startswith("module:")

    @property
    def captured(self) -> Site:
        """The site to capture in order to read the unit."""
        return self.site.whole() if self.in_module else self.site

    def read(self, value: Tensor) -> Float[Tensor, "batch pos"]:
        """Return the activation at each position from the value at :attr:`captured`.

        Raises:
            ShapeError: If the direction does not fit the site.
            SelectorError: If the neuron of a ``module:`` site is out of range.
        """
        if self.in_module and self.site.neuron is not None:
            return value[..., one(self.site, "neuron", value.shape[-1])]
        if self.site.axes[-1:] in (("neuron",), ("expert",), ("latent",)):
            return value[..., 0]
        vector = value[:, :, 0] if value.ndim == 4 else value
        if self.direction is None:
            norm: Tensor = torch.linalg.vector_norm(vector, dim=-1)
            return norm
        if vector.shape[-1:] != self.direction.shape:
            raise ShapeError(
                f"{self.site}: the direction has shape {tuple(self.direction.shape)}, the site's "
                f"last axis has {vector.shape[-1]} entries. Give one number for each."
            )
        return vector @ self.direction.to(vector) + self.offset


def unit(
    site: str | Site | Unit,
    *,
    direction: Tensor | Sequence[float] | None = None,
    offset: float = 0.0,
) -> Unit:
    """Return the unit that a site with a selector, or a site and a direction, stand for.

    A latent of a sparse autoencoder is a unit of the attached codec, or, before its nonlinearity,
    ``direction`` = its encoder's row and ``offset`` = its bias.

    Args:
        site: A site of one block that selects one neuron, expert, latent or head, or a stream.
        direction: For streams and heads; the activation is the product with it.
        offset: Added to that product.

    Raises:
        SelectorError: If the selectors do not mean exactly one unit, or select positions.
        ShapeError: If the direction is no axis of finite numbers.
        SiteError: If the site has no units.

    Example:
        >>> from microtome.attribution import unit
        >>> str(unit("blocks.2.mlp.act[neuron=5]"))
        'blocks.2.mlp.act[neuron=5]'
    """
    if isinstance(site, Unit):
        return site
    found = at(site)
    along = (
        None
        if direction is None
        else torch.as_tensor(direction, dtype=torch.float32).detach().cpu()
    )
    if along is not None and (along.ndim != 1 or not bool(torch.isfinite(along).all())):
        raise ShapeError(
            f"{found}: a direction is one axis of finite numbers, got shape {tuple(along.shape)}."
        )
    _check(found, along is not None)
    return Unit(found, along, float(offset))


def random_like(model: Model, like: Unit, *, seed: int) -> Unit:
    """Return another unit of the same kind at the same site, drawn at random.

    A neuron, expert or head read by its norm becomes another one; a direction becomes a Gaussian
    one of the same norm, without the offset.

    Raises:
        SelectorError: If the site has only the one unit.
    """
    stream = rng(seed, "random unit", str(like.site))
    if like.direction is not None:
        drawn = torch.tensor(stream.standard_normal(len(like.direction)), dtype=torch.float32)
        return Unit(like.site, drawn * (like.direction.norm() / drawn.norm()))
    part = next(p for p in _PARTS if getattr(like.site, p) is not None)
    value = model.trace([[0, 0]], capture=like.site.whole(), logits=None)[like.site.whole()]
    size = value.shape[2 if value.ndim == 4 else -1]
    others = [i for i in range(size) if i != one(like.site, part, size)]
    if not others:
        raise SelectorError(f"{like.site} is the only {part} there; no random one is left beside.")
    changes: dict[str, Any] = {part: (int(stream.choice(others)),)}
    return Unit(replace(like.site, **changes))


def driver(model: Model, of: Unit) -> Unit:
    """Return the unit to climb in order to raise another.

    A neuron's activation is flat where it is off, and GELU and SiLU rise towards zero on the wrong
    side; its pre-activation shows the way. Where the MLP is gated, and for all other units, it is
    the unit itself.
    """
    layer = of.site.layer
    if of.site.name != "mlp.act" or not isinstance(layer, tuple):
        return of
    block = layer[0] % require_anatomy(model.anatomy, "A neuron").n_layers
    if model.catalog.info("mlp.gate", block).readable:
        return of
    if not model.catalog.info("mlp.pre", block).readable:
        return of
    return Unit(replace(of.site, name="mlp.pre"))


def one(site: Site, part: str, size: int) -> int:
    """Return the only index that a selector means among ``size``.

    Raises:
        SelectorError: If it is out of range or not given.
    """
    index = getattr(site, part)
    number = index[0] if isinstance(index, tuple) else None
    if number is None or not -size <= number < size:
        raise SelectorError(f"{site}: {part} is out of range; there are {size} (0 to {size - 1}).")
    return int(number % size)


def _check(site: Site, directed: bool) -> None:
    """Require that a site and its selectors mean exactly one unit."""
    if site.pos is not None or site.table is not None:
        raise SelectorError(f"{site}: leave the position out; a unit is read at every position.")
    if site.in_block and not _is_one(site.layer):
        raise SelectorError(f"{site} means several blocks; name one, as in blocks.2.{site.name}.")
    axes = site.axes[2:]
    if site.axes and (site.axes[1] != "pos" or axes[-1] == "1"):
        raise SiteError(
            f"{site.name} has axes {', '.join(site.axes)} and no units; take mlp.act, attn.z or a "
            "residual stream."
        )
    for axis in axes:
        part = _PART_OF.get(axis)
        if part is not None and not _is_one(getattr(site, part)):
            raise SelectorError(f"{site} means several units; select one with [{part}=0].")
    vector = not axes or axes[-1] in _VECTORS
    chosen = site.head is not None or (not axes and _is_one(site.neuron))
    if directed and (not vector or site.neuron is not None):
        raise SelectorError(f"{site} is a single number; it takes no direction.")
    if not directed and vector and not chosen:
        raise SelectorError(f"{site} is a vector at each position; give direction=... to read it.")


def _vector(site: Site, direction: Tensor | Sequence[float]) -> Tensor:
    along = torch.as_tensor(direction, dtype=torch.float32).detach().cpu()
    if along.ndim != 1 or not bool(torch.isfinite(along).all()):
        raise ShapeError(
            f"{site}: a direction is one axis of finite numbers, got shape {tuple(along.shape)}."
        )
    return along


def _is_one(index: tuple[int, ...] | Span | None) -> bool:
    return isinstance(index, tuple) and len(index) == 1
