"""Which installed models `pull` made from GGUF files of a hub, and from which files.

A bundle's manifest says it. Of a reasoner, which is a bare GGUF file, the data folder remembers it.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeprism.bundle.choose_gguf import quant_in_name
from edgeprism.bundle.gguf_parts import part_paths
from edgeprism.bundle.manifest import FILE_NAME
from edgeprism.bundle.open import check_file, open_bundle
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.errors import ManifestError, ModelError
from edgeprism.files.digests import file_digest
from edgeprism.files.home import data_dir
from edgeprism.files.links import is_shared
from edgeprism.files.remembered import Remembered
from edgeprism.files.strict_json import record_from_data
from edgeprism.install.cache_folder import repository_folder

_pulled = Remembered("pulled.json")
_encoder_choices = Remembered("encoders.json", limit=100)


@dataclass(frozen=True)
class PulledFrom:
    """The origin of an installed model."""

    source: str  # OWNER/REPO@COMMIT
    lm: str  # the language model's first file, as the repository names it
    license: str
    sha256: dict[str, str]  # by installed file; empty for a bundle, whose manifest has them

    @property
    def repo(self) -> str:
        """The repository."""
        return self.source.partition("@")[0]

    @property
    def commit(self) -> str:
        """The repository's commit."""
        return self.source.partition("@")[2]

    def has(self, wanted: str) -> bool:
        """Return whether the language model is the wanted one: a quantization, a file, or ""."""
        names = (self.lm, self.lm.rpartition("/")[2], quant_in_name(self.lm))
        return not wanted or wanted.lower() in [name.lower() for name in names]


def places_of(name: str) -> tuple[Path, Path]:
    """Return where a model of this name is installed: as a folder, or as a single GGUF file."""
    models = data_dir() / "models"
    return models / name, models / f"{name}.gguf"


def pulled_from(name: str) -> PulledFrom | None:
    """Return the origin of the installed model `name`; None if `pull` did not make it from GGUF."""
    folder, _ = places_of(name)
    if (folder / FILE_NAME).is_file():
        try:
            manifest = manifest_from_bundle(folder)
        except (ManifestError, OSError):
            return None
        source, separator, lm = manifest.sources[0].name.partition(": ")
        if manifest.family != "mmproj" or not separator or "@" not in source:
            return None
        return PulledFrom(source, lm, manifest.license, {})
    try:
        return record_from_data(PulledFrom, _pulled.read().get(name), "pulled.json")
    except ManifestError:  # nothing is remembered, or it was changed
        return None


def remember_pulled(name: str, origin: PulledFrom) -> None:
    """Remember a reasoner's origin."""
    _pulled.remember(name, asdict(origin))


def forget_pulled(name: str) -> None:
    """Forget all that is remembered of a model, which was removed."""
    for memory in (_pulled, _encoder_choices):
        if name in memory.read():
            memory.remember(name, None)


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
