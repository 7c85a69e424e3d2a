"""The manifest's records of the checkpoints from which a bundle was converted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprism.bundle.manifest import Source
from edgeprism.convert.read.checkpoint import digest_of_files, license_of, read_json
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    from edgeprism.progress import Progress

_PUBLISHED = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")  # OWNER/NAME


@dataclass(frozen=True)
class SourceFiles:
    """One published checkpoint: its `role` in the captioner, and its weight files."""

    role: str
    folder: Path
    files: Sequence[Path]


# what is read of a folder beside weights
_SETTINGS = (
    "config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "spiece.model", "vocab.json", "merges.txt", "vocab.txt",
)  # fmt: skip


def source_without_weights(role: str, folder: Path) -> SourceFiles:
    """Return the record of a folder of which settings or a tokenizer alone were read."""
    return SourceFiles(role, folder, [path for name in _SETTINGS for path in folder.glob(name)])


def require_whole(folders: Iterable[Path]) -> None:
    """Raise CheckpointError for links to files that are not there, as interrupted downloads leave.

    A file that may be missing from a checkpoint would otherwise be passed over in silence.
    """
    broken = [
        str(path)
        for folder in dict.fromkeys(folders)
        for path in sorted(folder.iterdir())
        if path.is_symlink() and not path.exists()
    ]
    if broken:
        raise CheckpointError(
            f"These links lead to files that are missing: {', '.join(broken)}.",
            "Download the files again, or remove the links of those that you do not need.",
        )


def source_of(published: SourceFiles) -> Source:
    """Return name, digest and licence for the manifest; reads every file."""
    return Source(
        published.role,
        published_name(published.folder),
        digest_of_files(published.files),
        license_of(published.folder),
    )


def published_name(folder: Path) -> str:
    """Return `_name_or_path` of config.json if it is a published name, else the folder's name.

    A folder in a hub cache (models--OWNER--NAME/snapshots/COMMIT) gives OWNER/NAME@COMMIT instead.
    """
    resolved = folder.resolve()
    store = resolved.parent.parent.name
    if resolved.parent.name == "snapshots" and store.startswith("models--"):
        return f"{store.removeprefix('models--').replace('--', '/', 1)}@{resolved.name}"
    config = folder / "config.json"
    named = str(read_json(config).get("_name_or_path", "")) if config.is_file() else ""
    # others are folders on the publisher's disk, e.g. "chat" or "/data/llava"
    return named if _PUBLISHED.fullmatch(named) else resolved.name


def report_other_tower(given: Path, named: str, where: str, progress: Progress) -> None:
    """Report a tower with another name: a fine-tuned tower has the same shapes as its original.

    Args:
        given: The tower's folder.
        named: The tower's published name in the configuration; "" if its weights are elsewhere.
        where: The name of the configuration.
        progress: Receives the report.
    """
    name = published_name(given).partition("@")[0]
    if named and Path(named).name != Path(name).name:
        progress.say(
            f"The vision model given is {name}; {where} names {named}. If their weights differ, "
            "captions will be poor."
        )
