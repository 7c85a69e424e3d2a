"""Files that appear whole or not at all: written beside their place, then renamed into it.

`NAME` is written as `.NAME.partial-PID`, brought to the disk and renamed over `NAME`. Where a
file system renames, but not over an existing file, the old one steps aside as `.NAME.old-PID`
for a moment. Both kinds of leftover of a process that was killed are cleared by `clear_leftovers`
when their file is about to be written again. A process is looked for on this machine only: where
two machines write the same output on one network drive, each needs a name of its own.
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
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>partial|old)-(?P<pid>[0-9]{1,10})", re.DOTALL)
_LONGEST_STEM = MAX_NAME_BYTES - len("..partial-4294967295")
_LONGEST_SUFFIX = 8
_NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class AtomicFile:
    """A binary file that takes its place when `commit` is called; without it, nothing happened.

    As a context manager it commits, or discards after an exception. `durable` also brings the
    folder's entry to the disk: a loss of power then cannot bring back the old file.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        """Open the partial file. Raises OutputError, which names the folder or file."""
        self.path = path
        self._durable = durable
        self._partial = path.with_name(_beside(path.name, "partial"))
        self._file: BinaryIO | None = None
        try:
            self._file = _open_new(self._partial)
            _copy_mode(path, self._file)
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
        """Bring the content to the disk and the file to its place; raises OutputError."""
        file = self._opened()
        try:
            file.flush()
            _fsync(file.fileno())
            file.close()
            _replace(self._partial, self.path)
            if self._durable:
                _fsync_folder(self.path.parent)
        except OSError as error:
            self.discard()
            raise output_error(self.path, error) from error
        self._file = None

    def discard(self) -> None:
        """Leave no trace; what stood at the path still does. Does nothing after `commit`."""
        if self._file is None:
            return
        # the disk may be gone or full: what matters is why we discard, not that it fails too
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._partial.unlink()
        self._file = None

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
    """Put `data` at `path` in one step; raises OutputError and leaves the old content then."""
    with AtomicFile(path, durable=durable) as file:
        file.write(data)


def clear_leftovers(
    folder: Path, names: Iterable[str], *, of: str | None = None, suffix: str = ""
) -> None:
    """Remove what killed processes left in `folder`, whose entries are `names`.

    Only leftovers of the file named `of`, or of files with `suffix`. An old file that had
    stepped aside goes back when its place is still empty.
    """
    wanted = None if of is None else shortened(of, _LONGEST_STEM)
    for name in names:
        match = _LEFTOVER.fullmatch(name)
        if match is None or not match["name"].endswith(suffix) or is_running(int(match["pid"])):
            continue
        if wanted not in (None, match["name"]):
            continue
        leftover, place = folder / name, folder / (of or match["name"])
        # another process may be clearing the same folder, or it may be read-only: not our matter
        with suppress(OSError):
            if match["kind"] == "partial" or os.path.lexists(place):
                leftover.unlink()
            elif of is not None or len(os.fsencode(match["name"])) < _LONGEST_STEM - 3:
                os.rename(leftover, place)  # a shortened name does not tell its place


def output_error(path: Path, error: OSError | ValueError) -> OutputError:
    """The OutputError for what the system says about writing `path`."""
    code = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or str(error)
    if code in _NO_SPACE:
        return OutputError(
            f"{path}: no space to write it: {reason}.",
            "Free some space and start again; what is done is kept.",
        )
    if code == errno.ENAMETOOLONG:
        return OutputError(
            f"{path}: its name is too long for this file system.", "Choose another `out_dir`."
        )
    if code in _FORBIDDEN and not os.path.isdir(path):
        return OutputError(
            f"{path.parent}: cannot be written: {reason}.",
            "Choose another folder, for files beside pictures with `out_dir`.",
        )
    if code == errno.ENOENT:
        return OutputError(f"{path.parent}: no such folder.", "Create it first.")
    return OutputError(f"{path}: cannot be written: {reason}.", "Choose another place.")


def shortened(name: str, most: int) -> str:
    """`name` when it has at most `most` bytes; else its beginning, a hash of all, its suffix."""
    data = os.fsencode(name)
    if len(data) <= most:
        return name
    suffix = os.path.splitext(name)[1]
    suffix = suffix if len(os.fsencode(suffix)) <= _LONGEST_SUFFIX else ""
    ending = f"-{hashlib.sha256(data).hexdigest()[:12]}{suffix}"
    # cut between characters: half of one would be no valid name everywhere
    return data[: most - len(os.fsencode(ending))].decode("utf-8", "ignore") + ending


def _beside(name: str, kind: str) -> str:
    return f".{shortened(name, _LONGEST_STEM)}.{kind}-{os.getpid()}"


def _open_new(path: Path) -> BinaryIO:
    """Exclusively, so that nothing is written through a link that lies in wait."""
    try:
        return open(path, "xb")
    except FileExistsError:
        path.unlink()  # of an earlier process with our id
        return open(path, "xb")


def _copy_mode(path: Path, file: BinaryIO) -> None:
    with suppress(OSError):  # nothing there yet; some file systems have no modes
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode) and sys.platform != "win32":
            os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))


def _replace(partial: Path, path: Path) -> None:
    try:
        os.replace(partial, path)
        return
    except OSError:
        if not path.is_file():  # nothing stands in the way that could step aside
            raise
    aside = path.with_name(_beside(path.name, "old"))
    os.rename(path, aside)
    try:
        os.rename(partial, path)
    except OSError:
        os.rename(aside, path)
        raise
    aside.unlink()


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:  # file systems that cannot are no reason to fail
            raise


def _fsync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return  # folders cannot be opened there, and renames are journalled
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return  # one may write in a folder that one may not read
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)


def is_running(pid: int) -> bool:
    """Whether there is a process of that number on this machine."""
    if sys.platform == "win32":
        return _is_running_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # another user's, or no number of a process: not ours to remove
    return True


def _is_running_on_windows(pid: int) -> bool:
    """`os.kill` would end the process there instead of asking for it."""
    import ctypes

    still_active, query = 259, 0x1000
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    handle = kernel.OpenProcess(query, False, pid)
    if not handle:
        return bool(kernel.GetLastError() == 5)  # access denied: it is there
    code = ctypes.c_ulong()
    kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return code.value == still_active
