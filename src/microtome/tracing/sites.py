"""Sites: named places in the forward pass, as values with a text form.

    blocks.3.attn.z[head=5][pos=-1]      blocks.{2,5}.mlp.out      blocks.*.resid_post
    resid_post                           embed.token               module:net.2:out
    blocks.3.resid_post/NAME[latent=5]   blocks.3.resid_post/NAME.error

A site without ``blocks.`` that belongs to a block means every block.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from microtome.errors import SelectorError, SiteError, UsageError, nearest
from microtome.tracing.indices import Index, as_index, index_text, parse_index, resolve_index
from microtome.tracing.vocabulary import (
    BLOCK_SITES,
    MODEL_SITES,
    axes_of,
    base_of,
    codec_of,
    in_block,
)

if TYPE_CHECKING:
    import torch

    from microtome.tracing.interventions import Intervention
    from microtome.tracing.trace import Trace

_SELECTORS = ("head", "neuron", "expert", "latent", "pos")


@dataclass(frozen=True)
class Site:
    """A named place in the forward pass, with selectors.

    Attributes:
        name: Name within a block (``"attn.z"``), of the model (``"embed.token"``) or
            ``"module:PATH:in"`` / ``"module:PATH:out"``; with ``/NAME`` or ``/NAME.error`` behind
            it, the latents or the error of a codec attached there.
        layer: Selected blocks, None for all of them (or outside the blocks).
        head: Selected heads.
        neuron: Selected neurons.
        expert: Selected experts.
        latent: Selected latents of an attached codec.
        pos: Selected positions, absolute; negative ones count from each row's own end.
        table: Positions for each row of a batch (-1 for none), instead of ``pos``.
    """

    name: str
    layer: Index | None = None
    head: Index | None = None
    neuron: Index | None = None
    expert: Index | None = None
    latent: Index | None = None
    pos: Index | None = None
    table: tuple[tuple[int, ...], ...] | None = None

    def __str__(self) -> str:
        text = self.name
        if self.in_block:
            text = f"blocks.{_layer_text(self.layer)}.{self.name}"
        for key in _SELECTORS:
            index = getattr(self, key)
            if index is not None:
                text += f"[{key}={index_text(index)}]"
        return text

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of the value, empty for ``module:`` sites."""
        return axes_of(self.name)

    @property
    def in_block(self) -> bool:
        """Whether the site belongs to a block."""
        return in_block(self.name)

    def layers(self, n_layers: int) -> tuple[int, ...]:
        """Return the blocks this site means in a model of ``n_layers`` blocks.

        Raises:
            SelectorError: If a layer is out of range.
        """
        if self.layer is None:
            return tuple(range(n_layers))
        return resolve_index(self.layer, n_layers, f"layer of {self}")

    def whole(self) -> Site:
        """Return the site without selectors other than that of its block."""
        return Site(self.name, self.layer)

    def at_positions(self, table: torch.Tensor | Sequence[Sequence[int]]) -> Site:
        """Return the site at positions given for each row of the batch.

        Args:
            table: ``[batch, k]`` absolute positions; -1 entries mean none.
        """
        rows = tuple(tuple(int(p) for p in row) for row in table)
        return replace(self, pos=None, table=rows)

    def patch(
        self,
        source: Trace | torch.Tensor,
        *,
        rows: Iterable[int] | None = None,
        source_rows: Iterable[int] | None = None,
    ) -> Intervention:
        """Replace the value by that of another trace, or by a tensor of the site's shape.

        Args:
            source: A trace that captured this site, or a tensor shaped like the whole site.
            rows: Rows of the batch to change; all by default.
            source_rows: Row of the source for each changed row; the same row by default.
        """
        return _made("patch", self, source, rows=rows, source_rows=source_rows)

    def zero(self, *, rows: Iterable[int] | None = None) -> Intervention:
        """Set the value to zero."""
        return _made("elementwise", self, "zero", None, rows=rows)

    def mean(
        self,
        over: Trace | torch.Tensor,
        *,
        by_position: bool = False,
        rows: Iterable[int] | None = None,
    ) -> Intervention:
        """Set the value to a mean, over the real positions of a trace or given as a tensor.

        Args:
            over: A trace that captured this site, or the mean itself.
            by_position: Average each position over the rows only.
            rows: Rows of the batch to change; all by default.
        """
        return _made("mean", self, over, by_position=by_position, rows=rows)

    def resample(
        self, source: Trace, *, seed: int = 0, rows: Iterable[int] | None = None
    ) -> Intervention:
        """Replace the value by that of randomly drawn other rows of a trace."""
        return _made("resample", self, source, seed=seed, rows=rows)

    def add(
        self, value: torch.Tensor | float, *, rows: Iterable[int] | None = None
    ) -> Intervention:
        """Add a value that broadcasts to the selected part of the site."""
        return _made("elementwise", self, "add", value, rows=rows)

    def scale(
        self, factor: torch.Tensor | float, *, rows: Iterable[int] | None = None
    ) -> Intervention:
        """Multiply by a factor that broadcasts to the selected part of the site."""
        return _made("elementwise", self, "scale", factor, rows=rows)

    def project_out(
        self, direction: torch.Tensor, *, rows: Iterable[int] | None = None
    ) -> Intervention:
        """Remove the component along a direction of the last axis."""
        return _made("elementwise", self, "project_out", direction, rows=rows)

    def set(
        self, value: torch.Tensor | float, *, rows: Iterable[int] | None = None
    ) -> Intervention:
        """Set the value to one that broadcasts to the selected part of the site."""
        return _made("elementwise", self, "set", value, rows=rows)

    def apply(
        self,
        function: Callable[[torch.Tensor], torch.Tensor],
        *,
        rows: Iterable[int] | None = None,
    ) -> Intervention:
        """Pass the selected value through a Python function that keeps its shape."""
        return _made("elementwise", self, "apply", function, rows=rows)


