"""Turning what is wanted of a forward pass into hooks, and taking them off again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from microtome.errors import HookError, ShapeError, SiteError, UsageError
from microtome.models import hf
from microtome.models.probe import first_tensor
from microtome.tracing.attention import AttentionRouter, AttentionTap, ModuleSoftmax
from microtome.tracing.call import Call, Point
from microtome.tracing.catalog import Catalog
from microtome.tracing.interventions import Intervention
from microtome.tracing.joints import Joint
from microtome.tracing.layouts import Layout, Plain
from microtome.tracing.norms import norm_scale
from microtome.tracing.seams import Hook, block_hooks, through
from microtome.tracing.sites import Site
from microtome.tracing.splicing import Use
from microtome.tracing.vocabulary import codec_of, is_error

if TYPE_CHECKING:
    from microtome.models.anatomy import Anatomy
    from microtome.tracing.attachments import Attachment

ENTRY_SITES = frozenset(
    {"attn.q", "attn.k", "attn.v", "attn.z", "attn.scores", "attn.pattern", "attn.sink"}
)
"""Sites inside the attention function."""

ROW_SITES = frozenset({"attn.scores", "attn.pattern", "attn.sink"})


class Instrument:
    """The hooks that serve a set of captures and interventions on one model.

    Args:
        module: The model.
        catalog: Its sites.
        captures: Sites to keep.
        interventions: Changes, applied in this order at each site.
        grad: Whether scores and pattern are going to be differentiated.

    Raises:
        SiteError: If a site does not exist or cannot be read or written.
    """

    def __init__(
        self,
        module: nn.Module,
        catalog: Catalog,
        *,
        captures: Iterable[Site] = (),
        interventions: Iterable[Intervention] = (),
        grad: bool = False,
    ) -> None:
        self._module = module
        self._catalog = catalog
        self._grad = grad
        self.points: dict[str, Point] = {}
        self._uses: dict[str, Use] = {}
        self._joints: dict[str, Joint] = {}
        for intervention in listed(interventions):
            for point in self._points(intervention.site, write=True):
                point.interventions.append(intervention)
                use = self._use_of(point)
                if use is not None and (point is use.error or not use.attachment.two_sites):
                    # in one order with the changes of the site that the codec writes
                    self._at(use.attachment.to).interventions.append(intervention)
        for site in captures:
            for point in self._points(site, write=False):
                chosen = _in_layer(site, point)
                if chosen not in point.captures:
                    point.captures.append(chosen)
        self._join_codecs()
        self._call: Call | None = None

    def _points(self, site: Site, *, write: bool) -> list[Point]:
        codecs = self._catalog.codec_sites()
        found = []
        for name, layer in self._catalog.resolve(site, write=write):
            full = f"blocks.{layer}.{name.split('.', 2)[2]}" if layer is not None else name
            key = full.split(".", 2)[2] if layer is not None else name
            point = Point(full, key, layer)
            if full in codecs and codecs[full].joint:
                point = self._joint_point(codecs[full], full)
            elif full in codecs:
                use = self._use(codecs[full])
                point = use.error if is_error(key) else use.latents
            found.append(self.points.setdefault(full, point))
        return found

    def _use(self, attachment: Attachment) -> Use:
        """Return what is wanted of a codec, at first nothing."""
        key = str(attachment.latents)
        if key not in self._uses:
            latents, error = _point(attachment.latents), _point(attachment.error)
            self._uses[key] = Use(attachment, latents, error, self._grad)
        return self._uses[key]

    def _joint_point(self, attachment: Attachment, full: str) -> Point:
        """Return the point of latents or an error of a codec of several sites."""
        name = attachment.name
        if name not in self._joints:
            parts = tuple(p for p in self._catalog.codecs if p.name == name and p.joint)
            self._joints[name] = Joint(name, parts, {}, {}, self._grad)
        joint = self._joints[name]
        for part in joint.parts:
            if str(part.latents) == full:
                return joint.latents.setdefault(part.latents, _point(part.latents))
            for site in part.writes:
                if str(part.error_at(site)) == full:
                    if self._grad and not part.in_time(site):
                        raise SiteError(
                            f"{full} cannot be differentiated: latents of {name} are known at "
                            f"{part.at}, behind it, so nothing can be changed there by them."
                        )
                    return joint.errors.setdefault(site, _point(part.error_at(site)))
        raise SiteError(f"{full} is no site of {name}.")

    def _use_of(self, point: Point) -> Use | None:
        found = (use for use in self._uses.values() if point in (use.latents, use.error))
        return next(found, None)

    def _at(self, site: Site) -> Point:
        """Return the point of a site that a codec reads or writes."""
        return self.points.setdefault(str(site), _point(site))

    def _join_codecs(self) -> None:
        """Let the sites that codecs read and write serve them, too."""
        for use in self._uses.values():
            one = use.attachment
            if one.two_sites:
                self._at(one.at).sources.append(use)
            if not one.two_sites or use.writes or use.wants_error:
                self._at(one.to).targets.append(use)
        for joint in self._joints.values():
            for site in joint.sites():
                self._at(site).joints.append(joint)
        for point in self.points.values():
            _require_one_order(point)

    @contextlib.contextmanager
    def active(self, call: Call | None = None) -> Iterator[None]:
        """Put the hooks on the model; they are taken off on leaving, also after an error.

        Args:
            call: The pass to serve; :meth:`serve` sets it later otherwise.
        """
        self._call = call
        with contextlib.ExitStack() as stack:
            self._install(stack)
            try:
                yield
            finally:
                self._call = None

    def serve(self, call: Call | None) -> None:
        """Set the forward pass that the hooks serve from now on."""
        self._call = call

    def check(self, call: Call) -> None:
        """Require that every wanted site was passed exactly once.

        Raises:
            HookError: If a site was not passed, or more than once.
        """
        for name in self.points:
            times = call.passed[name]
            if times != 1:
                raise HookError(
                    f"{name} was passed {times} times in one forward pass; expected once. "
                    "The model skips or repeats this part for such input."
                )

    def _install(self, stack: contextlib.ExitStack) -> None:
        anatomy = self._catalog.anatomy
        hooks = self._hooks(anatomy)
        for hook in hooks:
            part = self._module.get_submodule(hook.path) if hook.path else self._module
            stack.callback(self._register(part, hook).remove)
        if anatomy is not None:
            self._install_attention(anatomy, stack)

    def _hooks(self, anatomy: Anatomy | None) -> list[Hook]:
        hooks: list[Hook] = []
        by_layer: dict[int, dict[str, Point]] = {}
        for point in self.points.values():
            if codec_of(point.key):
                # served by the hooks of the sites that the codec reads and writes
                continue
            if point.layer is not None:
                by_layer.setdefault(point.layer, {})[point.key] = point
            elif point.key.startswith("module:"):
                _, path, side = point.key.split(":")
                hooks.append(Hook(path, side, through(point, _AsIs())))
            elif anatomy is not None:
                hooks += _model_hooks(self._module, anatomy, point)
        for layer, points in by_layer.items():
            if anatomy is not None:
                hooks += block_hooks(self._module, anatomy.blocks[layer], layer, points)
        return hooks

    def _install_attention(self, anatomy: Anatomy, stack: contextlib.ExitStack) -> None:
        router = AttentionRouter()
        for layer, block in enumerate(anatomy.blocks):
            attention = block.attention
            points = {
                p.key: p for p in self.points.values() if p.layer == layer and p.key in ENTRY_SITES
            }
            if attention is None or not points:
                continue
            core = self._module.get_submodule(attention.path)
            tap = self._tap(points)
            if attention.dispatches:
                router.taps[id(core)] = tap
            elif ROW_SITES & points.keys():
                watcher = ModuleSoftmax(tap)
                stack.callback(core.register_forward_pre_hook(watcher.enter).remove)
                stack.callback(core.register_forward_hook(watcher.leave, always_call=True).remove)
        if router.taps:
            router.join(hf.current_handler())
            configs = hf.attention_configs(self._module)
            stack.enter_context(hf.attention_through(configs, router))

    def _tap(self, points: dict[str, Point]) -> AttentionTap:
        def passing(key: str, raw: torch.Tensor, layout: Layout) -> torch.Tensor:
            call = self._call
            return raw if call is None else call.through(points[key], raw, layout)

        rows = [p for key, p in points.items() if key in ROW_SITES]
        changed = any(p.interventions for p in rows) or (self._grad and bool(rows))
        return AttentionTap(passing, frozenset(points), changed)

    def _register(self, part: nn.Module, hook: Hook) -> Any:
        if hook.side == "in":
            return part.register_forward_pre_hook(self._before(hook), with_kwargs=True)
        return part.register_forward_hook(self._after(hook))

    def _before(self, hook: Hook) -> Any:
        def run(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self._call is None:
                return None
            return _replace_input(args, kwargs, lambda raw: self._serve(hook, raw))

        return run

    def _after(self, hook: Hook) -> Any:
        anatomy = self._catalog.anatomy
        overwritten = anatomy is not None and hook.path in anatomy.overwritten

        def serve(raw: torch.Tensor) -> torch.Tensor:
            new = self._serve(hook, raw)
            # the model goes on with a copy, so that what was captured keeps its values
            return new.clone() if overwritten else new

        def run(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
            return None if self._call is None else _replace_output(output, serve)

        return run

    def _serve(self, hook: Hook, raw: torch.Tensor) -> torch.Tensor:
        call = self._call
        return raw if call is None else hook.run(call, raw)


class _AsIs:
    """The layout of ``module:`` sites: the tensor itself."""

    def view(self, raw: torch.Tensor, batch: int) -> torch.Tensor:
        return raw

    def back(self, value: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        return value


def _point(site: Site) -> Point:
    """Return a point for a site that means one place."""
    return Point(str(site), site.name, site.layer[0] if isinstance(site.layer, tuple) else None)


def _require_one_order(point: Point) -> None:
    """Refuse two codecs that both change a site's value behind its own changes.

    Raises:
        SiteError: If there are two.
    """
    last = [joint.name for joint in point.joints if joint.changes_last(point.site)]
    others = [use.attachment.name for use in point.targets]
    if last and len(last + others) > 1:
        raise SiteError(
            f"{' and '.join(last + others)} are both wanted at {point.name}, where {last[0]}, "
            "which has several sites, acts last: there is no order between them. Use one at a time."
        )


def _in_layer(site: Site, point: Point) -> Site:
    """Return the site with its layer fixed to that of a point."""
    if point.layer is None:
        return site
    return replace(site, layer=(point.layer,))


def _model_hooks(module: nn.Module, anatomy: Anatomy, point: Point) -> list[Hook]:
    if point.key == "embed.token" and anatomy.embed_token is not None:
        return [Hook(anatomy.embed_token, "out", through(point))]
    if point.key == "embed.pos" and anatomy.embed_pos is not None:
        return [Hook(anatomy.embed_pos, "out", _batched(point))]
    if point.key == "final.norm" and anatomy.final_norm is not None:
        return [Hook(anatomy.final_norm, "out", through(point))]
    if point.key == "final.norm.scale" and anatomy.final_norm is not None:
        norm = module.get_submodule(anatomy.final_norm)
        return [Hook(anatomy.final_norm, "in", norm_scale(point, norm))]
    return [Hook("", "out", through(point))]


def _batched(point: Point) -> Any:
    """Pass a position embedding that may have one row for the whole batch."""

    def run(call: Call, raw: torch.Tensor) -> torch.Tensor:
        full = raw if raw.ndim == 3 else raw.unsqueeze(0)
        if full.shape[0] == 1 and call.positions.batch > 1:
            full = full.expand(call.positions.batch, -1, -1)
        changed = call.through(point, full, Plain())
        return raw if changed is full else changed

    return run


def _replace_input(args: tuple[Any, ...], kwargs: dict[str, Any], run: Any) -> Any:
    """Run on the first tensor among the arguments; return new arguments only where it changed."""
    for number, value in enumerate(args):
        if isinstance(value, torch.Tensor):
            new = run(value)
            return None if new is value else ((*args[:number], new, *args[number + 1 :]), kwargs)
    for key, value in kwargs.items():
        if isinstance(value, torch.Tensor):
            new = run(value)
            return None if new is value else (args, {**kwargs, key: new})
    raise ShapeError("The module received no tensor, so there is nothing to read or replace.")


def _replace_output(output: Any, run: Any) -> Any:
    """Run on the (first) tensor of an output; return a new output only where it changed."""
    if isinstance(output, torch.Tensor):
        new = run(output)
        return None if new is output else new
    logits = getattr(output, "logits", None)
    if isinstance(logits, torch.Tensor):
        new = run(logits)
        if new is not logits:
            output.logits = new
        return None
    value = first_tensor(output)
    if value is None:
        raise ShapeError(f"The module returned {type(output).__name__}, which holds no tensor.")
    new = run(value)
    if new is value:
        return None
    items = [new if item is value else item for item in output]
    make = getattr(type(output), "_make", type(output))
    return make(items)


def listed(interventions: Iterable[Intervention]) -> list[Intervention]:
    """Return the interventions; refuse one that is not in a list, and what is none.

    Raises:
        UsageError: If anything else is given.
    """
    given = list(interventions) if isinstance(interventions, Iterable) else [interventions]
    wrong = [i for i in given if not isinstance(i, Intervention)]
    if wrong or isinstance(interventions, Intervention):
        raise UsageError(
            "interventions is a list such as [site.zero()]; got "
            f"{type(wrong[0] if wrong else interventions).__name__}."
        )
    return given
