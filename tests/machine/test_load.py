"""Cores that others use are left to them; no more threads than cores."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgeprism.machine import device
from edgeprism.machine.device import SMALL_MODEL_BYTES, choose_threads
from edgeprism.machine.load import busy_cores

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the load")


def stat(path: Path, busy: int, idle: int) -> None:
    """Write the kernel's counts: each core of this process has been busy and idle so long."""
    cores = [f"cpu{core} {busy} 0 0 {idle} 0 0 0 0 0 0" for core in os.sched_getaffinity(0)]
    path.write_text("\n".join(["cpu 9 9 9 9 9 9 9 9 9 9", *cores, "cpu999 0 0 0 0 0", "intr 1"]))


@linux
@pytest.mark.parametrize(("busy_ticks", "share"), [(0, 0.0), (30, 1.0)])
def test_busy_cores(tmp_path: Path, busy_ticks: int, share: float) -> None:
    """Between two looks 0.3 s apart, each core was busy for so many hundredths of a second."""
    path = tmp_path / "stat"
    stat(path, 100, 100)
    later = threading.Timer(0.1, lambda: stat(path, 100 + busy_ticks, 130 - busy_ticks))
    later.start()
    assert busy_cores(0.3, path) == round(share * len(os.sched_getaffinity(0)))
    later.join()


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert busy_cores(0.01, tmp_path / "none") == 0


@pytest.mark.parametrize(
    ("cores", "busy", "threads"), [(2, 0, 2), (2, 1, 1), (2, 2, 1), (8, 3, 5), (1, 1, 1)]
)
def test_cores_that_others_use_are_left_to_them(
    cores: int, busy: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "available_cores", lambda: cores)
    monkeypatch.setattr(device, "busy_cores", lambda: busy)
    assert choose_threads(None, SMALL_MODEL_BYTES) == threads
    assert choose_threads(None, SMALL_MODEL_BYTES - 1) == 1
    assert choose_threads(99, SMALL_MODEL_BYTES) == cores
    assert choose_threads(1, SMALL_MODEL_BYTES) == 1


def test_too_many_threads_are_told(photo: Path, scripted_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgeprism", "caption", str(photo), "--threads", "9999", "--model",
         str(scripted_bundle), "--json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0].startswith("--threads 9999: this process may use ")
