"""Which sites a model has, which can be written, and why others are absent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from microtome.errors import ModelSupportError, SiteAbsentError, SiteError, SiteWriteError, nearest
from microtome.models.anatomy import Anatomy, BlockAnatomy
from microtome.tracing.sites import Site
from microtome.tracing.vocabulary import BLOCK_SITES, MODEL_SITES, axes_of, codec_of, is_error

if TYPE_CHECKING:
    from microtome.tracing.attachments import Attachment

READ_ONLY = frozenset(
    {
        "attn.norm.scale",
        "attn.post_norm.scale",
        "mlp.norm.scale",
        "mlp.post_norm.scale",
        "final.norm.scale",
        "attn.sink",
        "mlp.router",
    }
)
"""Sites that are computed beside the model, or dropped by it, and cannot be written."""

WRITE_ONLY = frozenset({"attn.in.q", "attn.in.k", "attn.in.v"})
"""The ports of a circuit's edges: written, not captured."""


@dataclass(frozen=True)
class SiteInfo:
    """One site of a model.

    Attributes:
        name: Full name, ``blocks.3.attn.z``.
        axes: Names of the axes of its value.
        readable: Whether it can be captured.
        writable: Whether interventions can change it.
        reason: Why it is absent or only one of the two; empty otherwise.
    """

    name: str
    axes: tuple[str, ...]
    readable: bool
    writable: bool
    reason: str = ""

    @property
    def present(self) -> bool:
        """Whether the site can be used at all."""
        return self.readable or self.writable