def _made(kind: str, *arguments: Any, **options: Any) -> Intervention:
    """Return an intervention; the module that builds them needs torch and imports this one."""
    module = importlib.import_module("microtome.tracing.interventions")
    intervention: Intervention = getattr(module, kind)(*arguments, **options)
    return intervention


def at(
    name: str | Site,
    *,
    layer: int | Sequence[int] | slice | None = None,
    head: int | Sequence[int] | slice | None = None,
    neuron: int | Sequence[int] | slice | None = None,
    expert: int | Sequence[int] | slice | None = None,
    latent: int | Sequence[int] | slice | None = None,
    pos: int | Sequence[int] | slice | None = None,
) -> Site:
    """Return a site by its name, its text form, or its name in TransformerLens.

    Args:
        name: ``"attn.z"``, ``"blocks.3.attn.z[head=5]"``, ``"blocks.3.attn.hook_z"``, ...
        layer: Blocks, where the name does not say.
        head: Heads; for k and v these are key/value heads.
        neuron: Neurons of an MLP.
        expert: Experts of a router.
        latent: Latents of an attached codec.
        pos: Absolute positions; negative ones count from each row's own end.

    Returns:
        The site. ``str(site)`` gives the text form back.

    Raises:
        SiteError: If the name is unknown.
        SelectorError: If a selector is malformed or given twice.

    Example:
        >>> import microtome as mt
        >>> str(mt.at("attn.z", layer=9, head=[6, 9], pos=-1))
        'blocks.9.attn.z[head=6,9][pos=-1]'
    """
    site = name if isinstance(name, Site) else parse(name)
    given = {
        "layer": layer, "head": head, "neuron": neuron, "expert": expert, "latent": latent,
        "pos": pos,
    }  # fmt: skip
    for key, value in given.items():
        if value is None:
            continue
        if getattr(site, key) is not None:
            raise SelectorError(
                f"{key} is given twice for {site}: in the text and as {key}={value!r}."
            )
        if key == "layer" and not site.in_block:
            raise SelectorError(
                f"{site} lies outside the blocks and takes no layer (got {value!r})."
            )
        site = replace(site, **{key: as_index(value, key)})  # type: ignore[arg-type]
    _check_selectors(site)
    return site


