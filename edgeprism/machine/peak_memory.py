"""Peak resident memory of this process since it was last reset, where the system tells."""

from __future__ import annotations

import contextlib
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Begin anew (Linux: proc(5), clear_refs); elsewhere nothing is measured."""
    with contextlib.suppress(OSError):  # not there, or a container forbids it
        _RESET.write_text("5", encoding="ascii")


def peak_bytes() -> int | None:
    """VmHWM; None where there is no /proc."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("VmHWM:")]
    return int(found[0][1]) * 1024 if found else None
