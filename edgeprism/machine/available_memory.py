"""How much memory is free for this process at the moment."""

from __future__ import annotations

from pathlib import Path

from edgeprism.machine.facts import memory_bytes

_KIB = 1024


def available_memory(proc: Path = Path("/proc")) -> int | None:
    """Return how many bytes this process can still take without swapping, or None if unknown.

    It is what the system has available, and at most the rest of what this process may use.
    """
    free = _kib(proc / "meminfo", "MemAvailable:")
    limit, used = memory_bytes(), _kib(proc / "self" / "status", "VmRSS:")
    rest = limit - (used or 0) if limit is not None else None
    known = [max(0, value) for value in (free, rest) if value is not None]
    return min(known, default=None)


def _kib(path: Path, name: str) -> int | None:
    """Return the value of one line of a file in /proc, in bytes; None if it is not there."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * _KIB
    except (OSError, ValueError, IndexError):
        pass  # only Linux has these files
    return None
