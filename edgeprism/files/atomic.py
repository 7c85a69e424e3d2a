"""Files that appear whole or not at all: written to a temporary file, then renamed.

`AtomicFile` writes `NAME` as `.NAME.edgeprism.partial-PID` in the same folder, flushes it to the
disk and renames it over `NAME`. Some file systems cannot rename over an existing file: there the
old file is first renamed to `.NAME.edgeprism.old-PID`, and removed at the end. A killed process
may leave both kinds of file behind; `clear_leftovers` removes them before their file is written
again. Their names say whose they are, so that no other program's file is taken for one. It asks
only this machine whether a process still runs, so two machines that write to one network drive
must write under different names.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from edgeprism.errors import OutputError

MAX_NAME_BYTES = 255
_LEFTOVER = re.compile(
    r"\.(?P<name>.+)\.edgeprism\.(?P<kind>partial|old)-(?P<pid>[0-9]{1,10})", re.DOTALL
)
_LONGEST_STEM = MAX_NAME_BYTES - len("..edgeprism.partial-4294967295")
_LONGEST_SUFFIX = 8
_NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


_unfinished: set[tuple[int, Path]] = set()  # process and partial file


def discard_unfinished() -> None:
    """Remove the partial files of this process, which is about to end; an older file stays."""
    for process, partial in list(_unfinished):
        if process == os.getpid():  # not those of the process that this one was forked from
            with suppress(OSError):
                partial.unlink()


class AtomicFile:
    """A binary file that appears at `path` when `commit` is called, and not before.

    As a context manager it commits, or discards after an exception. `durable` also flushes the
    folder's entry to the disk, so that a loss of power cannot bring back the old file.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        """Open the partial file. Raises OutputError, which names the folder or file."""
        self.path = path
        self._durable = durable
        self._partial = path.with_name(_temporary_name(path.name, "partial"))
        self._file: BinaryIO | None = None
        self._entry = (os.getpid(), self._partial)
        _unfinished.add(self._entry)
        try:
            self._file = _open_new(self._partial)
            _copy_attributes(path, self._file)
        except OutputError:
            self.discard()
            raise
        except (OSError, ValueError) as error:
            self.discard()
            raise output_error(path, error) from error

    def write(self, data: bytes) -> None:
        """Append `data`. Raises OutputError; the caller then discards."""
        try:
            self._opened().write(data)
        except OSError as error:
            raise output_error(self.path, error) from error

    def commit(self) -> None:
        """Flush the content to the disk and rename the file to `path`; raises OutputError."""
        file = self._opened()
        try:
            file.flush()
            _fsync(file.fileno())
            file.close()
            _replace(self._partial, self.path)
            if self._durable:
                flush_to_disk(self.path.parent)
        except OSError as error:
            self.discard()
            raise output_error(self.path, error) from error
        self._file = None
        _unfinished.discard(self._entry)

    def discard(self) -> None:
        """Remove the partial file; an older file at `path` stays. Do nothing after `commit`."""
        if self._file is None:
            _unfinished.discard(self._entry)
            return
        # The disk may be gone or full. The caller reports the first error, so a second one while
        # cleaning up is ignored.
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._partial.unlink()
        self._file = None
        _unfinished.discard(self._entry)

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()

    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise OutputError(f"{self.path}: written after it was finished.")
        return self._file


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write `data` to `path` in one step; if that raises OutputError, the old content stays."""
    with AtomicFile(path, durable=durable) as file:
        file.write(data)


def clear_leftovers(
    folder: Path, names: Iterable[str], *, of: str | None = None, suffix: str = ""
) -> None:
    """Remove files that killed processes left in `folder`; `names` are the folder's entries.

    It touches only leftovers of the file named `of`, or of files with `suffix`. If an old file was
    renamed to make room and nothing took its place, it gets its name back.
    """
    stem = None if of is None else shortened(of, _LONGEST_STEM)
    for name in names:
        match = _LEFTOVER.fullmatch(name)
        if match is None or not match["name"].endswith(suffix) or is_running(int(match["pid"])):
            continue
        if stem not in (None, match["name"]):
            continue
        leftover, place = folder / name, folder / (of or match["name"])
        # Another process may be clearing the same folder, or the folder may be read-only. Neither
        # keeps the caller from its work.
        with suppress(OSError):
            if match["kind"] == "partial" or os.path.lexists(place):
                leftover.unlink()
            elif of is not None or len(os.fsencode(match["name"])) < _LONGEST_STEM - 3:
                os.rename(leftover, place)  # the original of a shortened name is not known


def output_error(path: Path, error: OSError | ValueError) -> OutputError:
    """Return the OutputError for a system error that was raised while writing `path`."""
    code = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or str(error)
    if code in _NO_SPACE:
        return OutputError(
            f"{path}: no space to write it: {reason}.",
            "Free some space and start again; finished results stay.",
        )
    if code == errno.ENAMETOOLONG:
        return OutputError(
            f"{path}: its name is too long for this file system.", "Choose another `out_dir`."
        )
    if code in _FORBIDDEN and not os.path.isdir(path):
        return OutputError(
            f"{path.parent}: cannot be written: {reason}.",
            "Choose another folder; for files next to pictures, name one with `out_dir`.",
        )
    if code == errno.ENOENT:
        return OutputError(f"{path.parent}: no such folder.", "Create it first.")
    return OutputError(f"{path}: cannot be written: {reason}.", "Choose another place.")


def is_disk_full(error: OSError) -> bool:
    """Return whether a disk, a quota or the limit of a file's size left no room to write."""
    return error.errno in _NO_SPACE


