"""Peak resident memory of this process since the last reset, on systems that report it."""

from __future__ import annotations

import contextlib
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Start a new measurement (Linux: proc(5), clear_refs); does nothing on other systems."""
    with contextlib.suppress(OSError):  # the file does not exist, or a container forbids writing
        _RESET.write_text("5", encoding="ascii")


def peak_bytes() -> int | None:
    """Return VmHWM in bytes, or None without /proc."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith("VmHWM:")]  # KiB
    return int(values[0]) * 1024 if values else None