@dataclass(frozen=True, eq=False)
class Catalog:
    """The sites of one model.

    Attributes:
        anatomy: Its anatomy, None where it is not a transformer.
        module: The model, for ``module:`` sites.
        codecs: Codecs attached to it.
    """

    anatomy: Anatomy | None
    module: nn.Module
    codecs: tuple[Attachment, ...] = ()

    def sites(self) -> tuple[SiteInfo, ...]:
        """Return every site of the vocabulary, block by block, present or absent."""
        if self.anatomy is None:
            return ()
        names: list[tuple[str, int | None]] = [("embed.token", None), ("embed.pos", None)]
        for layer in range(self.anatomy.n_layers):
            names += [(name, layer) for name in BLOCK_SITES]
        names += [(name, None) for name in ("final.norm", "final.norm.scale", "logits")]
        found = []
        for name, at_layer in names:
            full = name if at_layer is None else f"blocks.{at_layer}.{name}"
            found.append(self.info(name, at_layer))
            found += [self._codec_info(n) for n in self.codec_sites() if n.split("/")[0] == full]
        return tuple(found)

    def codec_sites(self) -> dict[str, Attachment]:
        """Return the codec of every site of latents or an error, by the site's full name."""
        return dict(self._codec_names())

    def _codec_names(self) -> Iterator[tuple[str, Attachment]]:
        for one in self.codecs:
            yield str(one.latents), one
            for error in one.errors:
                yield str(error), one

    def info(self, name: str, layer: int | None = None) -> SiteInfo:
        """Return what is known of one site."""
        anatomy = self._anatomy(name)
        if codec_of(name):
            return self._codec_info(name if layer is None else f"blocks.{layer}.{name}")
        if layer is None:
            reason = model_reason(anatomy, name)
            full, axes = name, MODEL_SITES[name]
        else:
            reason = block_reason(anatomy.blocks[layer], name)
            full, axes = f"blocks.{layer}.{name}", BLOCK_SITES[name]
        if reason:
            return SiteInfo(full, axes, False, False, reason)
        if name in READ_ONLY:
            why = {
                "attn.sink": "dropped behind the softmax",
                "mlp.router": "what the router returns first; the choice of experts is made "
                "beside it",
            }.get(name, "computed from the norm's input")
            return SiteInfo(full, axes, True, False, f"{why}; read only")
        if name in WRITE_ONLY:
            return SiteInfo(full, axes, False, True, "a port: write only")
        return SiteInfo(full, axes, True, True)

    def resolve(self, site: Site, *, write: bool = False) -> list[tuple[str, int | None]]:
        """Return name and layer of every place that a site means.

        Args:
            site: A site; without a layer it means every block that has it.
            write: Whether it is going to be written rather than read.

        Raises:
            SiteAbsentError: If the model does not have it; the message says why.
            SiteWriteError: If it can be read but not written.
            SiteError: If a ``module:`` path does not exist, or no such codec is attached.
        """
        if codec_of(site.name):
            return self._allowed(self._resolve_codec(site), site, write)
        if site.name.startswith("module:"):
            self._check_path(site)
            return [(site.name, None)]
        if not site.in_block:
            self._require(self.info(site.name), write)
            return [(site.name, None)]
        layers = site.layers(self._anatomy(site.name).n_layers)
        infos = [self.info(site.name, layer) for layer in layers]
        if site.layer is None and any(i.readable or (write and i.writable) for i in infos):
            infos = [i for i in infos if (i.writable if write else i.readable)] or infos
        for info in infos:
            self._require(info, write)
        return [(i.name, int(i.name.split(".")[1])) for i in infos]

    def _codec_info(self, full: str) -> SiteInfo:
        name = full.split(".", 2)[2] if full.startswith("blocks.") else full
        one = self.codec_sites().get(full)
        if one is None:
            return SiteInfo(full, axes_of(name), False, False, "no such codec is attached")
        early = [site for site in one.writes if not one.in_time(site)]
        if full in [str(one.error_at(site)) for site in early]:
            why = f"latents of {one.name} are known at {one.at}, behind it; read only"
            return SiteInfo(full, axes_of(name), True, False, why)
        return SiteInfo(full, axes_of(name), True, True)

    def _allowed(
        self, places: list[tuple[str, int | None]], site: Site, write: bool
    ) -> list[tuple[str, int | None]]:
        """Leave out errors that can only be read where all of a name are to be written."""
        infos = [self._codec_info(name) for name, _ in places]
        if write and site.layer is None and any(info.writable for info in infos):
            return [one for one, info in zip(places, infos, strict=True) if info.writable]
        for info in infos:
            self._require(info, write)
        return places

    def _resolve_codec(self, site: Site) -> list[tuple[str, int | None]]:
        layers: list[int | None] = [None]
        if site.in_block:
            layers = list(site.layers(self._anatomy(site.name).n_layers))
        names = [site.name if n is None else f"blocks.{n}.{site.name}" for n in layers]
        known = self.codec_sites()
        present = [(name, n) for name, n in zip(names, layers, strict=True) if name in known]
        if present and (site.layer is None or len(present) == len(names)):
            return present
        missing = next((n for n in names if n not in known), site.name)
        wanted = missing if len(names) == 1 or site.layer is not None else site.name
        codec = codec_of(site.name)
        of_it = [n for n, one in known.items() if one.name == codec]
        alike = [n for n in of_it if is_error(n) == is_error(site.name)] or of_it
        near = f"; that of {codec} is {' or '.join(alike[:3])}" if alike else nearest(wanted, known)
        if not known:
            near = (
                "; nothing is attached to this model. attach returns a new one: "
                "model = model.attach(NAME, codec, at=SITE)"
            )
        raise SiteError(f"No codec has the site {wanted}{near}.")

    def _anatomy(self, name: str) -> Anatomy:
        if self.anatomy is None:
            raise SiteAbsentError(
                f"{name!r}: {type(self.module).__name__} is not opened as a transformer, so it has "
                "only module:PATH:in and module:PATH:out sites."
            )
        return self.anatomy

    def _require(self, info: SiteInfo, write: bool) -> None:
        if info.writable if write else info.readable:
            return
        what = "written" if write else "read"
        near = (
            "" if info.reason else nearest(info.name, [s.name for s in self.sites() if s.present])
        )
        error = SiteWriteError if write and info.readable else SiteAbsentError
        raise error(f"{info.name} cannot be {what}: {info.reason}{near}.")

    def _check_path(self, site: Site) -> None:
        path = site.name.split(":")[1]
        try:
            self.module.get_submodule(path)
        except AttributeError:
            known = [name for name, _ in self.module.named_modules() if name]
            raise SiteError(
                f"No module {path!r} in {type(self.module).__name__}{nearest(path, known)}."
            ) from None