def shortened(name: str, limit: int) -> str:
    """Return `name` in at most `limit` bytes: as it is, or as beginning, hash and suffix."""
    data = os.fsencode(name)
    if len(data) <= limit:
        return name
    suffix = os.path.splitext(name)[1]
    suffix = suffix if len(os.fsencode(suffix)) <= _LONGEST_SUFFIX else ""
    ending = f"-{hashlib.sha256(data).hexdigest()[:12]}{suffix}"
    # cut between characters: some file systems refuse a name that ends in half a character
    return data[: limit - len(os.fsencode(ending))].decode("utf-8", "ignore") + ending


def _temporary_name(name: str, kind: str) -> str:
    return f".{shortened(name, _LONGEST_STEM)}.edgeprism.{kind}-{os.getpid()}"


def _open_new(path: Path) -> BinaryIO:
    """Create `path`, which must not exist, so that nothing is written through a planted link."""
    try:
        return open(path, "xb")
    except FileExistsError:
        path.unlink()  # an earlier process with the same id left it
        return open(path, "xb")


def _copy_attributes(path: Path, file: BinaryIO) -> None:
    """Give the new file the older one's owner, mode and extended attributes.

    Raises OutputError if they cannot be kept: they may be what lets others read the file.
    """
    try:
        status = os.lstat(path)
    except OSError:
        return  # there is no older file
    if not stat.S_ISREG(status.st_mode) or sys.platform == "win32":
        return
    new = os.fstat(file.fileno())
    if (status.st_uid, status.st_gid) != (new.st_uid, new.st_gid):
        try:
            os.fchown(file.fileno(), status.st_uid, status.st_gid)
        except OSError as error:
            raise OutputError(
                f"{path}: belongs to another user or group, which a new file cannot: "
                f"{error.strerror}.",
                "Run this as its owner, or choose another place.",
            ) from error
    with suppress(OSError):  # the file system has no modes
        os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
    if sys.platform == "linux":  # elsewhere Python cannot read them
        _copy_extended_attributes(path, file)


def _copy_extended_attributes(path: Path, file: BinaryIO) -> None:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return  # the file system has none
    for name in names:
        if name.startswith(("security.", "trusted.")):
            continue  # the system's own, which it gives to every file
        value = os.getxattr(path, name, follow_symlinks=False)
        try:
            os.setxattr(file.fileno(), name, value)
        except OSError as error:
            raise OutputError(
                f"{path}: its attribute {name} cannot be kept: {error.strerror}.",
                "Choose another place.",
            ) from error


def _replace(partial: Path, path: Path) -> None:
    try:
        os.replace(partial, path)
        return
    except OSError:
        if not path.is_file():  # no older file caused the error
            raise
    old = path.with_name(_temporary_name(path.name, "old"))
    os.rename(path, old)
    try:
        os.rename(partial, path)
    except OSError:
        os.rename(old, path)
        raise
    old.unlink()


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:  # some file systems cannot flush: that is no failure
            raise


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    if sys.platform == "win32":
        return  # Windows cannot open folders, and NTFS journals renames
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return  # a user may be allowed to write to a folder but not to read it
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)


def is_running(pid: int) -> bool:
    """Return whether a process with this id runs on this machine."""
    if sys.platform == "win32":
        return _is_running_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # another user's process, or an impossible id: leave its files alone
    return True


def _is_running_on_windows(pid: int) -> bool:
    """Like `is_running`; on Windows `os.kill` would end the process instead of looking for it."""
    import ctypes

    still_active, query = 259, 0x1000
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    handle = kernel.OpenProcess(query, False, pid)
    if not handle:
        return bool(kernel.GetLastError() == 5)  # access denied: the process exists
    code = ctypes.c_ulong()
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return code.value == still_active
