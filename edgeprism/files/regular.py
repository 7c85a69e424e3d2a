"""Open a file only if it is a regular one; read a file that a person names within a limit."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from edgeprism.errors import TOO_MANY_FILES


def open_regular(path: Path, *, pipe: bool = False) -> BinaryIO:
    """Open a regular file for reading bytes; with `pipe` also a pipe, as of `<(command)`.

    Raises OSError for anything else: to open a pipe, or to read a device, could take for ever. A
    pipe that no program writes to is read as an empty file.
    """
    # O_NONBLOCK makes a pipe without a writer open at once; it has no effect on a regular file
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(handle).st_mode
    if pipe and stat.S_ISFIFO(mode):
        os.set_blocking(handle, True)  # so that reading waits for a slow writer
    elif not stat.S_ISREG(mode):
        os.close(handle)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return os.fdopen(handle, "rb")


def read_limited(path: Path, limit: int, *, pipe: bool = False) -> bytes:
    """Return a file's bytes, at most `limit` of them.

    Raises OSError, whose `strerror` says so, if it holds more; else as `open_regular`.
    """
    with open_regular(path, pipe=pipe) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit:,} bytes"
        reason = f"holds more than {size}"
        raise OSError(errno.EFBIG, reason, os.fspath(path))
    return data


def reading_hint(error: OSError) -> str:
    """Return what to do about a file that cannot be read."""
    return TOO_MANY_FILES if error.errno == errno.EMFILE else "Check its permissions."
