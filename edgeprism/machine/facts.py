"""Facts about this computer: cores, memory, the processor's name and instructions."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from edgeprism.machine.cgroup import OWN, ROOT, cgroup_cores, cgroup_memory

_PHYSICAL = "the machine's memory"
_granted: list[int] = []  # how many cores a cluster gave to this process; empty: no cluster did


def grant_cores(cores: int) -> None:
    """Let this process use no more than `cores`, which is all that a cluster gave to it.

    A scheduler such as Ray's counts cores and limits nobody, so a process on a large machine would
    take all of them.
    """
    _granted[:] = [max(1, cores)]


def granted_share() -> float:
    """Return which part of the machine a cluster gave to this process, by cores; else 1.0."""
    return min(1.0, _granted[0] / (os.cpu_count() or 1)) if _granted else 1.0


def granted_cores() -> int | None:
    """Return how many cores a cluster gave to this process; None if none did."""
    return _granted[0] if _granted else None


def available_cores() -> int:
    """Return how many cores this process may use; at least 1.

    Its affinity, its cgroup's quota and `grant_cores` limit it.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cores = os.cpu_count() or 1
    limits = [limit for limit in (cgroup_cores(), granted_cores()) if limit]
    return max(1, min([cores, *limits]))


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


@dataclass(frozen=True)
class MemoryLimit:
    """How much memory this process may use, and what sets the limit."""

    size: int  # bytes
    source: str  # "the machine's memory", a control group's file, or a limit of the shell

    @property
    def is_physical(self) -> bool:
        """Whether nothing but the machine itself limits the process."""
        return self.source == _PHYSICAL


def memory_limit(root: Path = ROOT, own: Path = OWN) -> MemoryLimit | None:
    """Return the smallest limit of this process's memory, or None if the system names none.

    It compares the machine's memory, the limits of control groups (containers, services) and
    those of the process (`ulimit`).

    Parameters:
        root, own: where control groups and the process's own group are listed.
    """
    limits = [MemoryLimit(size, name) for name, size in process_limits().items()]
    if (physical := physical_memory()) is not None:
        limits.append(MemoryLimit(physical, _PHYSICAL))
    if (group := cgroup_memory(root, own)) is not None:
        limits.append(MemoryLimit(group[0], str(group[1])))
    return min(limits, key=lambda limit: limit.size, default=None)


def memory_bytes() -> int | None:
    """Return how many bytes of memory this process may use (`memory_limit`), or None."""
    limit = memory_limit()
    return limit.size if limit else None


def process_limits() -> dict[str, int]:
    """Return the limits of this process's memory, in bytes, by name; empty where there are none."""
    try:
        import resource
    except ImportError:  # Windows
        return {}
    limits = {}
    for name, option in (("RLIMIT_AS", "-v"), ("RLIMIT_DATA", "-d")):
        soft, _ = resource.getrlimit(getattr(resource, name))
        if soft != resource.RLIM_INFINITY:
            limits[f"{name} (ulimit {option})"] = soft
    return limits


def physical_memory() -> int | None:
    """Return the machine's memory in bytes, or None if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def limit_memory(size: int) -> None:
    """Let this process use at most `size` bytes of addresses, or less if it is limited already.

    Systems other than POSIX have no such limit; nothing happens there.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    # A limit that is set (by a batch system, say) must stay: root could raise it, others could
    # not and would get an error.
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [bound for bound in (size, soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), min(bounds)))


def cpu_name() -> str:
    """Return the processor's name as the operating system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # only Linux has this file; the other systems follow
    if sys.platform == "darwin":
        from edgeprism.machine import child  # with subprocess, which a caption does without

        return child.run(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]).output.strip()
    return platform.processor() or platform.machine()
