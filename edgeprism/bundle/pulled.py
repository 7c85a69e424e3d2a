"""Which installed models `pull` made from GGUF files of a hub, and how to get them again.

A bundle's manifest says it. Of a reasoner, which is a bare GGUF file, the data folder remembers it.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeprism.bundle.choose_gguf import quant_in_name
from edgeprism.bundle.manifest import FILE_NAME
from edgeprism.bundle.places import find_catalogued
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.errors import ManifestError
from edgeprism.files.home import data_dir, find_data_dir
from edgeprism.files.remembered import Remembered
from edgeprism.files.strict_json import record_from_data

_pulled = Remembered("pulled.json")
_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


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

    @property
    def quant(self) -> str:
        """The language model's quantization, as its file's name says it; "" if it says none."""
        return quant_in_name(self.lm)

    def has(self, wanted: str) -> bool:
        """Return whether the language model is the wanted one: a quantization, a file, or ""."""
        names = (self.lm, self.lm.rpartition("/")[2], self.quant)
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
        first = manifest.sources[0].name if manifest.sources else ""
        source, separator, lm = first.partition(": ")
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


def forget_origin(name: str) -> None:
    """Forget a reasoner's origin."""
    if name in _pulled.read():
        _pulled.remember(name, None)


def pull_command(name: str) -> str:
    """Return the command that gets an installed model again, however damaged it is.

    "" for a name that nothing is installed under, and for a model that `pull` did not bring.
    """
    if not name or os.path.basename(name) != name or find_data_dir() is None:
        return ""
    if not any(map(os.path.lexists, places_of(name))):
        return ""
    origin, catalogued = pulled_from(name), find_catalogued(name)
    repo = origin.repo if origin is not None else ""
    if catalogued is not None and catalogued.repo == repo:
        return f"edgeprism pull {name}"
    if origin is None or not _REPO.fullmatch(repo):
        return ""
    # its file, too: another one may be what the rule chooses
    return f"edgeprism pull {shlex.quote(f'hf:{repo}:{origin.lm}')} --name {shlex.quote(name)}"