def sites_of(wanted: str | Site | Sequence[str | Site]) -> tuple[Site, ...]:
    """Return sites for a name, a site, or a sequence of either.

    Raises:
        UsageError: If it is anything else.
    """
    if not isinstance(wanted, Site | Iterable):
        raise UsageError(
            f"Sites are a name, a site or a list of them; got {type(wanted).__name__}. Give () for "
            "none."
        )
    items = [wanted] if isinstance(wanted, str | Site) else list(wanted)
    return tuple(at(item) for item in items)


def parse(text: str) -> Site:
    """Return the site that a text form means.

    Raises:
        SiteError: If the name is unknown.
        SelectorError: If a selector is malformed.
    """
    from microtome.tracing.aliases import translate

    if not isinstance(text, str) or not text.strip():
        raise SiteError(f"A site is a text such as 'blocks.3.attn.z'; got {text!r}.")
    bare, selectors = _split_selectors(text.strip())
    bare = translate(bare)
    layer: Index | None = None
    match = re.fullmatch(r"blocks\.([^.]+)\.(.+)", bare)
    if match is not None:
        layer, bare = _parse_layer(match.group(1), text), match.group(2)
        if base_of(bare) not in BLOCK_SITES:
            raise SiteError(f"No site {text!r}{nearest(base_of(bare), BLOCK_SITES)}.")
    elif bare.startswith("module:"):
        if not re.fullmatch(r"module:[^:]*:(in|out)", bare):
            raise SiteError(f"{text!r} is not of the form module:PATH:in or module:PATH:out.")
    elif base_of(bare) not in {**BLOCK_SITES, **MODEL_SITES}:
        known = [*BLOCK_SITES, *MODEL_SITES]
        raise SiteError(f"No site {text!r}{nearest(base_of(bare), known)}.")
    if "/" in bare and not bare.startswith("module:") and not codec_of(bare):
        raise SiteError(
            f"{text!r} is not of the form SITE/NAME (latents of an attached codec) or "
            "SITE/NAME.error, with letters, digits, _ and - in the name."
        )
    site = Site(bare, layer, **selectors)
    _check_selectors(site)
    return site


def _split_selectors(text: str) -> tuple[str, dict[str, Any]]:
    bare, _, rest = text.partition("[")
    selectors: dict[str, Any] = {}
    if not rest:
        return bare, selectors
    if not re.fullmatch(r"(\[[^\[\]]*\])+", "[" + rest):
        raise SelectorError(f"{text!r}: selectors look like [head=5] or [pos=4:9].")
    for part in re.findall(r"\[([^\[\]]*)\]", "[" + rest):
        key, _, value = part.partition("=")
        key = key.strip()
        if key not in _SELECTORS:
            raise SelectorError(f"{text!r}: unknown selector {key!r}{nearest(key, _SELECTORS)}.")
        if key in selectors:
            raise SelectorError(f"{text!r}: {key} is given twice.")
        selectors[key] = parse_index(value.strip(), text)
    return bare, selectors


def _parse_layer(value: str, text: str) -> Index | None:
    if value == "*":
        return None
    inner = value[1:-1] if value.startswith("{") and value.endswith("}") else value
    return parse_index(inner, text)


def _layer_text(index: Index | None) -> str:
    if index is None:
        return "*"
    text = index_text(index)
    return f"{{{text}}}" if "," in text else text


_ALLOWED = {
    "head": ("head", "kv_head"),
    "neuron": ("neuron",),
    "expert": ("expert",),
    "latent": ("latent",),
    "pos": ("pos", "query"),
}


def _check_selectors(site: Site) -> None:
    """Refuse selectors that the site's value has no axis for."""
    if not site.axes:
        return
    for key, axes in _ALLOWED.items():
        if getattr(site, key) is not None and not set(axes) & set(site.axes):
            raise SelectorError(
                f"{site.name} has axes {', '.join(site.axes)} and takes no [{key}=...] selector."
            )
