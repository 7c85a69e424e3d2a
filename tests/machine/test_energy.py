"""Joules from sensors: processor packages, a board's rails, GPUs; made-up files and libraries."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest

from edgeprism.machine.energy import EnergyMeter, board_rails, nvml_gpus


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="ascii")


def meter(root: Path, **sources: Any) -> EnergyMeter:
    return EnergyMeter(root / "powercap", root / "hwmon", **{"gpus": [], **sources})


def package(root: Path, zone: str, joules: float) -> None:
    write(root / "powercap" / zone / "energy_uj", round(joules * 1e6))
    write(root / "powercap" / zone / "max_energy_range_uj", 10_000_000)


def chip(root: Path, number: int, name: str, **rails: tuple[str, int, int]) -> Path:
    """A chip of hwmon with rails: (label, millivolts, milliamperes)."""
    folder = root / "hwmon" / f"hwmon{number}"
    write(folder / "name", name)
    for channel, (label, millivolts, milliamperes) in enumerate(rails.values(), 1):
        write(folder / f"in{channel}_label", label)
        write(folder / f"in{channel}_input", millivolts)
        write(folder / f"curr{channel}_input", milliamperes)
    return folder


def test_all_packages_of_a_processor(tmp_path: Path) -> None:
    for zone, joules in (("intel-rapl:0", 5), ("intel-rapl:1", 9), ("intel-rapl:0:0", 1)):
        package(tmp_path, zone, joules)
    energy = meter(tmp_path)
    with energy.counting():
        package(tmp_path, "intel-rapl:0", 7.5)
        package(tmp_path, "intel-rapl:0:0", 3)  # a part of the package
        package(tmp_path, "intel-rapl:1", 1)  # it has begun anew
    package(tmp_path, "intel-rapl:0", 9)  # outside the block
    assert energy.reason == ""
    assert energy.joules == pytest.approx(2.5 + 2.0)
    assert energy.names == "processor package intel-rapl:0, processor package intel-rapl:1"


def test_a_machine_without_sensors(tmp_path: Path) -> None:
    energy = meter(tmp_path)
    assert str(tmp_path / "powercap") in energy.reason
    with energy.counting():
        pass
    assert energy.joules == 0


def test_counters_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "powercap" / "intel-rapl:0" / "energy_uj").mkdir(parents=True)  # not even for root
    assert "energy_uj: " in meter(tmp_path).reason


def test_a_counter_that_fails_meanwhile(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 1)
    energy = meter(tmp_path)
    with energy.counting():
        write(tmp_path / "powercap" / "intel-rapl:0" / "energy_uj", "?")
    assert "failed meanwhile" in energy.reason
    with energy.counting():
        pass
    assert energy.joules == 0


def test_the_input_of_a_jetson_counts_alone(tmp_path: Path) -> None:
    """Every other rail is fed by it."""
    chip(tmp_path, 0, "coretemp", a=("Package", 1, 1))
    chip(
        tmp_path, 1, "ina3221",
        a=("VDD_IN", 5000, 2000), b=("VDD_CPU_GPU_CV", 5000, 900), c=("VDD_SOC", 5000, 500),
    )  # fmt: skip
    package(tmp_path, "intel-rapl:0", 1)
    energy = meter(tmp_path)
    assert energy.names == "rail VDD_IN"
    start = time.monotonic()
    with energy.counting():
        time.sleep(0.2)
    most = 10.0 * (time.monotonic() - start)
    assert 10.0 * 0.2 <= energy.joules <= most


def test_the_rails_of_a_jetson_without_an_input(tmp_path: Path) -> None:
    chip(tmp_path, 0, "ina3221", a=("VDD_GPU_SOC", 1000, 1000), b=("VDD_CPU_CV", 1000, 2000))
    chip(tmp_path, 1, "ina3221", a=("VIN_SYS_5V0", 5000, 100), b=("sum of shunt voltages", 1, 1))
    rails = board_rails(tmp_path / "hwmon")
    assert [rail.name for rail in rails] == ["rail VDD_GPU_SOC", "rail VDD_CPU_CV",
                                             "rail VIN_SYS_5V0"]  # fmt: skip
    for rail in rails:
        rail.start()
    time.sleep(0.06)
    joules = [rail.stop() for rail in rails]
    assert joules[1] == pytest.approx(2 * joules[0], rel=0.3)


class Nvml:
    """NVML's functions, for GPUs that are made up: the millijoules of each, None: not counted."""

    def __init__(self, *millijoules: int | None, starts: bool = True) -> None:
        self.millijoules = list(millijoules)
        self._starts = starts
        self._devices: dict[int, int] = {}

    def nvmlInit_v2(self) -> int:
        return 0 if self._starts else 9

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.millijoules)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, device: Any) -> int:
        device._obj.value = index + 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device: Any, count: Any) -> int:
        used = self.millijoules[device.value - 1]
        count._obj.value = used or 0
        return 3 if used is None else 0


def test_gpus_that_count_their_own_energy(tmp_path: Path) -> None:
    nvml = Nvml(5_000, None)
    package(tmp_path, "intel-rapl:0", 1)
    energy = meter(tmp_path, gpus=nvml_gpus(cast("Any", nvml)))
    assert energy.names == "processor package intel-rapl:0, GPU 0"  # the other counts none
    with energy.counting():
        nvml.millijoules[0] = 9_500
        package(tmp_path, "intel-rapl:0", 2)
    assert energy.joules == pytest.approx(4.5 + 1.0)


def test_a_driver_that_does_not_start() -> None:
    assert nvml_gpus(cast("Any", Nvml(1, starts=False))) == []
