"""Stamps: whether a file is unchanged, told from its status without reading it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

# Linux sets a file's times from a clock that ticks every 1 to 10 ms.
_TICK_NS = 20_000_000
# File systems with whole seconds (HFS+, NFS from an old server) or two of them (FAT).
_COARSE_TICK_NS = 2_000_000_000
_SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class FileStamp:
    """Size, times and inode of a file.

    No program can set the time of change (ctime): it tells of content replaced with size and
    date kept, and the inode of a file that another was renamed over. `settled` says that the last
    change lies further back than a tick of the file system's clock: a later change will show.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    settled: bool

    def text(self) -> str:
        """Everything but `settled`, as text; the numbers may exceed a database's integers."""
        return f"{self.size}:{self.mtime_ns}:{self.ctime_ns}:{self.inode}"


def status_to_stamp(status: os.stat_result) -> FileStamp:
    """Return the stamp of a status that has just been read, before the file is."""
    coarse = status.st_ctime_ns % _SECOND_NS == 0
    age_ns = time.time_ns() - status.st_ctime_ns
    return FileStamp(
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
        settled=age_ns > (_COARSE_TICK_NS if coarse else _TICK_NS),
    )
