"""Verification: what a model's sites and identities are worth, computed and never assumed.

Every site is read once and written; every identity of the anatomy is checked for its relative
error. "Not applicable" is neither pass nor fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from microtome.errors import MicrotomeError
from microtome.models.compare import tolerance
from microtome.models.discovery import plain_call, probe_tokens
from microtome.tracing.catalog import SiteInfo, require_anatomy
from microtome.tracing.identities import check_identities
from microtome.tracing.sites import at, sites_of
from microtome.tracing.writes import check_writes

if TYPE_CHECKING:
    import pandas as pd

    from microtome.tracing.model import Model
    from microtome.tracing.trace import Trace

Outcome = Literal["pass", "fail", "not applicable"]


@dataclass(frozen=True)
class Identity:
    """One numeric identity of a model.

    Attributes:
        name: What must hold.
        outcome: ``pass``, ``fail`` or ``not applicable``.
        error: Largest relative error, NaN where not applicable.
        bound: What the error may be at most.
        reason: Why it does not apply, or where it failed.
    """

    name: str
    outcome: Outcome
    error: float
    bound: float
    reason: str = ""


@dataclass(frozen=True)
class SiteCheck:
    """One site as it was found.

    Attributes:
        info: Its name, axes and whether it is present.
        shape: Shape of the captured value, empty where it cannot be read.
        read: Whether it was passed exactly once.
        written: Whether a write took, None where it is not writable.
        reason: Why it is absent, or what failed.
    """

    info: SiteInfo
    shape: tuple[int, ...]
    read: bool
    written: bool | None
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether everything that the site promises holds."""
        if not self.info.present:
            return True
        return (self.read or not self.info.readable) and self.written is not False


@dataclass(frozen=True, eq=False)
class Verification:
    """What verification found.

    Attributes:
        model: Name of the model.
        sites: Every site of the vocabulary.
        identities: Every identity.
    """

    model: str
    sites: tuple[SiteCheck, ...]
    identities: tuple[Identity, ...]

    @property
    def passed(self) -> bool:
        """Whether no site and no identity failed."""
        return not self.failures()

    def failures(self) -> tuple[str, ...]:
        """Return one line for everything that failed."""
        lines = [
            f"{i.name}: {i.error:.1e} > {i.bound:.0e} {i.reason}".strip()
            for i in self.identities
            if i.outcome == "fail"
        ]
        lines += [f"{s.info.name}: {s.reason}" for s in self.sites if not s.passed]
        return tuple(lines)

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each site: name, shape, readable, writable, reason."""
        import pandas as pd

        rows = [
            {
                "site": s.info.name,
                "axes": " ".join(s.info.axes),
                "shape": "x".join(str(n) for n in s.shape),
                "readable": s.info.readable and s.read,
                "writable": bool(s.info.writable and s.written),
                "reason": s.reason or s.info.reason,
            }
            for s in self.sites
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        present = sum(s.info.present for s in self.sites)
        head = f"{self.model}: {present} of {len(self.sites)} sites present, "
        head += "verified" if self.passed else f"{len(self.failures())} checks failed"
        lines = [
            f"  {i.outcome:14s} {i.error:9.1e}  {i.name}  {i.reason}".rstrip()
            for i in self.identities
        ]
        return "\n".join([head, *lines, *(f"  failed: {f}" for f in self.failures())])


def verify(model: Model) -> Verification:
    """Check every site and every identity of a model numerically.

    Args:
        model: A transformer.

    Returns:
        The verification; nothing is raised for what fails.

    Raises:
        ModelSupportError: If the model is not a transformer.
    """
    anatomy = require_anatomy(model.anatomy, "Verification")
    tokens = probe_tokens(anatomy.vocab, anatomy.context, model.device)
    infos = model.sites()
    readable = [i.name for i in infos if i.readable]
    with torch.no_grad():
        plain = model.module(tokens, **plain_call(model.module))
    whole, faults = _read_all(model, tokens, readable)
    writes = check_writes(model, tokens, [i.name for i in infos if i.writable])
    sites = tuple(_site(info, whole, faults, writes) for info in infos)
    identities = check_identities(model, tokens, plain, whole)
    return Verification(model.name, sites, identities)


def _read_all(
    model: Model, tokens: torch.Tensor, names: list[str]
) -> tuple[Trace | None, dict[str, str]]:
    """Capture all sites at once; where that fails, find the ones at fault one by one."""
    try:
        return model.trace(tokens, capture=names), {}
    except MicrotomeError:
        return _read_singly(model, tokens, names)


def _read_singly(
    model: Model, tokens: torch.Tensor, names: list[str]
) -> tuple[Trace | None, dict[str, str]]:
    """Capture every site alone, then all that can be captured; say why the others cannot."""
    faults: dict[str, str] = {}
    for name in names:
        try:
            model.trace(tokens, capture=name)
        except MicrotomeError as error:
            faults[name] = str(error)
    rest = [n for n in names if n not in faults]
    return (model.trace(tokens, capture=rest) if rest else None), faults


def _site(
    info: SiteInfo, whole: Trace | None, faults: dict[str, str], writes: dict[str, str]
) -> SiteCheck:
    if not info.present:
        return SiteCheck(info, (), False, None, info.reason)
    label = str(sites_of(info.name)[0])
    read = whole is not None and label in whole and info.name not in faults
    shape = tuple(whole[label].shape) if read and whole is not None else ()
    wrong = [faults.get(info.name, ""), writes.get(info.name, "")]
    written = (info.name not in writes) if info.writable else None
    if read and len(shape) != len(at(info.name).axes):
        wrong.append(f"the value has shape {shape} but axes {' '.join(info.axes)}")
        read = False
    return SiteCheck(info, shape, read, written, "; ".join(w for w in wrong if w))


def limit(dtype: torch.dtype) -> float:
    """Return the bound on relative errors: 1e-5 in float32, wider in shorter types."""
    return 1e-5 if dtype in (torch.float32, torch.float64) else tolerance(dtype)
