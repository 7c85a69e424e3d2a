"""Which device each engine runs on, and how many cores the process may use."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprism.errors import DeviceError
from edgeprism.machine import cgroup, device, facts

CPU, CUDA, COREML = "CPUExecutionProvider", "CUDAExecutionProvider", "CoreMLExecutionProvider"


def v2(root: Path, text: str) -> None:
    (root / "cpu.max").write_text(text)


def v1(root: Path, quota: str, period: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "cpu.cfs_quota_us").write_text(quota)
    (root / "cpu.cfs_period_us").write_text(period)


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000\n", None),
        ("200000 100000\n", 2),
        ("150000 100000\n", 1),
        ("765000 100000\n", 7),
        ("799999 100000\n", 7),
        ("50000 100000\n", 1),
        ("1000 100000\n", 1),
        ("800000 100000", 8),
        ("250000 50000", 5),
        ("100000 0\n", None),
        ("", None),
        ("max", None),
        ("nonsense 100000", None),
        ("100000 nonsense", None),
        ("-1 100000", None),
        ("1 2 3", None),
    ],
)
def test_quota_of_cgroup_v2(tmp_path: Path, text: str, cores: int | None) -> None:
    v2(tmp_path, text)
    assert cgroup.cgroup_cores(tmp_path, tmp_path / "none") == cores


@pytest.mark.parametrize(
    ("quota", "period", "cores"),
    [
        ("-1\n", "100000\n", None),
        ("200000\n", "100000\n", 2),
        ("120000", "100000", 1),
        ("765000", "100000", 7),
        ("100", "0", None),
        ("x", "100000", None),
        ("", "", None),
    ],
)
def test_quota_of_cgroup_v1(tmp_path: Path, quota: str, period: str, cores: int | None) -> None:
    v1(tmp_path / "cpu", quota, period)
    assert cgroup.cgroup_cores(tmp_path, tmp_path / "none") == cores


def test_quota_of_a_group_above_the_process(tmp_path: Path) -> None:
    """systemd's CPUQuota sets the quota on a slice; the root group has none."""
    own = tmp_path / "own"
    own.write_text("0::/user.slice/job.scope\n")
    root = tmp_path / "root"
    (root / "user.slice/job.scope").mkdir(parents=True)
    v2(root / "user.slice", "300000 100000")
    assert cgroup.cgroup_cores(root, own) == 3
    v2(root / "user.slice/job.scope", "max 100000")
    assert cgroup.cgroup_cores(root, own) == 3
    v2(root / "user.slice/job.scope", "200000 100000")
    assert cgroup.cgroup_cores(root, own) == 2


