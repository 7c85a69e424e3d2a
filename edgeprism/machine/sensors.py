"""What the machine's sensors say while something is measured: clocks and heat.

Linux tells them in sysfs; elsewhere, and in most containers and virtual machines, there are none.
"""

from __future__ import annotations

import statistics
from pathlib import Path

_CPUS, _ZONES = Path("/sys/devices/system/cpu"), Path("/sys/class/thermal")
_CPUINFO = Path("/proc/cpuinfo")


def clock_mhz(cpus: Path = _CPUS, cpuinfo: Path = _CPUINFO) -> float | None:
    """Return the median clock of the cores now, in MHz; None if the system does not say."""
    clocks = [
        value / 1000
        for cpu in _entries(cpus)
        if (value := _number(cpu / "cpufreq" / "scaling_cur_freq")) is not None
    ]
    if not clocks:
        try:
            lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
            clocks = [float(ln.partition(":")[2]) for ln in lines if ln.startswith("cpu MHz")]
        except (OSError, ValueError):
            return None
    return statistics.median(clocks) if clocks else None


def temperature_c(zones: Path = _ZONES) -> float | None:
    """Return the highest temperature of the thermal zones, in °C; None without any."""
    degrees = [
        value / 1000
        for zone in _entries(zones)
        if zone.name.startswith("thermal_zone") and (value := _number(zone / "temp")) is not None
    ]
    return max(degrees, default=None)


def throttle_count(cpus: Path = _CPUS) -> int | None:
    """Return how often cores have slowed down because of heat since the start; None: not told."""
    counts = [
        value
        for cpu in _entries(cpus)
        if (value := _number(cpu / "thermal_throttle" / "core_throttle_count")) is not None
    ]
    return sum(counts) if counts else None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
