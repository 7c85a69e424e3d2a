"""Open a captioner however it is named: a bundle, a GGUF file with its mmproj, or a reference."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprism.bundle.kinds import wrong_kind
from edgeprism.bundle.open import Bundle, find_model, known_name, open_bundle
from edgeprism.bundle.places import find_catalogued
from edgeprism.choices import is_reference
from edgeprism.errors import ModelError, UsageError

if TYPE_CHECKING:
    from edgeprism.vision.pair import Origin

_ALONE = "a language model alone, which sees no pictures"
_HINT = (
    "It can be a `reasoner`. A captioner of two files has an mmproj file as well, beside it and "
    "with mmproj in its name, or named: `lm` and `mmproj`."
)


@dataclass(frozen=True)
class PairFiles:
    """The two files of a captioner that is a pair."""

    lm: Path  # the first of several parts
    mmproj: Path
    chat_format: str | None = None  # llama.cpp's name, where only the program that keeps it knows
    name: str = ""  # what it was asked for by; "" for a GGUF file
    origin: Origin | None = None  # where an installed one was published


def open_model(model: str | os.PathLike[str], *, lm_chat_format: str | None = None) -> Bundle:
    """Return a bundle, or the two files of a pair as one.

    Args:
        model: As for `find_model`: a name or a bundle's folder; the language model's GGUF file of
            a pair, whose mmproj lies beside it (`mmproj_beside`); or a reference to a pair that
            another program keeps. A reference becomes the bundle's name.
        lm_chat_format: For a pair: llama.cpp's name of its chat format.

    Raises:
        ModelError: No such model, a language model alone, or a file is not what was recorded.
        ManifestError, TemplateError: As `open_bundle` and `open_pair`.
        UsageError: `lm_chat_format` with a bundle.
    """
    if not is_reference(model) and not _is_gguf(path := _find(model)):
        if lm_chat_format:
            raise UsageError(
                "A bundle knows its chat format.",
                "Leave out `lm_chat_format`, or name a pair of GGUF files.",
            )
        return open_bundle(path)
    from edgeprism.bundle.elsewhere.references import naming
    from edgeprism.vision.pair import open_pair

    pair = find_pair(model)
    with naming(pair.name, pair.lm, pair.mmproj) if pair.name else contextlib.nullcontext():
        bundle = open_pair(pair.lm, pair.mmproj, lm_chat_format=lm_chat_format or pair.chat_format)
    if not pair.name:
        return bundle
    # the digest stays that of the two files, so captions of the same files by another name count
    manifest = dataclasses.replace(bundle.manifest, name=pair.name)
    return dataclasses.replace(bundle, manifest=manifest)


def find_pair(model: str | os.PathLike[str]) -> PairFiles:
    """Return the two files of a pair; `model` as for `open_model`, or the bundle of a pair.

    Raises ModelError if there is no such model, it is no pair, or a file is not what was recorded.
    """
    asked = os.fspath(model)
    if is_reference(model):
        from edgeprism.bundle.elsewhere.references import canonical_reference, open_kept

        found = open_kept(asked, with_mmproj=True)
        name = canonical_reference(asked)
        return PairFiles(found.lm, _required(found.mmproj, asked), found.chat_format, name)
    path = _find(model)
    if _is_gguf(path):
        from edgeprism.bundle.elsewhere.kept import mmproj_beside

        mmproj = mmproj_beside(path)
        if mmproj is None and (installed := known_name(path)):
            raise wrong_kind(installed, "reasoner")
        return PairFiles(path, _required(mmproj, str(path)))
    from edgeprism.vision.pair import MMPROJ_FILE, Origin

    bundle = open_bundle(path)
    manifest = bundle.manifest
    if MMPROJ_FILE not in manifest.files:
        raise ModelError(
            f"{asked}: no pair: its pictures are not encoded from an mmproj file.",
            "Name a pair of GGUF and mmproj.",
        )
    lm, mmproj = bundle.file(manifest.lm.file), bundle.file(MMPROJ_FILE)
    names = [source.name for source in manifest.sources]
    origin = Origin(names[0], names[1], manifest.license) if len(names) == 2 else None
    return PairFiles(lm, mmproj, name=bundle.name, origin=origin)


def _find(model: str | os.PathLike[str]) -> Path:
    """Return the path of a model; of a reasoner that `pull` could get, say that it is one."""
    try:
        return find_model(model)
    except ModelError as error:
        catalogued = find_catalogued(model) if isinstance(model, str) else None
        if catalogued is not None and catalogued.kind == "reasoner":
            raise wrong_kind(os.fspath(model), "reasoner") from error
        raise


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf" and path.is_file()


def _required(mmproj: Path | None, asked: str) -> Path:
    if mmproj is None:
        raise ModelError(f"{asked}: {_ALONE}.", _HINT)
    return mmproj
