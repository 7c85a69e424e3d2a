"""What `pull` remembers of the models that it made from GGUF files of a hub."""

from __future__ import annotations

import os
from pathlib import Path

from edgeprism.bundle.gguf_parts import part_paths
from edgeprism.bundle.manifest import FILE_NAME
from edgeprism.bundle.open import check_file, open_bundle
from edgeprism.bundle.pulled import PulledFrom, forget_origin, places_of, pulled_from
from edgeprism.errors import ModelError
from edgeprism.files.digests import file_digest
from edgeprism.files.links import is_shared
from edgeprism.files.remembered import Remembered
from edgeprism.install.cache_folder import repository_folder

_encoder_choices = Remembered("encoders.json", limit=100)


def forget_pulled(name: str) -> None:
    """Forget all that is remembered of a model, which was removed."""
    forget_origin(name)
    if name in _encoder_choices.read():
        _encoder_choices.remember(name, None)


def remember_encoder_choice(bundle: Path) -> None:
    """Remember that the encoder of an installed pair was chosen; the manifest says which."""
    _encoder_choices.remember(bundle.name, _stamp(bundle))


def encoder_is_chosen(bundle: Path) -> bool:
    """Return whether the encoder of an installed pair was chosen since it was installed."""
    return bool(_encoder_choices.read().get(bundle.name) == _stamp(bundle))


def _stamp(bundle: Path) -> list[int]:
    """Return what tells an installation from another of the same files under the same name."""
    status = (bundle / FILE_NAME).stat()
    return [status.st_mtime_ns, status.st_ino]


def check_intact(path: Path, origin: PulledFrom) -> None:
    """Hash every file of an installed model; ModelError if one is missing or was changed."""
    if path.is_dir():
        bundle = open_bundle(path)
        for file, entry in bundle.manifest.files.items():
            check_file(bundle.path / file, entry.sha256, entry.size, again=True)
        return
    for part in part_paths(path):
        expected = origin.sha256.get(part.name, "")
        if file_digest(part, again=True) != expected:
            raise ModelError(f"{part}: its content is not what was pulled.", "Pull it again.")


def kept_in_cache(name: str) -> Path | None:
    """Return the folder of the hub's cache that keeps a pulled model's files when it is removed.

    None for a model that `pull` did not make from GGUF, or whose files were copied.
    """
    origin, (folder, single) = pulled_from(name), places_of(name)
    files = list(folder.iterdir()) if folder.is_dir() else [single]
    if origin is None or not any(os.path.exists(path) and is_shared(path) for path in files):
        return None
    return repository_folder(origin.repo)
