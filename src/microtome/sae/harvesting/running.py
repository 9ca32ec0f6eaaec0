"""Harvesting: a model reads text once, and its activations are kept in shards."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from microtome.core.progress import Progress, quiet
from microtome.core.provenance import versions
from microtome.errors import (
    ConfigError,
    EmptyDataError,
    FormatError,
    OutputError,
    UsageError,
)
from microtome.sae.harvesting.collecting import Collected, collect
from microtome.sae.harvesting.documents import Documents, Text, deal, read_documents
from microtome.sae.harvesting.manifest import NAME, Manifest, ShardRecord
from microtome.sae.harvesting.moments import Moments
from microtome.sae.harvesting.places import resolve_sites
from microtome.sae.harvesting.settings import DTYPES, Settings, check_positive, settings_of
from microtome.sae.harvesting.shards import COLUMNS, check_shard, write_shard
from microtome.sae.harvesting.store import ActivationStore
from microtome.tracing.sites import Site

if TYPE_CHECKING:
    from microtome.tracing.model import Model


def harvest(
    model: Model,
    text: Text,
    *,
    sites: str | Site | Sequence[str | Site],
    folder: str | Path,
    tokens: int | None = None,
    context: int | None = None,
    dtype: str | None = None,
    batch_size: int = 32,
    shard_rows: int | None = None,
    mask_special: bool = True,
    outliers: float | None = 10.0,
    seed: int = 0,
    resume: bool = False,
    progress: Progress = quiet,
) -> ActivationStore:
    """Run a model over text once and keep its activations at some sites, ready for training.

    Documents are cut into rows of ``context`` tokens, never two documents in one; with the model's
    BOS rule each row begins with that token and no other place has it. Documents go to the shards
    in turn, and the rows of a shard are written in a random order, the same for every site. Every
    shard is a function of the model, the text and the settings alone: a harvest that was stopped
    at any moment goes on with ``resume=True`` and ends with the same bytes, on the same number of
    threads.

    Args:
        model: A language model.
        text: A file or folder, texts, lists of token ids, or a tensor ``[document, token]`` of ids.
        sites: One or several; a site without a block means every block. Values per head are
            flattened.
        folder: Where the shards and ``manifest.json`` go.
        tokens: Tokens to read at most, all by default.
        context: Tokens of a row of input, BOS included; by default 128 or the model's context.
        dtype: ``"float16"``, ``"bfloat16"`` or ``"float32"``; by default the model's type if that
            has 16 bits, else float16.
        batch_size: Rows of a forward pass.
        shard_rows: Tokens of a shard, about; by default 64 MB, or a sixteenth of the text.
        mask_special: Leave out special tokens of the tokenizer, BOS among them.
        outliers: Leave out tokens whose norm at any site is more than this many times the median;
            None keeps them.
        seed: Decides the order of the rows.
        resume: Go on with a harvest in the folder; shards that are missing or damaged are written
            anew.
        progress: Told the tokens done in this call.

    Returns:
        The store of the folder.

    Raises:
        ConfigError: If a setting is out of range, or not that of the harvest to go on with.
        UsageError: If the folder holds a harvest already and ``resume`` is False.
        SiteError: If a site is unknown or has no row for each token.
        EmptyDataError: If no token is left.
        ShapeError: If the model's values are not finite.
        OutputError: If there is no room for the shards, or one cannot be written.

    Example:
        >>> import tempfile
        >>> import microtome as mt
        >>> from microtome.sae import harvest
        >>> model = mt.load("python-code")
        >>> store = harvest(model, ["x = 1", "y = 2"], sites="blocks.0.mlp.out",
        ...                 folder=tempfile.mkdtemp())
        >>> store.sites, store.rows
        (('blocks.0.mlp.out',), 10)
    """
    place = Path(folder)
    chosen = resolve_sites(model, sites)
    check_positive(tokens=tokens)
    documents = read_documents(text, tokenizer=model.tokenizer, tokens=tokens)
    settings = settings_of(
        model, documents, chosen, context=context, dtype=dtype, batch_size=batch_size,
        shard_rows=shard_rows, mask_special=mask_special, outliers=outliers, seed=seed,
    )  # fmt: skip
    manifest = _begin(place, settings, model, resume=resume)
    _Harvest(model, documents, place, manifest, progress).run()
    return ActivationStore(place)


@dataclass
class _Harvest:
    """A harvest in its folder, begun or to be gone on with."""

    model: Model
    documents: Documents
    folder: Path
    manifest: Manifest
    progress: Progress

    def run(self) -> None:
        """Write every shard that is not there yet, and the manifest after each."""
        settings = self.manifest.settings
        dealt = deal(self.documents, settings.context - settings.bos, settings.shards)
        todo = [i for i in range(settings.shards) if not self._whole(i)]
        total = sum(len(p.ids) for i in todo for p in dealt[i])
        self._require_room(total)
        special = _special_ids(self.model)
        done = 0
        for number in todo:
            found = collect(
                self.model,
                dealt[number],
                settings,
                number=number,
                special=special,
                step=lambda n, done=done: self.progress.step(done + n, total, "harvest"),  # type: ignore[misc]
            )
            done += found.tokens
            whole = len(self.manifest.shards)
            try:
                self._keep(number, found)
            except OutputError as error:
                raise OutputError(
                    f"{error}; {whole} of {settings.shards} shards are whole in {self.folder}: the "
                    "same harvest with resume goes on from there"
                ) from error
        if not self.manifest.rows:
            raise EmptyDataError(
                f"All {settings.tokens} tokens were masked ({self.manifest.masked}), so there are "
                "no rows; give other text or mask less."
            )

    def _whole(self, number: int) -> bool:
        """Return whether a shard is listed and its file is the one that was written."""
        if number >= len(self.manifest.shards):
            return False
        try:
            check_shard(self.folder, self.manifest.shards[number], hashed=True)
        except FormatError:
            return False
        return True

    def _keep(self, number: int, found: Collected) -> None:
        """Write a shard, then the manifest that lists it."""
        record = write_shard(self.folder, number, found)
        manifest = self.manifest
        if number < len(manifest.shards):
            self._require_same(record, manifest.shards[number])
            return
        for site, values in found.values.items():
            manifest.moments[site].add(values)
        manifest.shards.append(record)
        manifest.write(self.folder)

    def _require_same(self, made: ShardRecord, listed: ShardRecord) -> None:
        """Require that a shard written anew is the one that was lost."""
        if made != listed:
            raise FormatError(
                f"Shard {self.folder / made.file} was written anew and differs from the one in the "
                f"manifest, which was made with {dict(self.manifest.origin)}; with other versions, "
                "threads or another device values differ in their last bits. Repeat it with "
                "those, or harvest into another folder."
            )

    def _require_room(self, tokens: int) -> None:
        """Refuse to begin what the disk cannot hold."""
        settings = self.manifest.settings
        row = DTYPES[settings.dtype] * sum(settings.sites.values()) + 4 * len(COLUMNS)
        needed, free = tokens * row, shutil.disk_usage(self.folder).free
        if needed > free:
            raise OutputError(
                f"The shards need {needed / 1e9:.2f} GB in {self.folder}, where {free / 1e9:.2f} "
                "GB are free; read fewer tokens, harvest fewer sites or choose another disk."
            )


def _begin(folder: Path, settings: Settings, model: Model, *, resume: bool) -> Manifest:
    """Return the manifest to go on with: the one in the folder, or a new one, written at once."""
    if not (folder / NAME).exists():
        _clear(folder)
        origin = {
            "model": model.name,
            "device": str(model.device),
            "threads": torch.get_num_threads(),
            "versions": dict(versions()),
        }
        moments = {site: Moments.empty(width) for site, width in settings.sites.items()}
        made = Manifest(settings, origin, moments=moments)
        made.write(folder)
        return made
    known = Manifest.read(folder)
    if not resume:
        raise UsageError(
            f"{folder} holds a harvest already ({len(known.shards)} of {known.settings.shards} "
            "shards). Go on with it by resume=True (--resume), or choose another folder."
        )
    differences = known.settings.differences(settings)
    if differences:
        raise ConfigError(
            f"{folder} holds another harvest ({'; '.join(differences)}). Give the same settings to "
            "go on with it, or choose another folder."
        )
    _clear(folder)
    return known


def _clear(folder: Path) -> None:
    """Remove parts of files that a killed harvest left, its own and those of safetensors."""
    for pattern in (f".{NAME}.*.tmp", ".acts-*.safetensors.*.tmp", ".tmp??????"):
        for part in folder.glob(pattern):
            with contextlib.suppress(OSError):
                part.unlink()


def _special_ids(model: Model) -> frozenset[int]:
    tokenizer = model.tokenizer
    return frozenset() if tokenizer is None else frozenset(map(int, tokenizer.all_special_ids))
