"""A lock for reading a small file, changing it, and writing it back, when several processes do so.

The lock is the system's (`flock`) on the folder that holds the file, so that no lock file is left
behind, and the system frees it when a process ends.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

_WAIT = 5.0  # seconds; such a change takes a few milliseconds
_PAUSE = 0.002


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time into such a block for any file in the folder of `path`.

    The block runs unlocked where nothing can be locked (Windows, a file system without locks, a
    folder that is missing or may not be read), and after a wait of five seconds: the file is then
    still whole, but may lack another process's change. Such blocks must not be nested.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except (OSError, ValueError):
        yield
        return
    try:
        _wait_for(folder)
        yield
    finally:
        _unlock(folder)
        os.close(folder)


def _wait_for(folder: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    end = time.monotonic() + _WAIT
    while time.monotonic() < end:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE)
        except OSError:  # a file system without locks
            return
        else:
            return


def _unlock(folder: int) -> None:
    """Unlock at once: a child process that was forked meanwhile would keep the lock otherwise."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(folder, fcntl.LOCK_UN)