def model_reason(anatomy: Anatomy, name: str) -> str:
    """Return why a site outside the blocks is absent, or an empty text."""
    if name in anatomy.reasons:
        return anatomy.reasons[name]
    if name == "embed.pos" and anatomy.embed_pos is None:
        return "the model has no learned position embedding"
    if name == "embed.token" and anatomy.embed_token is None:
        return "the token embedding was not found"
    if name.startswith("final.norm") and anatomy.final_norm is None:
        return "no norm reads the last residual stream"
    return ""


def block_reason(block: BlockAnatomy, name: str) -> str:
    """Return why a site of a block is absent, or an empty text."""
    reasons = block.reasons
    if "*" in reasons:
        return reasons["*"]
    if name in reasons:
        return reasons[name]
    if name == "resid_mid":
        return "" if block.mid is not None else "there is no stream between attention and MLP"
    if name.endswith(".scale"):
        kind = name.removesuffix(".scale")
        return "" if kind in block.norms else "the block has no norm there"
    if name.startswith("attn."):
        return _attention_reason(block, name)
    if name.startswith("mlp."):
        return _mlp_reason(block, name)
    return ""


def _attention_reason(block: BlockAnatomy, name: str) -> str:
    attention = block.attention
    if attention is None:
        return block.reasons.get("attn", "this block has no attention")
    if name == "attn.out":
        return "" if attention.added is not None else "what attention adds is no module's output"
    if name in ("attn.in.q", "attn.in.k", "attn.in.v"):
        found = name[-1] in attention.projections
        return "" if found else "the columns of this head's projection were not found"
    if name == "attn.z":
        found = attention.dispatches or attention.out_proj is not None
        return "" if found else "the output projection was not found"
    if name == "attn.result":
        if attention.heads_add_up:
            return ""
        return "the heads' writes are normed or gated before they are added, so they do not add up"
    if name in ("attn.q", "attn.k", "attn.v") and not attention.dispatches:
        return "the family computes attention inside its module, without transformers' registry"
    if name == "attn.sink":
        return "" if attention.sink else "the attention has no sink"
    if name in ("attn.scores", "attn.pattern"):
        return "" if attention.softmax else block.reasons.get("softmax", "no softmax was seen")
    return ""


def _mlp_reason(block: BlockAnatomy, name: str) -> str:
    mlp = block.mlp
    if mlp is None:
        return block.reasons.get("mlp", "this block has no MLP")
    missing = {
        "mlp.in": (mlp.input is None, "several projections of the block read it separately"),
        "mlp.pre": (mlp.up is None, "no projection to its neurons was found"),
        "mlp.gate": (mlp.gate is None, "the MLP is not gated"),
        "mlp.act": (mlp.down is None, "no projection from its neurons was found"),
        "mlp.out": (mlp.added is None, "what the MLP adds is no module's output"),
        "mlp.router": (mlp.router is None, "the MLP has no router of its own"),
    }
    absent, why = missing[name]
    return why if absent else ""


def require_anatomy(anatomy: Anatomy | None, what: str) -> Anatomy:
    """Return the anatomy, or refuse with what needs it.

    Raises:
        ModelSupportError: If the model was not opened as a transformer.
    """
    if anatomy is None:
        raise ModelSupportError(f"{what} needs a transformer; this module has only module: sites.")
    return anatomy


def require_sums(block: BlockAnatomy, method: str, *, instead: str = "") -> None:
    """Refuse a block whose parts do not write to one stream as they are.

    Args:
        block: The block.
        method: What needs that.
        instead: What to use instead.

    Raises:
        ModelSupportError: If they do not.
    """
    adds_up = block.attention is None or block.attention.heads_add_up
    if block.placement not in ("sequential", "parallel") or not adds_up:
        raise ModelSupportError(
            f"{block.path}: what its parts write is not added to the stream as it is (a norm "
            f"behind them, or no attention), and {method} needs that{instead and '; ' + instead}."
        )
