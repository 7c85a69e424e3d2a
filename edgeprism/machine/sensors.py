"""What the machine's sensors say while something is measured: energy, clocks, heat.

Linux tells them in sysfs; elsewhere, and in most containers and virtual machines, there are none.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"intel-rapl:\d+")  # the kernel's name on AMD's processors too
_CPUS, _ZONES = Path("/sys/devices/system/cpu"), Path("/sys/class/thermal")
_CPUINFO = Path("/proc/cpuinfo")


class EnergyMeter:
    """Counts the joules of all processor packages by RAPL's counters.

    `reason` says why it cannot; "" if it can.
    """

    def __init__(self, root: Path = _POWERCAP) -> None:
        self.joules = 0.0
        self.reason = ""
        self._zones = [zone for zone in _entries(root) if _PACKAGE.fullmatch(zone.name)]
        if not self._zones:
            self.reason = f"the system has no energy counters in {root}"
        try:
            self._read()
        except (OSError, ValueError) as error:
            named = getattr(error, "filename", None) or root
            self.reason = f"{named}: {getattr(error, 'strerror', None) or error}"

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text(encoding="ascii")) for zone in self._zones]

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Add the energy that is used inside the block to `joules`."""
        before = [] if self.reason else self._read()
        yield
        if self.reason:
            return
        for zone, start, end in zip(self._zones, before, self._read(), strict=True):
            used = end - start
            if used < 0:  # the counter has begun anew
                used += int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
            self.joules += used / 1e6


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
