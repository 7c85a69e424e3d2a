"""Open a captioner however it is named: a bundle, a GGUF file with its mmproj, or a reference."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from edgeprism.bundle.open import Bundle, find_model, open_bundle
from edgeprism.choices import is_reference
from edgeprism.errors import ModelError, UsageError

_ALONE = "a language model alone, which sees no pictures"
_HINT = (
    "It can be a `reasoner`. A captioner of two files has an mmproj file as well, beside it and "
    "with mmproj in its name, or named: `lm` and `mmproj`."
)


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
    if is_reference(model):
        from edgeprism.bundle.elsewhere.references import canonical_reference, naming, open_kept

        reference = os.fspath(model)
        found = open_kept(reference, with_mmproj=True)
        name, own_format = canonical_reference(reference), lm_chat_format or found.chat_format
        with naming(reference, found.lm, found.mmproj):
            return _open_files(reference, found.lm, found.mmproj, own_format, name)
    path = find_model(model)
    if path.suffix.lower() == ".gguf" and path.is_file():
        from edgeprism.bundle.elsewhere.kept import mmproj_beside

        return _open_files(str(path), path, mmproj_beside(path), lm_chat_format)
    if lm_chat_format:
        raise UsageError(
            "A bundle knows its chat format.",
            "Leave out `lm_chat_format`, or name a pair of GGUF files.",
        )
    return open_bundle(path)


def _open_files(
    asked: str, lm: Path, mmproj: Path | None, lm_chat_format: str | None, name: str = ""
) -> Bundle:
    from edgeprism.vision.pair import open_pair

    if mmproj is None:
        raise ModelError(f"{asked}: {_ALONE}.", _HINT)
    bundle = open_pair(lm, mmproj, lm_chat_format=lm_chat_format)
    if not name:
        return bundle
    # the digest stays that of the two files, so captions of the same files by another name count
    manifest = dataclasses.replace(bundle.manifest, name=name)
    return dataclasses.replace(bundle, manifest=manifest)
