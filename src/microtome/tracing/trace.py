"""A Trace: what one forward pass left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from microtome.errors import PairError, SiteError, nearest
from microtome.tracing.sites import Site, at
from microtome.tracing.vocabulary import axes_of

if TYPE_CHECKING:
    import xarray as xr

    from microtome.tracing.call import Captured


class Trace:
    """What one forward pass left: tokens, logits and captured values.

    Behaves like a read-only mapping from sites to tensors. Values are in the model's type and on
    its device unless the capture said otherwise; rows shorter than the batch are padded on the
    right.

    Attributes:
        tokens: Token ids ``[batch, pos]``, right-padded.
        lengths: Tokens of each row ``[batch]``.
        logits: ``[batch, pos, vocab]`` (one position with ``logits="last"``), None if not asked.
        provenance: What the trace was made with.
    """

    def __init__(
        self,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        logits: torch.Tensor | None,
        captured: dict[str, Captured],
        provenance: dict[str, Any],
    ) -> None:
        self.tokens = tokens
        self.lengths = lengths
        self.logits = logits
        self.provenance = provenance
        self._captured = captured

    @property
    def sites(self) -> tuple[str, ...]:
        """Text forms of the captured sites, in the order they were passed."""
        return tuple(self._captured)

    @property
    def mask(self) -> torch.Tensor:
        """Boolean mask ``[batch, pos]``, true at real tokens."""
        column = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return column.unsqueeze(0) < self.lengths.to(self.tokens.device).unsqueeze(1)

    def __contains__(self, site: object) -> bool:
        return isinstance(site, str | Site) and str(site) in self._captured

    def __getitem__(self, site: str | Site) -> torch.Tensor:
        """Return the value captured at a site; heads, neurons and positions may be selected.

        Raises:
            SiteError: If it was not captured, or means several blocks (use :meth:`stack`).
        """
        wanted = at(site)
        label = str(wanted)
        if label in self._captured:
            return self._captured[label].value()
        whole = str(wanted.whole())
        if whole in self._captured:
            return self.part(wanted, self._captured[whole].value())
        inside = [s for s in self._captured if s.split(".", 2)[-1] == wanted.name]
        if wanted.in_block and wanted.layer is None and inside:
            raise SiteError(
                f"{wanted.name!r} was captured in {len(inside)} blocks; use "
                f"trace.stack({wanted.name!r})."
            )
        raise SiteError(
            f"{label} was not captured{nearest(label, self._captured)}. Add it to capture=[...]."
        )

    def value(self, name: str) -> torch.Tensor:
        """Return the whole value of a site by its full name.

        Raises:
            SiteError: If it was not captured whole.
        """
        if name not in self._captured:
            raise SiteError(
                f"The source trace did not capture {name}{nearest(name, self._captured)}."
            )
        return self._captured[name].value()

    def mean_of(self, name: str, *, by_position: bool = False) -> torch.Tensor:
        """Return the mean of a site over the trace's real positions, keeping all axes.

        Args:
            name: Full name of the site.
            by_position: Average over rows only, at each position that every row has.

        Raises:
            SiteError: If the site has no position axis or was not captured.
        """
        value = self.value(name)
        axes = self.axes(name)
        if "pos" not in axes:
            raise SiteError(
                f"{name} has axes {', '.join(axes)}; a mean over positions needs a pos axis."
            )
        mask = self.mask.to(value.device)
        weight = mask.reshape(*mask.shape, *([1] * (value.ndim - 2))).to(value.dtype)
        total, count = (value * weight), weight
        if by_position:
            return total.sum(0, keepdim=True) / count.sum(0, keepdim=True).clamp(min=1)
        return total.sum((0, 1), keepdim=True) / count.sum((0, 1), keepdim=True)

    def axes(self, site: str | Site) -> tuple[str, ...]:
        """Return the names of the axes of a captured value."""
        wanted = at(site)
        known = axes_of(wanted.name)
        if known:
            return known
        return ("batch", *(f"dim{i}" for i in range(1, self[wanted].ndim)))

    def stack(self, name: str) -> torch.Tensor:
        """Return a site of every block it was captured in, ``[layer, ...]``.

        Raises:
            SiteError: If it was captured nowhere.
        """
        found = [s for s in self._captured if at(s).name == name and at(s) == at(s).whole()]
        if not found:
            raise SiteError(
                f"{name!r} was not captured{nearest(name, {at(s).name for s in self._captured})}."
            )
        return torch.stack([self._captured[s].value() for s in found])

    def last(self, value: torch.Tensor | None = None) -> torch.Tensor:
        """Return a value, by default the logits, at each row's last real position ``[batch, ...]``.

        Raises:
            SiteError: If there are no logits.
            PairError: If the value has other rows than the trace.
        """
        chosen = self.logits if value is None else value
        if chosen is None:
            raise SiteError("The trace holds no logits; call trace(..., logits='all').")
        if chosen.shape[0] != len(self.lengths):
            raise PairError(f"The value has {chosen.shape[0]} rows, the trace {len(self.lengths)}.")
        if chosen.shape[1] == 1:
            return chosen[:, 0]
        rows = torch.arange(chosen.shape[0], device=chosen.device)
        return chosen[rows, self.lengths.to(chosen.device) - 1]

    def to_xarray(self, site: str | Site) -> xr.DataArray:
        """Return a captured value as float32 on the CPU with named axes.

        Token ids are a coordinate that is no index; positions are integers.
        """
        import xarray as xr

        value = self[site].detach().float().cpu().numpy()
        axes = self.axes(site)
        array = xr.DataArray(value, dims=axes[: value.ndim], name=str(at(site)))
        if "pos" in array.dims and array.sizes["pos"] == self.tokens.shape[1]:
            array = array.assign_coords(pos=range(array.sizes["pos"]))
            array = array.assign_coords(token=(("batch", "pos"), self.tokens.cpu().numpy()))
        return array

    def save(self, path: str | Path) -> Path:
        """Write tokens, logits and captured values to a safetensors file; return its path."""
        from microtome.store.arrays import save_arrays

        arrays: dict[str, Any] = {"tokens": self.tokens, "lengths": self.lengths}
        if self.logits is not None:
            arrays["logits"] = self.logits
        arrays.update({name: kept.value() for name, kept in self._captured.items()})
        target = Path(path)
        save_arrays(target, arrays, metadata={"schema": "microtome.trace/1"})
        return target

    def kept(self) -> dict[str, Captured]:
        """Return the captured tensors as the model produced them, by text form of the site."""
        return dict(self._captured)

    def part(self, site: Site, value: torch.Tensor) -> torch.Tensor:
        """Return the part that a site's selectors mean of a value shaped like the whole site."""
        if site == site.whole():
            return value
        from microtome.tracing.call import Point, selected
        from microtome.tracing.positions import of_batch

        width = self.tokens.shape[1] if self.tokens.ndim > 1 else 1
        positions = of_batch(self.lengths.tolist(), width)
        return selected(value, site, Point(str(site), site.name, None), positions)

    def __repr__(self) -> str:
        shape = " x ".join(str(size) for size in self.tokens.shape)
        return f"Trace(input {shape}, {len(self._captured)} sites)"
