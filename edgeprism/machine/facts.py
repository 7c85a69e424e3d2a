"""Facts about this computer: cores, memory, the processor's name and instructions."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from edgeprism.machine import child


def available_cores() -> int:
    """Return how many cores this process may use, by its affinity and cgroup quota; at least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cores = os.cpu_count() or 1
    quota = cgroup_cores()
    return max(1, min(cores, quota)) if quota else max(1, cores)


def cgroup_cores(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Return the smallest CPU quota that binds this process, in whole cores rounded up, or None.

    Reads cgroups of versions 2 and 1. The quota may be set on the process's own group or on any
    group above it.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    quotas = [_quota_v2(root), _quota_v1(root / "cpu")]
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        group = Path(path.lstrip("/"))
        for part in (group, *group.parents):
            if not controllers:
                quotas.append(_quota_v2(root / part))
            elif "cpu" in controllers.split(","):
                quotas.append(_quota_v1(root / "cpu" / part))
    return min((quota for quota in quotas if quota), default=None)


def _quota_v2(group: Path) -> int | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return _cores(int(quota), int(period))
    except (OSError, ValueError):  # ValueError: the quota is "max", which means no limit
        return None


def _quota_v1(group: Path) -> int | None:
    try:
        quota = (group / "cpu.cfs_quota_us").read_text()
        return _cores(int(quota), int((group / "cpu.cfs_period_us").read_text()))
    except (OSError, ValueError):
        return None


def _cores(quota: int, period: int) -> int | None:
    return max(1, -(-quota // period)) if quota > 0 and period > 0 else None


def has_int8_dot() -> bool:
    """Return whether the CPU multiplies int8 without saturating pairs (VNNI, Arm dot product).

    Without it U8S8 kernels saturate, and only reduced-range int8 graphs are safe. So this returns
    False if the system does not say.
    """
    machine = platform.machine().lower()
    if sys.platform == "darwin":
        return machine == "arm64"  # every Apple chip has dot product
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = {
        flag
        for line in text.splitlines()
        if line.lower().startswith(("flags", "features"))
        for flag in line.partition(":")[2].split()
    }
    return bool(flags & {"avx512_vnni", "avx_vnni", "asimddp"})


def memory_bytes() -> int | None:
    """Return the physical memory in bytes, or None if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def cpu_name() -> str:
    """Return the processor's name as the operating system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # only Linux has this file; the other systems follow
    if sys.platform == "darwin":
        return child.run(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]).output.strip()
    return platform.processor() or platform.machine()
