"""The cache of huggingface_hub: `models--OWNER--REPO/snapshots/COMMIT/FILE`, links into `blobs/`.

Source: huggingface_hub's documentation ("Understand caching") and constants.py. `refs/main` holds
the commit of the newest snapshot. A blob of a large file is named by its sha256.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from edgeprism.bundle.choose_gguf import quant_in_name
from edgeprism.bundle.elsewhere.kept import (
    MAX_DEPTH,
    UNFINISHED,
    Kept,
    Reader,
    environment_path,
    home,
    list_gguf,
    models_of_repository,
    read_record,
    unreadable,
)

TITLE = "hub cache"
_FOLDER = "models--"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def places() -> list[Path]:
    """Return the cache's folder, as huggingface_hub finds it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            folder = environment_path(name)
            return [folder] if folder else []
    for name, inside in (("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")):
        if folder := environment_path(name):
            return [folder / inside]
    own = home()
    return [own / ".cache/huggingface/hub"] if own else []


def canonical(name: str) -> str:
    """Return OWNER/REPO[:QUANT] with the quantization in capitals, or OWNER/REPO/FILE."""
    repository, colon, quant = name.partition(":")
    if not colon or quant.lower().endswith(".gguf"):
        return f"{repository}/{quant}" if colon else name
    return f"{repository}:{quant.upper()}"


def kept_in(place: Path, only: str = "") -> Iterator[Kept]:
    """Yield the GGUF models of a cache; with `only`, those of that name's repository alone."""
    reader = Reader()
    for folder in reader.subfolders(place):
        repository = folder.name.removeprefix(_FOLDER).replace("--", "/")
        if not folder.name.startswith(_FOLDER):
            continue
        if only and not f"{only}/".replace(":", "/").startswith(f"{repository}/"):
            continue
        yield from _repository(folder, repository, only, reader)
    if not only:
        yield from unreadable(place)
        yield from reader.early_end(place)


def _repository(folder: Path, repository: str, only: str, reader: Reader) -> Iterator[Kept]:
    listings = (list_gguf(path, MAX_DEPTH, reader) for path in _snapshots(folder, reader))
    listing = next((found for found in listings if found.sizes or found.problems), None)
    # a repository of other files is no concern of anybody here, whole or not
    if listing or "gguf" in repository.lower():
        yield from _unfinished(folder / "blobs", repository)
    if listing is None:
        return
    listing.problems = {
        name: "half fetched: its link leads to no file" if "link" in problem else problem
        for name, problem in listing.problems.items()
    }
    found = list(models_of_repository(listing))
    quants = Counter(quant_in_name(file) for file, kept in found if file and kept.lm)
    for file, kept in found:
        quant = quant_in_name(file)
        name = repository
        if file:
            alone = kept.lm and quant and quants[quant] == 1
            name = f"{repository}/{file}"  # which is understood in any case
            name = f"{repository}:{quant}" if alone and name != only else name
        files = [path for path in (kept.lm, kept.mmproj) if path]
        yield dataclasses.replace(kept, name=name, digests=_digests(files))


def _snapshots(folder: Path, reader: Reader) -> list[Path]:
    """Return a repository's snapshots, that of its main branch first, then from the newest."""
    there = {path.name: path for path in reader.subfolders(folder / "snapshots")}
    try:
        main = there.get(read_record(folder / "refs" / "main").decode("ascii").strip())
    except (OSError, ValueError):
        main = None
    dated = []
    for path in there.values():
        try:
            dated.append((path.stat().st_mtime, path))
        except OSError:
            continue  # it was deleted meanwhile
    return ([main] if main else []) + [path for _, path in sorted(dated, reverse=True)]


def _digests(files: list[Path]) -> dict[Path, str]:
    """Return the sha256 of files whose blobs are named by it."""
    names = {path: os.path.basename(os.path.realpath(path)) for path in files}
    return {path: name for path, name in names.items() if _SHA256.fullmatch(name)}


def _unfinished(blobs: Path, repository: str) -> Iterator[Kept]:
    try:
        paths = sorted(blobs.iterdir())
    except OSError:
        return
    for path in paths:
        if path.name.endswith(".incomplete"):
            yield Kept("", path, problem=f"{UNFINISHED} ({repository})")
