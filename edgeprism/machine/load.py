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
    before, own = _busy_ticks(stat), time.process_time()
    if before is None:
        return 0
    time.sleep(window_s)
    after, own = _busy_ticks(stat), time.process_time() - own
    if after is None:
        return 0
    busy = (after - before) / os.sysconf("SC_CLK_TCK") - own
    return max(0, round(busy / window_s))


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
