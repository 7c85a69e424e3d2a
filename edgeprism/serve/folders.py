"""Pictures in the folders that a server was started with, and in no others.

A program that asks for a picture may be led by a stranger's text. So a path is resolved first, and
what it leads to must lie in one of the folders: nothing is said of files elsewhere, not even
whether they exist. The file is then opened part by part from the folder, without following a link,
so that nobody can put a link in its place meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import BinaryIO

from edgeprism.errors import UsageError
from edgeprism.files.safe_text import short_line
from edgeprism.serve.refusals import Refusal

_NAME_CHARS = 200  # of a path that a message repeats
_MOST_NAMED = 3  # folders that a message names


class Folders:
    """The folders whose pictures may be read."""

    def __init__(self, paths: Sequence[str]) -> None:
        """Raise UsageError for a path that is no folder."""
        self._given = [os.path.abspath(os.path.expanduser(path)) for path in paths]
        for path in self._given:
            if not os.path.isdir(path):
                raise UsageError(f"{path}: no such folder.", "Name folders that hold pictures.")
        self.roots = [Path(os.path.realpath(path)) for path in self._given]

    def __str__(self) -> str:
        named = [short_line(path, _NAME_CHARS) for path in self._given[:_MOST_NAMED]]
        return ", ".join([*named, "…"] if len(self._given) > _MOST_NAMED else named)

    def size(self, path: str) -> int:
        """Return the bytes that a picture's file holds. Raises Refusal as `read` does."""
        with self._opened(path) as file:
            return os.fstat(file.fileno()).st_size

    def read(self, path: str, limit: int) -> bytes:
        """Return the bytes of a picture, at most `limit`.

        A relative path starts in the first folder that has such a file. Raises Refusal for a path
        that leads out of the folders, and for what is no file; nothing is read of a file that holds
        more than `limit`.
        """
        with self._opened(path) as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise Refusal(
                    413, "too_large", f"{_shown(path)}: larger than {limit >> 20} MiB.",
                    "Name a smaller picture.",
                )  # fmt: skip
            try:
                return file.read(limit)
            except OSError as error:
                raise self._unreadable(path, error) from error

    def _opened(self, path: str) -> BinaryIO:
        root, inside = self._find(path)
        try:
            return open(_open_below(root, inside), "rb")
        except OSError as error:
            raise self._unreadable(path, error) from error

    def _find(self, path: str) -> tuple[Path, PurePath]:
        """Return the folder that a path leads into, and where it leads there."""
        if not _is_plain(path):
            raise self._refused(path)
        missing, leads_out = None, False
        for root in self.roots:
            resolved = Path(os.path.realpath(root / path))  # an absolute path stays as it is
            own = next((each for each in self.roots if resolved.is_relative_to(each)), None)
            if own is None:
                leads_out = True
            elif os.path.exists(resolved):
                return own, resolved.relative_to(own)
            else:
                missing = missing or (own, resolved.relative_to(own))
        if missing is None or leads_out:
            raise self._refused(path)
        return missing

    def _refused(self, path: str) -> Refusal:
        return Refusal(
            403, "outside", f"{_shown(path)}: not in a folder that may be read ({self}).",
            "Name a picture in one of these folders, by its path without `..`.",
        )  # fmt: skip

    def _unreadable(self, path: str, error: OSError) -> Refusal:
        if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            return Refusal(
                404, "not_found", f"{_shown(path)}: there is no such file.",
                f"Name a picture in {self}, by its whole path.",
            )  # fmt: skip
        if error.errno in (errno.EISDIR, errno.EINVAL):
            return Refusal(
                400, "not_a_picture", f"{_shown(path)}: not a file.", "Name one picture's file."
            )
        reason = error.strerror or type(error).__name__
        return Refusal(
            403, "unreadable", f"{_shown(path)}: cannot be opened: {reason}.",
            "Name a picture that may be read.",
        )  # fmt: skip


def _is_plain(path: str) -> bool:
    """Return whether a path can be one of the system's, and steps nowhere up."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # half of a character
        return False
    steps = PurePath(path.replace("\\", "/")).parts
    return bool(path) and "\0" not in path and ".." not in steps


def _open_below(root: Path, inside: PurePath) -> int:
    """Open a regular file below a folder; none of the parts in between may be a link by now."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if os.open not in os.supports_dir_fd:  # Windows
        handle = os.open(root / inside, flags)
    elif not inside.parts:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    else:
        *folders, name = inside.parts
        at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for folder in folders:
                step = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                below = os.open(folder, step, dir_fd=at)
                os.close(at)
                at = below
            handle = os.open(name, flags | os.O_NOFOLLOW, dir_fd=at)
        finally:
            os.close(at)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):  # to read a pipe or a device could take for ever
        os.close(handle)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, os.strerror(number))
    return handle


def _shown(path: str) -> str:
    return short_line(path, _NAME_CHARS) or "The path"
