"""Models that the user brings: copied into the data folder under a name, and removed again."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from edgeprism.bundle.adapters import model_of
from edgeprism.bundle.defaults import BUILT_IN, choose_model, chosen_model
from edgeprism.bundle.elsewhere.kept import mmproj_beside
from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.bundle.gguf_purpose import no_language_model
from edgeprism.bundle.manifest import FILE_NAME
from edgeprism.bundle.open import Bundle, dead_link, find_model, open_bundle
from edgeprism.bundle.places import find_catalogued
from edgeprism.bundle.pulled import places_of
from edgeprism.errors import ModelError, UsageError
from edgeprism.files.atomic import output_error
from edgeprism.files.home import data_dir
from edgeprism.install.pulled_models import forget_pulled
from edgeprism.models.catalogue import read_catalogue
from edgeprism.vision.pair import write_pair

_SIDE_FILES = ("adapter", "imatrix", "mmproj")  # what a header calls a file that is no model

# Names stand on command lines and in file names on every system.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def add_model(
    source: Path, name: str = "", *, lm_chat_format: str | None = None
) -> tuple[str, Path]:
    """Copy a bundle's folder, or a language model's GGUF file, into the data folder.

    A language model whose mmproj lies beside it (`mmproj_beside`) becomes a captioner's bundle.

    Args:
        source: The bundle's folder or the GGUF file, which stays as it is.
        name: The name to add it under; by default the manifest's, or the file's without suffix.
        lm_chat_format: For such a pair: llama.cpp's name of its chat format.

    Returns:
        The name, and where the model now lies.

    Raises:
        ModelError: There is no such model, its files are not what its manifest says, or the file
            is no language model, such as an mmproj alone.
        TemplateError: llama.cpp does not know the pair's chat template.
        UsageError: The name is taken, or cannot be a name; `lm_chat_format` of a model that is no
            pair.
        OutputError: The data folder cannot be written.
    """
    bundle = open_bundle(source) if source.is_dir() else None
    if bundle is None:
        if not source.is_file():
            hint = "Check the path."
            with suppress(ModelError):
                hint = f"A model of this name is there already: {find_model(str(source))}"
            raise ModelError(f"{source}: no such file or folder.", hint)
        _require_language_model(source)
    name = name or (bundle.manifest.name if bundle else source.stem)
    _check_name(name)
    models = data_dir() / "models"
    mmproj = mmproj_beside(source) if bundle is None else None
    if mmproj is not None:
        _add_pair(source, mmproj, models / name, lm_chat_format)
        return name, models / name
    if lm_chat_format is not None:
        raise UsageError(
            f"{source} is no language model with an mmproj beside it.", "Drop `lm_chat_format`."
        )
    target = models / (name if bundle else f"{name}.gguf")
    partial = models / f".{target.name}.partial-{os.getpid()}"
    try:
        models.mkdir(parents=True, exist_ok=True)
        if bundle is not None:
            _copy_bundle(bundle, partial)
        else:
            shutil.copyfile(source, partial)
        os.rename(partial, target)
    except OSError as error:
        raise output_error(target, error) from error
    finally:
        _delete(partial)
    return name, target


def _add_pair(lm: Path, mmproj: Path, target: Path, lm_chat_format: str | None) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(target, error) from error
    write_pair(lm, mmproj, target, lm_chat_format=lm_chat_format, name=target.name, copy=True)


def _require_language_model(path: Path) -> None:
    """Raise ModelError if a GGUF file holds something else, UsageError for one of several parts."""
    header = read_gguf_header(path)
    if header.architecture == "clip" or header.metadata.get("general.type") in _SIDE_FILES:
        raise ModelError(
            f"{path}: {no_language_model(header)}.",
            "Name its language model: an mmproj file beside it is added with it."
            if header.architecture == "clip"
            else "Name a language model.",
        )
    if re.search(r"-[0-9]{5}-of-[0-9]{5}\.gguf$", path.name):
        raise UsageError(
            f"{path}: one of several parts.", "Name it by its path, or join the parts first."
        )


def remove_model(name: str) -> Path:
    """Delete an installed model from the data folder, and return where it was.

    A default that names it goes back to EdgePrism's own. Raises ModelError if no model of this
    name is installed, UsageError for a built-in model, OutputError if it cannot be deleted.
    """
    entry = installed_entry(name)
    hidden = entry.with_name(f".{entry.name}.partial-{os.getpid()}")
    try:
        os.rename(entry, hidden)  # from here on no command finds a half-deleted model
    except OSError as error:
        raise output_error(entry, error) from error
    _delete(hidden)
    forget_pulled(name)
    for kind in BUILT_IN:
        if model_of(chosen_model(kind) or "") == name:
            choose_model(kind, None)
    return entry


def installed_entry(name: str) -> Path:
    """Return the folder or file of an installed model, even if its links lead to no file.

    Raises ModelError if there is no model of this name, UsageError if it is not an installed one.
    """
    models = data_dir() / "models"
    link = dead_link(models, name) if _NAME.fullmatch(name) else None
    if link is None and find_catalogued(name) is not None and not _has_place(name):
        raise ModelError(
            f"{name} is not installed, so there is nothing to remove.",
            "`edgeprism models list` shows which models are installed.",
        )
    path = link or find_model(name)
    place = path.parent.resolve() / path.name  # a link's own place, not where it leads
    if not place.is_relative_to(models.resolve()):
        raise UsageError(
            f"{name} is not an installed model, so it is not removed.",
            "`edgeprism models list` shows which models are installed.",
        )
    return models / place.relative_to(models.resolve()).parts[0]


def _has_place(name: str) -> bool:
    return any(map(os.path.lexists, places_of(name)))


def check_name_form(name: str) -> None:
    """Raise UsageError if `name` cannot be a model's name."""
    if not _NAME.fullmatch(name) or name.endswith(".gguf"):
        raise UsageError(
            f"{name!r} cannot be a model's name.",
            "Give one of letters, digits, dots, dashes and underscores.",
        )


def _check_name(name: str) -> None:
    check_name_form(name)
    if name in read_catalogue().names():
        raise UsageError(f"{name} is the name of a model of the catalogue.", "Give another name.")
    with suppress(ModelError):
        path = find_model(name)
        hint = "Give another name."
        if path.resolve().is_relative_to((data_dir() / "models").resolve()):
            hint = f"Give another name, or remove it first: edgeprism models remove {name}"
        raise UsageError(f"There is a model {name} already: {path}.", hint)


def _copy_bundle(bundle: Bundle, folder: Path) -> None:
    """Copy what the manifest names, after checking every digest, and nothing else."""
    folder.mkdir()
    shutil.copyfile(bundle.path / FILE_NAME, folder / FILE_NAME)
    for file in bundle.manifest.files:
        shutil.copyfile(bundle.file(file), folder / file)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
