"""What to do when this process has run out of memory, files, threads or room on a disk."""

from __future__ import annotations

import errno

from edgeprism.errors import TOO_MANY_FILES
from edgeprism.machine.facts import memory_limit

_HINTS = {
    errno.EMFILE: TOO_MANY_FILES,
    errno.ENFILE: "The system has too many files open: end other programs.",
    errno.EFBIG: "This process may not write files of this size: raise `ulimit -f`.",
    errno.ENOSPC: "The disk is full: free some room.",
    errno.EDQUOT: "The quota of the disk is used up: free some room.",
    errno.EROFS: "This disk is read-only: name another place.",
}
# how dynamic linkers say that a library does not fit into memory
_NO_MEMORY = ("failed to map segment", "annot allocate memory", "cannot allocate")


def shortage_hint(error: BaseException) -> str:
    """Return what to do about `error` if something has run out, else ""."""
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        return _memory_hint()
    if isinstance(error, RuntimeError) and "start new thread" in text:
        return "This user may not start more threads: raise `ulimit -u`, or end other programs."
    if not isinstance(error, OSError):
        return ""
    if error.errno == errno.ENOMEM:
        return _memory_hint()
    return _HINTS.get(error.errno or 0, "")


def _memory_hint() -> str:
    limit = memory_limit()
    if limit is None or limit.is_physical:
        return "Memory ran out: end other programs, or use a smaller model."
    return f"Memory ran out: {limit.size / 1e6:.0f} MB are allowed, by {limit.source}."
