"""Claims: which process captions a picture now.

A claim is a lease of LEASE_S seconds, which its process renews while it lives. A process on this
machine that has ended holds none. Of another machine only the clock can tell, and it may be wrong:
so whoever waits believes a claim while it is being renewed, and for one lease at most if not.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from edgeprism.files.atomic import is_running

LEASE_S = 20.0
RENEW_S = 5.0


@dataclass
class Holders:
    """Judges the claims that this process meets; `host` is this machine's name."""

    host: str
    _met: dict[str, tuple[tuple[str, int, float], float]] = field(default_factory=dict)

    def is_held(self, key: str, host: str, pid: int, until: float) -> bool:
        """Return whether another living process holds this claim."""
        if (host, pid) == (self.host, os.getpid()) or self._has_ended(host, pid, until):
            self._met.pop(key, None)
            return False
        claim, now = (host, pid, until), time.monotonic()
        before, since = self._met.get(key, (None, now))
        if before != claim:
            self._met[key] = (claim, now)
            return True
        return now - since < LEASE_S

    def is_stale(self, host: str, pid: int, until: float) -> bool:
        """Return whether no living process with a right clock can hold this claim."""
        too_long = until - time.time() > LEASE_S + RENEW_S
        return too_long or self._has_ended(host, pid, until)

    def _has_ended(self, host: str, pid: int, until: float) -> bool:
        return until < time.time() or (host == self.host and not is_running(pid))
