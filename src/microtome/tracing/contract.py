"""The contract of every family, checked on a tiny random model with every option active."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from microtome.core.progress import Progress, quiet
from microtome.models.families import build, family, names
from microtome.tracing.opening import load
from microtome.tracing.verification import Verification


@dataclass(frozen=True)
class FamilyRow:
    """How one family did.

    Attributes:
        family: Its name in the table of families.
        passed: Whether every check passed and the residual stream is seen in every block.
        reason: Why not; empty where it passed.
        sites: Sites present, and all sites of the vocabulary.
        options: Options set to an active value.
    """

    family: str
    passed: bool
    reason: str
    sites: str
    options: tuple[str, ...]


def verify_families(
    wanted: Iterable[str] | None = None, *, progress: Progress = quiet
) -> Iterator[FamilyRow]:
    """Verify tiny random models of transformers families, one after the other.

    Args:
        wanted: Names from the table of families; all by default.
        progress: Told after each family.

    Yields:
        One row for each family, also for those that fail.

    Raises:
        UnknownNameError: If a name is not in the table.
    """
    chosen = tuple(names() if wanted is None else (family(name).name for name in wanted))
    for number, name in enumerate(chosen):
        yield verify_family(name)
        progress.step(number + 1, len(chosen), name)


def verify_family(name: str) -> FamilyRow:
    """Verify the tiny random model of one family.

    Raises:
        UnknownNameError: If the name is not in the table.
    """
    options = tuple(family(name).options)
    try:
        found = load(build(name)).verify()
    except Exception as error:  # a family that breaks anywhere is listed, never hidden
        return FamilyRow(name, False, f"{type(error).__name__}: {error}"[:300], "0", options)
    present = sum(site.info.present for site in found.sites)
    reason = "; ".join(found.failures()[:3]) or _missing_stream(found)
    return FamilyRow(name, not reason, reason, f"{present} of {len(found.sites)}", options)


def _missing_stream(found: Verification) -> str:
    """Return why the residual stream is not seen in some block, or an empty text."""
    for site in found.sites:
        if site.info.name.endswith((".resid_pre", ".resid_post")) and not site.read:
            return f"{site.info.name}: {site.reason or site.info.reason}"
    return ""
