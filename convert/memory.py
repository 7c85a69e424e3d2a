"""Memory that a conversion no longer needs."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys


def give_memory_back() -> None:
    """Return freed memory to the system; glibc would keep gigabytes of it for later."""
    gc.collect()
    if sys.platform == "linux":
        # other C libraries, e.g. musl, lack malloc_trim and do not need it
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
