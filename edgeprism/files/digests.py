"""sha256 of files: computed once, then remembered by (size, mtime, ctime, inode).

A program that changes a file can set mtime back; ctime is set by the system alone.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from edgeprism.errors import ModelError
from edgeprism.files.regular import open_regular, reading_hint
from edgeprism.files.remembered import Remembered
from edgeprism.files.stamps import status_to_stamp

_CHUNK = 1 << 20

_digests = Remembered("verified.json")


def file_digest(path: Path, *, again: bool = False, remember: bool = True) -> str:
    """Return the sha256 of a file: computed once, then remembered.

    `again` computes it even if it is remembered, and without `remember` nothing is written. Raises
    ModelError if the file cannot be read.
    """
    try:
        status = path.stat()
        stamp = status_to_stamp(status)
        key = str(path.resolve())
        match _digests.read().get(key):
            case [str(digest), known] if known == stamp.text() and not again:
                return digest
        digest = sha256_of_file(path)
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read: {error.strerror}.",
            reading_hint(error),
        ) from error
    if remember and stamp.settled:  # else a change that follows at once might not show
        _digests.remember(key, [digest, stamp.text()])
    return digest


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal.

    It reads as many bytes as the file has when it is opened, so a file that grows cannot keep it
    reading. Raises OSError, also for what is not a regular file.
    """
    with open_regular(path) as file:
        return sha256_of_open_file(file)


def sha256_of_open_file(file: BinaryIO) -> str:
    """Return the sha256 of an open file's bytes from here on; bounded as `sha256_of_file`."""
    digest = hashlib.sha256()
    left = os.fstat(file.fileno()).st_size
    while left and (chunk := file.read(min(left, _CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest()