def test_quota_of_a_version_1_group_above_the_process(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("7:memory:/job\n4:cpu,cpuacct:/jobs/mine\n1:name=systemd:/\n")
    v1(tmp_path / "root/cpu/jobs/mine", "-1", "100000")
    v1(tmp_path / "root/cpu", "400000", "100000")
    assert cgroup.cgroup_cores(tmp_path / "root", own) == 4


@pytest.mark.parametrize("text", ["", "garbage", "0:", "a:b:c:d", "\n\n"])
def test_no_cgroup(tmp_path: Path, text: str) -> None:
    assert cgroup.cgroup_cores(tmp_path / "none", tmp_path / "nothing") is None
    (tmp_path / "own").write_text(text)
    assert cgroup.cgroup_cores(tmp_path / "none", tmp_path / "own") is None


@pytest.mark.parametrize(("quota", "cores"), [(None, 6), (2, 2), (64, 6)])
def test_the_smaller_of_affinity_and_quota(
    monkeypatch: pytest.MonkeyPatch, quota: int | None, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(facts, "cgroup_cores", lambda: quota)
    assert facts.available_cores() == cores


def test_cores_that_a_cluster_grants_are_all_that_is_used() -> None:
    code = (
        "from edgeprism.machine import device, facts\n"
        "facts.cgroup_cores = lambda: None; device.busy_cores = lambda: 7\n"
        "facts.os.sched_getaffinity = lambda _: set(range(8)); facts.os.cpu_count = lambda: 16\n"
        "large = device.SMALL_MODEL_BYTES\n"
        "print(facts.granted_share(), device.choose_threads(None, large))\n"
        "facts.grant_cores(4)\n"
        "print(facts.granted_share(), facts.available_cores(), facts.granted_cores())\n"
        "print(device.choose_threads(None, large), device.choose_threads(9, large))\n"
        "facts.grant_cores(99)\n"
        "print(facts.granted_share(), facts.available_cores())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1.0 1", "0.25 4 4", "4 4", "1.0 8"]


@pytest.mark.skipif(sys.platform != "linux", reason="affinity can be set on Linux only")
def test_affinity_of_the_real_process_is_respected() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from edgeprism.machine.facts import available_cores; print(available_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


# ---- choice


@pytest.mark.parametrize(
    ("requested", "available", "system", "chosen"),
    [
        ("auto", [CPU], "linux", CPU),
        ("auto", [CUDA, CPU], "linux", CUDA),
        ("auto", [COREML, CPU], "darwin", COREML),
        ("auto", [COREML, CPU], "linux", CPU),
        ("cpu", [CUDA, CPU], "linux", CPU),
        ("cuda", [CUDA, CPU], "linux", CUDA),
        ("metal", [COREML, CPU], "darwin", COREML),
    ],
)
def test_provider(requested: str, available: list[str], system: str, chosen: str) -> None:
    assert device.choose_provider(requested, dict.fromkeys(available, ""), system) == chosen


def test_a_provider_that_does_not_start() -> None:
    providers = {CUDA: "no libcublas", CPU: ""}
    assert device.choose_provider("auto", providers, "linux") == CPU
    assert device.choose_provider("cpu", providers, "linux") == CPU
    with pytest.raises(DeviceError, match="does not start: no libcublas") as caught:
        device.choose_provider("cuda", providers, "linux")
    assert "edgeprism[gpu]" in caught.value.hint


@pytest.mark.parametrize(
    ("requested", "system"),
    [("cuda", "linux"), ("metal", "darwin"), ("metal", "linux"), ("cuda", "darwin"),
     ("tpu", "linux"), ("", "linux")],
)  # fmt: skip
def test_a_device_that_is_not_there(requested: str, system: str) -> None:
    for call in (
        lambda: device.choose_provider(requested, {CPU: ""}, system),
        lambda: device.choose_gpu_layers(requested, False, None, system),
    ):
        with pytest.raises(DeviceError) as caught:
            call()
        assert caught.value.exit_code == 5
        assert caught.value.hint


@pytest.mark.parametrize(
    ("requested", "offload", "gpu_layers", "layers"),
    [
        ("auto", False, None, 0),
        ("auto", True, None, device.ALL_LAYERS),
        ("auto", True, 7, 7),
        ("auto", True, 0, 0),
        ("auto", False, 0, 0),
        ("cuda", True, None, device.ALL_LAYERS),
        ("cpu", True, None, 0),
        ("cpu", True, 0, 0),
    ],
)
def test_layers(requested: str, offload: bool, gpu_layers: int | None, layers: int) -> None:
    assert device.choose_gpu_layers(requested, offload, gpu_layers, "linux") == layers


@pytest.mark.parametrize(("requested", "offload"), [("auto", False), ("cpu", True)])
def test_layers_without_a_gpu(requested: str, offload: bool) -> None:
    with pytest.raises(DeviceError):
        device.choose_gpu_layers(requested, offload, 5, "linux")


@pytest.mark.parametrize(
    ("provider", "layers", "system", "name"),
    [
        (CPU, 0, "linux", "cpu"),
        (CUDA, 999, "linux", "cuda"),
        (CUDA, 0, "linux", "cuda+cpu"),
        (CPU, 3, "linux", "cpu+cuda"),
        (COREML, 999, "darwin", "metal"),
        (CPU, 999, "darwin", "cpu+metal"),
    ],
)
def test_name(provider: str, layers: int, system: str, name: str) -> None:
    assert device.device_name(provider, layers, system) == name


@pytest.mark.parametrize(
    ("flags", "dot"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni sse", True),
        ("flags : avx2 avx_vnni", True),
        ("Features\t: fp asimd asimddp", True),
        ("flags : avx2 avx512f", False),
        ("model name : avx_vnni processor\nflags : avx2", False),
        ("", False),
    ],
)
def test_int8_dot(monkeypatch: pytest.MonkeyPatch, flags: str, dot: bool) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: flags)
    assert facts.has_int8_dot() is dot


@pytest.mark.parametrize(("machine", "dot"), [("arm64", True), ("x86_64", False)])
def test_int8_dot_on_a_mac(monkeypatch: pytest.MonkeyPatch, machine: str, dot: bool) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert facts.has_int8_dot() is dot


def test_this_machine() -> None:
    assert facts.available_cores() >= 1
    assert (facts.memory_bytes() or 0) > 1 << 28
    assert facts.cpu_name()
