"""The manifest of harvested activations: what they were made of, and what is done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microtome.core.hashing import sha256_json
from microtome.core.plain import plain
from microtome.errors import FormatError
from microtome.sae.harvesting.moments import QUANTILES, Moments
from microtome.sae.harvesting.settings import Settings
from microtome.store.atomic import write_text

NAME = "manifest.json"
"""The manifest's name in the folder."""

FORMAT = "microtome.activations"
VERSION = 1


@dataclass(frozen=True)
class ShardRecord:
    """One finished shard.

    Attributes:
        file: Its name in the folder.
        rows: Rows in it.
        bytes: Size of the file.
        sha256: Hash of the file.
        tokens: Tokens read for it.
        special: Tokens left out because they are special ones.
        outliers: Tokens left out because of their norm.
    """

    file: str
    rows: int
    bytes: int
    sha256: str
    tokens: int
    special: int
    outliers: int


@dataclass
class Manifest:
    """Settings, the shards finished so far and the sums over their rows.

    Attributes:
        settings: What decides the values.
        origin: What does not, but is good to know: names, versions, threads, device.
        shards: Finished shards, in their order.
        moments: Sums over the finished shards' rows, by site.
    """

    settings: Settings
    origin: Mapping[str, Any]
    shards: list[ShardRecord] = field(default_factory=list)
    moments: dict[str, Moments] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every shard is finished."""
        return len(self.shards) == self.settings.shards

    @property
    def rows(self) -> int:
        """Rows of the finished shards."""
        return sum(s.rows for s in self.shards)

    @property
    def masked(self) -> dict[str, int]:
        """Tokens left out of the finished shards, by reason."""
        return {
            "special": sum(s.special for s in self.shards),
            "outliers": sum(s.outliers for s in self.shards),
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the settings and the hashes of the shards."""
        return sha256_json([plain(self.settings), [s.sha256 for s in self.shards]])

    def write(self, folder: Path) -> None:
        """Write the manifest into its folder, atomically.

        Raises:
            OutputError: If it cannot be written.
        """
        document = {
            "format": FORMAT,
            "version": VERSION,
            "complete": self.complete,
            "settings": plain(self.settings),
            "origin": plain(self.origin),
            "rows": self.rows,
            "masked": self.masked,
            "shards": plain(self.shards),
            "sites": {site: _facts(m) | m.to_dict() for site, m in self.moments.items()},
        }
        write_text(folder / NAME, json.dumps(document, indent=1, ensure_ascii=False) + "\n")

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Read the manifest of a folder.

        Raises:
            FormatError: If it is missing, damaged, of another kind or of a newer version.
        """
        path = folder / NAME
        document = _document(path)
        try:
            settings = Settings(**document["settings"])
            shards = [ShardRecord(**s) for s in document["shards"]]
            moments = {
                str(site): Moments.from_dict(m, str(path)) for site, m in document["sites"].items()
            }
            origin = dict(document["origin"])
            fits = list(moments) == list(settings.sites) and len(shards) <= settings.shards
            rows = sum(s.rows for s in shards)
            fits = fits and all(
                m.rows == rows and m.width == settings.sites[site] for site, m in moments.items()
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(
                f"{path} is damaged: {error!r}; harvest again into another folder."
            ) from error
        if not fits:
            raise FormatError(
                f"{path} is damaged: its sites, rows and shards do not fit together; harvest "
                "again into another folder."
            )
        return Manifest(settings, origin, shards, moments)


def _facts(moments: Moments) -> dict[str, Any]:
    """Return what readers of the file want to know of a site."""
    return {
        "mean": moments.mean.tolist(),
        "second_moment": moments.second_moment.tolist(),
        "mean_squared_norm": float(moments.second_moment.sum()),
        "norm_quantiles": {str(q): plain(moments.norm_quantile(q)) for q in QUANTILES},
    }


def _document(path: Path) -> dict[str, Any]:
    """Return the JSON of a manifest, checked to be one that can be read here."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(
            f"cannot read {path}: {error.strerror}; give a folder that `microtome sae harvest` "
            "wrote."
        ) from error
    except ValueError as error:
        raise FormatError(
            f"{path} is not valid JSON ({error}); restore it, or harvest again into another folder."
        ) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise FormatError(f"{path} is not a manifest of activations; expected format {FORMAT!r}.")
    if document.get("version") != VERSION:
        raise FormatError(
            f"{path} has version {document.get('version')!r}, this microtome reads {VERSION}; "
            "update microtome."
        )
    return document
