"""Joules that this machine uses while something is measured, by whatever sensor it has.

RAPL counts the processor's packages, Jetson's INA3221 chips tell the power of the board's rails,
and NVML counts a GPU. Most systems let only root read RAPL, and virtual machines have no sensor.
Sources: the kernel's power capping framework, hwmon's sysfs interface, NVIDIA's NVML (all public).
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

_POWERCAP, _HWMON = Path("/sys/class/powercap"), Path("/sys/class/hwmon")
_PACKAGE = re.compile(r"intel-rapl:\d+")  # the kernel's name on AMD's processors too
_RAIL = re.compile(r"in(\d+)_label")
_WHOLE_BOARD = ("VDD_IN", "POM_5V_IN")  # Jetson's names of the rail that feeds all others
_SUMS = "sum of"  # Jetson's label of a channel that adds up the others
_POLL_S = 0.05
_NVML_LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")
_NVML_SUCCESS = 0


class Sensor(Protocol):
    """Something that counts joules; it raises OSError or ValueError where it cannot be read."""

    name: str

    def start(self) -> None:
        """Begin to count."""

    def stop(self) -> float:
        """Return the joules since `start`."""


class EnergyMeter:
    """Counts the joules of all sensors that can be read, together.

    `reason` says why there is none; "" if there is one. `names` says what is counted.
    """

    def __init__(
        self, root: Path = _POWERCAP, hwmon: Path = _HWMON, gpus: Sequence[Sensor] | None = None
    ) -> None:
        self.joules = 0.0
        self._sensors: list[Sensor] = []
        reasons = []
        found: list[Sensor] = [*board_rails(hwmon)]
        if not found:  # a board's rails feed processor and GPU: beside them nothing is counted
            found = [*rapl_packages(root), *(nvml_gpus() if gpus is None else gpus)]
        for sensor in found:
            try:
                sensor.start()
                sensor.stop()
                self._sensors.append(sensor)
            except (OSError, ValueError) as error:
                named = getattr(error, "filename", None) or sensor.name
                reasons.append(f"{named}: {getattr(error, 'strerror', None) or error}")
        nothing = f"the system has no energy counters in {root}, no power sensors in {hwmon}"
        if sys.platform == "darwin":
            nothing = "macOS tells it to root alone, through powermetrics"
        self.reason = "" if self._sensors else "; ".join(reasons) or nothing

    @property
    def names(self) -> str:
        """What is counted, in words."""
        return ", ".join(sensor.name for sensor in self._sensors)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Add the energy that is used inside the block to `joules`."""
        with self._failing():
            for sensor in self._sensors:
                sensor.start()
        yield
        with self._failing():
            self.joules += sum([sensor.stop() for sensor in self._sensors])

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Give up, and say why, where a sensor fails inside the block."""
        try:
            yield
        except (OSError, ValueError) as error:
            self.reason, self._sensors = f"a sensor failed meanwhile: {error}", []


# ---- the processor


class RaplPackage:
    """One processor package, whose counter begins anew at its end."""

    def __init__(self, zone: Path) -> None:
        self.name, self._zone, self._begin = f"processor package {zone.name}", zone, 0

    def start(self) -> None:
        """Begin to count."""
        self._begin = self._read("energy_uj")

    def stop(self) -> float:
        """Return the joules since `start`."""
        used = self._read("energy_uj") - self._begin
        if used < 0:
            used += self._read("max_energy_range_uj")
        return used / 1e6

    def _read(self, name: str) -> int:
        return int((self._zone / name).read_text(encoding="ascii"))


def rapl_packages(root: Path = _POWERCAP) -> list[RaplPackage]:
    """Return the processor packages that RAPL counts; their parts are counted in them."""
    return [RaplPackage(zone) for zone in _entries(root) if _PACKAGE.fullmatch(zone.name)]


# ---- Jetson's board


class PowerRail:
    """A rail whose power is told, and so added up while it is counted."""

    def __init__(self, label: str, volts: Path, amperes: Path, poll_s: float = _POLL_S) -> None:
        self.name, self._volts, self._amperes = f"rail {label}", volts, amperes
        self._poll_s, self._joules = poll_s, 0.0
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to count, in a thread."""
        watts = self._watts()  # raises where it cannot be read
        self._joules, self._end = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._add_up, args=(watts,), daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Return the joules since `start`."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        return self._joules

    def _add_up(self, watts: float) -> None:
        at = time.monotonic()
        ended = False
        while not ended:
            ended = self._end.wait(self._poll_s)
            try:
                now = self._watts()
            except (OSError, ValueError):
                now = watts  # a reading that failed is taken as the one before
            then = time.monotonic()
            self._joules += (watts + now) / 2 * (then - at)
            watts, at = now, then

    def _watts(self) -> float:
        millivolts, milliamperes = (
            int(path.read_text(encoding="ascii")) for path in (self._volts, self._amperes)
        )
        return millivolts * milliamperes / 1e6


def board_rails(hwmon: Path = _HWMON) -> list[PowerRail]:
    """Return the rails that a Jetson's INA3221 chips measure: the board's own input, else all."""
    rails: dict[str, PowerRail] = {}
    for chip in _entries(hwmon):
        try:
            if (chip / "name").read_text(encoding="ascii").strip() != "ina3221":
                continue
        except (OSError, ValueError):
            continue
        for entry in _entries(chip):
            match = _RAIL.fullmatch(entry.name)
            if match is None:
                continue
            label = entry.read_text(encoding="ascii", errors="replace").strip()
            volts, amperes = chip / f"in{match[1]}_input", chip / f"curr{match[1]}_input"
            if volts.exists() and amperes.exists() and not label.startswith(_SUMS):
                rails[label] = PowerRail(label, volts, amperes)
    whole = [rails[label] for label in _WHOLE_BOARD if label in rails]
    return whole or list(rails.values())


# ---- NVIDIA's GPUs


class NvmlGpu:
    """A GPU that counts its own millijoules (Volta and later)."""

    def __init__(self, nvml: ctypes.CDLL, index: int) -> None:
        self.name, self._nvml, self._begin = f"GPU {index}", nvml, 0
        self._device = ctypes.c_void_p()
        self._known = nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(self._device))

    def start(self) -> None:
        """Begin to count."""
        self._begin = self._read()

    def stop(self) -> float:
        """Return the joules since `start`."""
        return (self._read() - self._begin) / 1e3

    def _read(self) -> int:
        count = ctypes.c_ulonglong()
        code = self._known or self._nvml.nvmlDeviceGetTotalEnergyConsumption(
            self._device, ctypes.byref(count)
        )
        if code != _NVML_SUCCESS:
            raise ValueError(f"NVML's code {code}")
        return count.value


def nvml_gpus(nvml: ctypes.CDLL | None = None) -> list[NvmlGpu]:
    """Return the GPUs that NVIDIA's driver shows; empty without a driver."""
    nvml = nvml or _load_nvml()
    if nvml is None or nvml.nvmlInit_v2() != _NVML_SUCCESS:
        return []
    count = ctypes.c_uint()
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != _NVML_SUCCESS:
        return []
    return [NvmlGpu(nvml, index) for index in range(count.value)]


def _load_nvml() -> ctypes.CDLL | None:
    for name in _NVML_LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
