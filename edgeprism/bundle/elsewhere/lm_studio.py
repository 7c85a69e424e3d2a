"""LM Studio's models: `PUBLISHER/REPO/FILE.gguf`, the mmproj beside its language model.

Sources: LM Studio's documentation ("Import Models"), lmstudio-ai/lms (src/subcommands/importCmd.ts:
`downloadsFolder` of settings.json) and lmstudio-js (findLMStudioHome: the home's pointer file).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from edgeprism.bundle.elsewhere.kept import (
    Kept,
    Reader,
    absolute_path,
    home,
    list_gguf,
    models_of_repository,
    read_record,
    unreadable,
)

TITLE = "LM Studio"
_REPOSITORY_DEPTH = 3  # folders below a repository's


def places() -> list[Path]:
    """Return the folders of models, the newer home's first; a setting may name another one."""
    own = home()
    if own is None:
        return []
    homes = [_pointed(own / ".lmstudio-home-pointer"), own / ".lmstudio", own / ".cache/lm-studio"]
    found: list[Path] = []
    for folder in homes:
        if folder is not None:
            found += [_downloads(folder / "settings.json") or folder / "models", folder / "models"]
    return list(dict.fromkeys(found))


def canonical(name: str) -> str:
    """Return the name as it is."""
    return name


def kept_in(place: Path, only: str = "") -> Iterator[Kept]:
    """Yield the models of a store; with `only`, those of that name's repository alone."""
    wanted = only.split("/")[:2]
    reader = Reader()
    for publisher in reader.subfolders(place):
        if only and publisher.name != wanted[0]:
            continue
        for repository in reader.subfolders(publisher):
            if only and [publisher.name, repository.name] != wanted:
                continue
            listing = list_gguf(repository, _REPOSITORY_DEPTH, reader)
            for file, kept in models_of_repository(listing):
                name = f"{publisher.name}/{repository.name}" + (f"/{file}" if file else "")
                yield dataclasses.replace(kept, name=name)
    if not only:
        yield from unreadable(place)
        yield from reader.early_end(place)


def _pointed(path: Path) -> Path | None:
    try:
        return absolute_path(read_record(path).decode("utf-8").strip())
    except (OSError, ValueError):
        return None


def _downloads(settings: Path) -> Path | None:
    try:
        data = json.loads(read_record(settings))
    except (OSError, ValueError, RecursionError):
        return None
    folder = data.get("downloadsFolder") if isinstance(data, dict) else None
    return absolute_path(folder) if isinstance(folder, str) and folder else None
