"""Paths in the caption store: absolute, and bytes as the file system has them."""

from __future__ import annotations

import os
from pathlib import Path

from edgeprism.files.stamps import status_to_stamp


def path_to_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the absolute path as bytes; any name that the file system allows has its own."""
    return os.fsencode(absolute(path))


def bytes_to_path(data: bytes) -> str:
    """Return the path whose bytes `path_to_bytes` returned."""
    return os.fsdecode(data)


def absolute(path: str | os.PathLike[str]) -> str:
    """Return the absolute path; `link/..` is the parent of the link's target, as for the system.

    The path stays as it is if the working directory is gone.
    """
    text = os.fspath(path)
    try:
        if ".." not in Path(text).parts:
            return os.path.abspath(text)
        folder, name = os.path.split(text)
        whole = name in ("", "..")
        return os.path.realpath(text) if whole else os.path.join(os.path.realpath(folder), name)
    except OSError:
        return text


def is_unchanged(path: str, stamp: str) -> bool:
    """Return whether a file is what it was when it was read, as far as its stamp tells."""
    try:
        return stamp in ("", status_to_stamp(os.stat(path)).text())
    except (OSError, ValueError):
        return False


def can_be(path: str, image: object) -> bool:
    """Return whether an absolute path can be `image`, whose folder nobody may know any more."""
    if not isinstance(image, str):
        return False
    return path == image or path.endswith(os.path.normpath("/" + image))
