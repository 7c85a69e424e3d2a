"""Checks the paths that a command will write to, before it does any work.

A slip such as `--errors *.jpg` names a file that must not be lost. So an existing file is replaced
only if it is empty, or if it is of the very kind that the command writes (`is_own` looks at its
content) and still as EdgePrism wrote it: an edit by hand is not lost. With the caller's consent
(`overwrite`) any other text may be replaced, but never an input of the command, a picture, or a
model.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprism.bundle.manifest import FILE_NAME
from edgeprism.errors import OutputError, UsageError
from edgeprism.files.atomic import output_error
from edgeprism.output.written import is_as_written
from edgeprism.picture.kinds import has_picture_suffix

MODEL_SUFFIXES = frozenset({".gguf", ".onnx", ".ort", ".safetensors", ".bin", ".pt", ".pth"})
_SAMPLE = 1 << 16  # bytes of an existing file that tell its kind
_PICTURES = (
    b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"8BPS",
    b"\xff\x0a", b"\0\0\0\x0cJXL ", b"\0\0\0\x0cjP  ",
)  # fmt: skip
_MODELS = (b"GGUF",)
# Names that a line of the text form may begin with: a picture's path, or "<stdin>".
_TEXT_LINE = re.compile(r"(?![{\[<#])(?:<stdin>|.*\.[A-Za-z0-9]{2,5}): \S?.*")
_REPORT_KEYS = {"errors": {"image", "error"}, "jsonl": {"image", "caption"}}


@dataclass(frozen=True)
class Place:
    """A file that a command will write."""

    path: Path
    keyword: str  # the library's keyword that names the file, for hints
    form: str  # text | json | jsonl | csv | errors; any other form replaces no existing file


def check_places(
    places: Sequence[Place],
    inputs: Iterable[str | os.PathLike[str]] = (),
    *,
    overwrite: bool = False,
) -> None:
    """Check every path that a command will write to, without writing anything.

    Args:
        places: The files, each with the keyword that named it.
        inputs: Files that the command reads: pictures, lists, data, models. Folders are allowed.
        overwrite: Whether the user agreed to replace texts that EdgePrism did not write, and
            results that were edited since.

    Raises:
        UsageError: A place is an input, or the place of two outputs.
        OutputError: A place is a folder, a picture, a model, another program's file or an edited
            result, or cannot be written.
    """
    inputs = [*inputs]
    for number, place in enumerate(places):
        for other in places[:number]:
            if _is_same(place.path, other.path) and not _is_device(place.path):
                raise UsageError(
                    f"{place.path}: two results cannot go to one file.",
                    f"Give `{other.keyword}` and `{place.keyword}` different files.",
                )
        _check_name(place)
        status = _status(place.path)
        if status is None:
            check_writable(place.path.parent, place.path)
            continue
        if stat.S_ISDIR(status.st_mode):
            raise OutputError(f"{place.path}: is a folder.", "Name a file in it.")
        for path in inputs:
            if _is_status(path, status):
                raise UsageError(
                    f"{place.path}: is an input of this command, so it is not replaced.",
                    f"`{place.keyword}` takes the path of a file to write: give it another one.",
                )
        if stat.S_ISREG(status.st_mode):
            _check_content(place, overwrite=overwrite)
            real = Path(os.path.realpath(place.path))
            check_writable(real.parent, place.path)


def check_report_folder(
    folder: Path,
    names: Sequence[str],
    *,
    keyword: str,
    own: bool,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> None:
    """Check a folder that gets files of fixed names, without writing anything.

    Args:
        folder: The folder, which need not exist.
        names: The files that will be written into it.
        keyword: The library's keyword that names the folder, for hints.
        own: Whether an earlier run of the same command filled the folder, so that its files may
            be replaced.
        inputs: Files that the command reads.

    Raises:
        UsageError: A file to write is an input, or the folder is a model's.
        OutputError: The folder is a file, cannot be written, or holds another program's files
            under these names.
    """
    status = _status(folder)
    if status is not None and not stat.S_ISDIR(status.st_mode):
        raise OutputError(f"{folder}: is not a folder.", f"Choose another `{keyword}`.")
    if (folder / FILE_NAME).is_file():
        raise UsageError(f"{folder}: is a model's folder.", f"Choose another `{keyword}`.")
    read = [*inputs]
    for name in names:
        existing = _status(folder / name)
        if existing is None:
            continue
        if any(_is_status(path, existing) for path in read):
            raise UsageError(
                f"{folder / name}: is an input of this command, so it is not replaced.",
                f"Choose another `{keyword}`.",
            )
        if not stat.S_ISREG(existing.st_mode) or not own:
            raise OutputError(
                f"{folder / name}: exists, and EdgePrism did not write it.",
                f"Choose another `{keyword}`, or move the file away.",
            )
    check_writable(folder, folder)


def check_writable(folder: Path, named: Path) -> None:
    """Raise OutputError, which names `named`, if no file can be created in `folder`.

    A folder that does not exist yet is judged by its nearest existing parent only if `folder` is
    itself the output (`named`); a file needs an existing folder.
    """
    existing = folder
    if folder == named:
        while not os.path.lexists(existing) and existing != existing.parent:
            existing = existing.parent
    try:
        # The system's rules (modes, lists, read-only mounts, quotas) are tried, not guessed.
        with tempfile.TemporaryFile(dir=existing or os.curdir):
            pass
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and not existing.is_dir():
            raise OutputError(f"{folder}: no such folder.", "Create it first.") from error
        raise output_error(existing / named.name, error) from error


def is_same_file(path: str | os.PathLike[str], others: Iterable[str | os.PathLike[str]]) -> bool:
    """Return whether a path leads to one of `others`, through links and spellings too."""
    return any(_is_same(Path(path), Path(other)) for other in others)


def is_own(path: Path, form: str) -> bool:
    """Return whether an existing file is empty or of the form that EdgePrism writes there."""
    with path.open("rb") as file:
        data = file.read(_SAMPLE + 1)
    whole = len(data) <= _SAMPLE
    if not data.strip():
        return True
    try:
        text = data.decode("utf-8", "strict" if whole else "ignore")
    except UnicodeDecodeError:
        return False
    lines = text.splitlines()
    if not whole:
        del lines[-1:]  # the sample may have cut it
    if "\0" in text:
        return False
    if form in _REPORT_KEYS:
        return all(_has_keys(line, _REPORT_KEYS[form]) for line in lines[:100] if line.strip())
    if form == "json":
        return text.strip() == "[]" or (
            text.lstrip()[0] in "[{" and '"image":' in text and '"caption":' in text
        )
    if form == "csv":
        return bool(lines) and lines[0].startswith("image,caption,finish_reason,")
    return form == "text" and all(_TEXT_LINE.fullmatch(line) for line in lines if line.strip())


def _check_name(place: Place) -> None:
    suffix = place.path.suffix.lower()
    for is_wrong, kind in (
        (has_picture_suffix(place.path.name), "picture"), (suffix in MODEL_SUFFIXES, "model"),
    ):  # fmt: skip
        if is_wrong:
            raise OutputError(
                f"{place.path}: has a {kind}'s suffix.",
                f"`{place.keyword}` takes the path of a file to write: give it another name.",
            )


def _check_content(place: Place, *, overwrite: bool) -> None:
    try:
        own = is_own(place.path, place.form)
        if own and (overwrite or _is_blank(place.path) or is_as_written(place.path)):
            return
        with place.path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise OutputError(
            f"{place.path}: exists and cannot be read ({error.strerror}), so it is not replaced.",
            f"Give `{place.keyword}` another name.",
        ) from error
    kind = _kind(head)
    if kind:
        raise OutputError(
            f"{place.path}: is a {kind}, so it is not replaced.",
            f"`{place.keyword}` takes the path of a file to write: give it another name.",
        )
    if not overwrite:
        fact = "did not write it as such a file"
        if own:
            fact = "does not know it as its own: it was edited, or another data folder knows it"
        raise OutputError(
            f"{place.path}: exists, and EdgePrism {fact}.",
            f"Give `{place.keyword}` another name, or replace the file with `overwrite`.",
        )


def _is_blank(path: Path) -> bool:
    """Return whether a file holds nothing but white space; a large one is not looked through."""
    with path.open("rb") as file:
        return not file.read(_SAMPLE).strip() and not file.read(1)


def _kind(head: bytes) -> str:
    """Return "picture", "model" or "binary file" for what consent does not cover, else ""."""
    if head.startswith(_PICTURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "picture"
    if head[4:8] == b"ftyp":
        return "picture"
    if head.startswith(_MODELS):
        return "model"
    return "binary file" if b"\0" in head else ""


def _has_keys(line: str, keys: set[str]) -> bool:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.keys() >= keys


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise output_error(path, error) from error


def _is_status(path: str | os.PathLike[str], status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), status)
    except (OSError, ValueError):  # an input that does not exist is reported by its reader
        return False


def _is_same(one: Path, other: Path) -> bool:
    paths = [os.path.normcase(os.path.realpath(path)) for path in (one, other)]
    if paths[0] == paths[1]:
        return True
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one of them does not exist yet, so their names decide
        return False


def _is_device(path: Path) -> bool:
    """Whether a path is a device, pipe or terminal, on which results may follow each other."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
