"""llama.cpp's cache of `-hf OWNER/REPO[:QUANT]`.

Its older form is flat: `OWNER_REPO_FILE.gguf`, and `manifest=OWNER=REPO=TAG.json`, which names the
language model (`ggufFile`) and its mmproj (`mmprojFile`). Newer versions use the hub's cache, or
the hub's layout in LLAMA_CACHE. Sources: ggml-org/llama.cpp, common/download.cpp,
common/hf-cache.cpp and fs_get_cache_directory in common/common.cpp.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from edgeprism.bundle.elsewhere import hub_cache
from edgeprism.bundle.elsewhere.kept import (
    Kept,
    environment_path,
    home,
    list_gguf,
    models_of_folder,
    read_record,
    reason,
    unreadable,
)
from edgeprism.bundle.gguf_parts import part_names
from edgeprism.errors import ModelError

TITLE = "llama.cpp"
_MANIFEST, _JSON = "manifest=", ".json"
_PARTS = 4  # of a manifest's name between "="
_LATEST = "latest"  # the tag of a model that was asked for without a quantization


def places() -> list[Path]:
    """Return the folder of the cache."""
    if os.environ.get("LLAMA_CACHE"):
        named = environment_path("LLAMA_CACHE")
        return [named] if named else []
    own = home()
    if sys.platform == "darwin":
        folder = own / "Library/Caches" if own else None
    elif os.name == "nt":
        folder = environment_path("LOCALAPPDATA")
    else:
        folder = environment_path("XDG_CACHE_HOME") or (own / ".cache" if own else None)
    return [folder / "llama.cpp"] if folder else []


def canonical(name: str) -> str:
    """Return OWNER/REPO[:QUANT] with the quantization in capitals, or a file's name."""
    repository, colon, tag = name.partition(":")
    tag = "" if tag.lower() == _LATEST else tag.upper()
    return f"{repository}:{tag}" if colon and tag else repository


def kept_in(place: Path, only: str = "") -> Iterator[Kept]:
    """Yield the models of a cache; with `only`, those of that name alone."""
    try:
        names = sorted(os.listdir(place))
    except OSError:
        yield from unreadable(place)
        return
    told: set[str] = set()
    for name in names:
        parts = name.removesuffix(_JSON).split("=")
        if name.startswith(_MANIFEST) and name.endswith(_JSON) and len(parts) == _PARTS:
            kept = _from_manifest(place, name, f"{parts[1]}/{parts[2]}", parts[3])
            told |= _file_names(kept)
            yield kept
    flat = list_gguf(place, 0)
    flat.sizes = {name: size for name, size in flat.sizes.items() if name not in told}
    for file, kept in models_of_folder(flat):
        yield dataclasses.replace(kept, name=file)
    yield from hub_cache.kept_in(place, only)


def _file_names(kept: Kept) -> set[str]:
    """Return the names of all files of a model, those of its parts too."""
    files = {kept.mmproj.name} if kept.mmproj else set()
    if kept.lm:
        try:
            files |= {*part_names(kept.lm.name)}
        except ModelError:  # not the first of several parts
            files.add(kept.lm.name)
    return files


def _from_manifest(place: Path, file: str, repository: str, tag: str) -> Kept:
    name, where = canonical(f"{repository}:{tag}"), place / file
    try:
        manifest = json.loads(read_record(where))
        lm = _named(place, repository, manifest, "ggufFile")
        mmproj = _named(place, repository, manifest, "mmprojFile")
    except (OSError, ValueError, RecursionError) as error:
        return Kept(name, where, problem=f"its manifest cannot be read: {reason(error)}")
    if lm is None:
        return Kept(name, where, problem="its manifest names no language model")
    for path in (lm, mmproj):
        if path is not None and not os.path.isfile(path):
            return Kept(name, where, problem=f"half fetched: {path.name} is missing")
    return Kept(name, where, lm, mmproj)


def _named(place: Path, repository: str, manifest: object, key: str) -> Path | None:
    """Return the cached file that a manifest names; raises ValueError for another shape."""
    if not isinstance(manifest, dict):
        raise ValueError("it is no object")
    entry = manifest.get(key)
    file = entry.get("rfilename") if isinstance(entry, dict) else None
    if not isinstance(file, str) or not file:
        return None
    # "/" becomes "_" in repositories and files, so no name leads out of the folder
    return place / f"{repository}_{file}".replace("/", "_").replace("\\", "_")
