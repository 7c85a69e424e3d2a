"""What a manifest says of the checkpoints that a bundle was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeprism.bundle.manifest import Source
from edgeprism.convert.read.checkpoint import digest_of_files, license_of, read_json


@dataclass(frozen=True)
class SourceFiles:
    """One published checkpoint: `role` in the captioner, and the files that count."""

    role: str
    folder: Path
    files: Sequence[Path]


def source_of(published: SourceFiles) -> Source:
    """Name, digest and licence, for the manifest; reads every file."""
    return Source(
        published.role,
        published_name(published.folder),
        digest_of_files(published.files),
        license_of(published.folder),
    )


def published_name(folder: Path) -> str:
    """`_name_or_path` of the configuration where it names a published model, else the folder.

    In a hub's cache (models--OWNER--NAME/snapshots/COMMIT) the path says more: OWNER/NAME@COMMIT.
    """
    place = folder.resolve()
    store = place.parent.parent.name
    if place.parent.name == "snapshots" and store.startswith("models--"):
        return f"{store.removeprefix('models--').replace('--', '/', 1)}@{place.name}"
    config = folder / "config.json"
    named = str(read_json(config).get("_name_or_path", "")) if config.is_file() else ""
    # an absolute path there tells of somebody's disk, not of a model
    return named if named and not Path(named).is_absolute() else place.name
