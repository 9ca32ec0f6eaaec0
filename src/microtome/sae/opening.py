"""What a coder is trained on, opened: a model that reads text, a folder of shards, or tensors."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from microtome.core.progress import Progress, quiet
from microtome.errors import EmptyDataError, SiteError, UsageError
from microtome.sae.activations import Activations, sites_named
from microtome.sae.coder import Origin
from microtome.sae.harvesting.documents import Text
from microtome.sae.harvesting.manifest import NAME
from microtome.sae.harvesting.places import resolve_sites
from microtome.sae.harvesting.running import harvest
from microtome.sae.harvesting.store import ActivationStore
from microtome.tracing.model import Model
from microtome.tracing.sites import Site

if TYPE_CHECKING:
    from collections.abc import Callable

Data = Model | Activations | Tensor | Mapping[str, Tensor] | str | Path
"""A model (with text), a store, the folder of one, or tensors ``[row, d]``, by site or alone."""

Places = str | Site | Sequence[str | Site]
"""One site or several."""

SHARDS = "activations"
"""Folder of the shards in the folder of a run."""

FEWEST = 2
"""Rows without which there is no variance to explain."""


@dataclass(frozen=True)
class Wanted:
    """Which sites a coder reads and writes, as they were asked for.

    Attributes:
        site: The one place an SAE reads and writes.
        sources: Places that are read.
        targets: Places that are written, the sources unless given.
    """

    site: str | Site | None = None
    sources: Places | None = None
    targets: Places | None = None

    def __post_init__(self) -> None:
        """Refuse two answers to one question."""
        if self.site is not None and (self.sources is not None or self.targets is not None):
            raise UsageError(
                f"site={self.site!s} is given beside sources or targets; an SAE has a site, other "
                "coders have sources and targets"
            )

    def names(
        self, resolve: Callable[[Places], tuple[str, ...]]
    ) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
        """Return the names of sources and of targets, each None where none were asked for.

        Raises:
            SiteError: ``site`` means several places.
        """
        asked = self.sources if self.site is None else self.site
        reads = None if asked is None else resolve(asked)
        if self.site is not None and reads is not None and len(reads) != 1:
            raise SiteError(
                f"site={self.site!s} means {len(reads)} places ({', '.join(reads[:3])}, ...); name "
                "one, as blocks.0.resid_post, or give sources= for a crosscoder over all of them"
            )
        return reads, reads if self.targets is None else resolve(self.targets)


@dataclass(frozen=True)
class Reading:
    """How a model reads text for training.

    Attributes:
        text: The text; see :func:`microtome.sae.harvest`, like ``tokens`` and ``context``.
        tokens: Tokens to read at most.
        context: Tokens of a row of input.
        shards: Where the activations are kept, in the run's folder unless given.
        run: Folder of the run; with neither, the activations are temporary.
    """

    text: Text | None = None
    tokens: int | None = None
    context: int | None = None
    shards: Path | None = None
    run: Path | None = None

    @property
    def place(self) -> Path | None:
        """Where the activations are kept, None for a temporary folder."""
        return self.shards or (self.run and self.run / SHARDS)

    def require_none(self) -> None:
        """Refuse settings of a model's reading where there is no model.

        Raises:
            UsageError: One is given.
        """
        names = ("text", "tokens", "context", "shards")
        given = [name for name in names if getattr(self, name) is not None]
        if given:
            raise UsageError(
                f"{' and '.join(given)} given without a model, whose reading they describe; give "
                "the model as the first argument, or leave them out: these activations are there "
                "already"
            )


@dataclass(frozen=True, eq=False)
class Opened:
    """Activations that are ready for training.

    Attributes:
        activations: The rows.
        sources: Names of the sites that are read.
        targets: Names of the sites that are written.
        origin: The model they are of, as far as it is known.
    """

    activations: Activations
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    origin: Origin


@contextlib.contextmanager
def opened(
    data: Data, wanted: Wanted, reading: Reading, *, progress: Progress = quiet
) -> Iterator[Opened]:
    """Open what a coder is trained on; temporary shards are there until the scope is left.

    A harvest that was begun in ``reading.place`` goes on; one that is finished is read.

    Raises:
        UsageError: The data are of no known kind, or do not go with the settings.
        SiteError: A site of the model is unknown, or ``site`` means several.
        EmptyDataError: There is one row at most.
        MicrotomeError: The harvest failed; see :func:`microtome.sae.harvest`.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(data, Model):
            model: Model = data
            reads, writes = wanted.names(lambda sites: tuple(map(str, resolve_sites(model, sites))))
            activations: Activations = _harvested(model, reads, writes, reading, stack, progress)
        else:
            reading.require_none()
            activations = _there(data)
            there = activations
            reads, writes = wanted.names(lambda sites: sites_named(there, _named(sites)))
        reads = tuple(activations.sites) if reads is None else reads
        if activations.rows < FEWEST:
            raise EmptyDataError(
                f"there is {activations.rows} row of activations, which has nothing to tell apart; "
                "give more text"
            )
        yield Opened(activations, reads, reads if writes is None else writes, _origin(activations))


def _harvested(
    model: Model,
    reads: tuple[str, ...] | None,
    writes: tuple[str, ...] | None,
    reading: Reading,
    stack: contextlib.ExitStack,
    progress: Progress,
) -> ActivationStore:
    """Return the activations of a model, harvested now as far as they are not there yet."""
    if reading.text is None or not reads:
        missing = "text, the text that it reads," if reading.text is None else "site or sources"
        raise UsageError(
            f"to train on the model {model.name!r}, give {missing} too: "
            "train(model, site='blocks.0.resid_post', text='corpus.txt')"
        )
    folder = reading.place
    if folder is None:
        made = tempfile.TemporaryDirectory(prefix="microtome-activations-")
        folder = Path(stack.enter_context(made))
    return harvest(
        model,
        reading.text,
        sites=list(dict.fromkeys((*reads, *(writes or ())))),
        folder=folder,
        tokens=reading.tokens,
        context=reading.context,
        resume=(folder / NAME).exists(),
        progress=progress,
    )


def _there(data: Activations | Tensor | Mapping[str, Tensor] | str | Path) -> Activations:
    """Return activations that need no model."""
    if isinstance(data, str | Path):
        return ActivationStore(data)
    if isinstance(data, Tensor | Mapping):
        return ActivationStore.of(data)
    if not hasattr(data, "batches"):
        raise UsageError(
            f"cannot train on {type(data).__name__}; expected a model with text, a tensor "
            "[row, d], tensors by site, an ActivationStore, or the folder of one"
        )
    return data


def _named(sites: Places) -> tuple[str, ...]:
    given = [sites] if isinstance(sites, str | Site) else sites
    return tuple(str(site) for site in given)


def _origin(activations: Activations) -> Origin:
    """Return the model that activations are of, where they say so."""
    if not isinstance(activations, ActivationStore):
        return Origin()
    manifest = activations.manifest
    return Origin(model=str(manifest.origin.get("model", "")), fingerprint=manifest.settings.model)
