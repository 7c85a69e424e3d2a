"""How many of this process's cores others use now."""

from __future__ import annotations

import os
import time
from pathlib import Path

_WINDOW_S = 0.1
_STAT = Path("/proc/stat")


def busy_cores(window_s: float = _WINDOW_S, stat: Path = _STAT) -> int:
    """Return how many of the cores that this process may use others keep busy, rounded.

    It waits for `window_s` seconds and compares the kernel's counts of idle time before and after,
    less what this process has used itself. Returns 0 on systems without `/proc/stat`.
    """
    return LoadMeter(stat).busy_cores(window_s)


class LoadMeter:
    """Measures how many cores other programs keep busy, from when it is made."""

    def __init__(self, stat: Path = _STAT) -> None:
        self._stat = stat
        self._ticks, self._own, self._start = _busy_ticks(stat), _own_seconds(), time.monotonic()

    def busy_cores(self, window_s: float = _WINDOW_S) -> int:
        """Return `others`, rounded; waits until the meter has run for `window_s` seconds."""
        if self._ticks is None:
            return 0
        time.sleep(max(0.0, self._start + window_s - time.monotonic()))
        return round(self.others() or 0.0)

    def others(self) -> float | None:
        """Return the mean number of cores that others kept busy; None without `/proc/stat`.

        The time of this process's children counts as its own once they have ended.
        """
        ticks = _busy_ticks(self._stat)
        if self._ticks is None or ticks is None:
            return None
        busy = (ticks - self._ticks) / os.sysconf("SC_CLK_TCK") - (_own_seconds() - self._own)
        return max(0.0, busy) / max(time.monotonic() - self._start, 1e-9)


def _own_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def _busy_ticks(stat: Path) -> int | None:
    """Return the clock ticks that the cores of this process have been busy; None if not told."""
    try:
        lines = stat.read_text(encoding="ascii", errors="replace").splitlines()
        own = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    except (OSError, AttributeError):  # not Linux
        return None
    ticks = 0
    for line in lines:
        name, *times = line.split()
        if name in own and len(times) >= 5:
            user, nice, system, _idle, _wait, *others = map(int, times[:8])  # proc(5)
            ticks += user + nice + system + sum(others)
    return ticks
