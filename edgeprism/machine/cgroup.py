"""Limits that a container or a service manager sets: Linux control groups, versions 1 and 2.

A limit may be set on the process's own group or on any group above it, so each function looks at
all of them and returns the smallest. In a container the root of the file system `/sys/fs/cgroup`
is often the container's own group, although `/proc/self/cgroup` gives the path on the host; the
root is therefore always looked at, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
_NO_LIMIT = 1 << 60  # version 1 writes "no limit" as a number close to 2^63


def cgroup_cores(root: Path = ROOT, own: Path = OWN) -> int | None:
    """Return the smallest CPU quota that binds this process, in whole cores, or None.

    A quota of 7.65 cores is 7: an eighth thread would be stopped for a part of each period, and
    the others would wait for it. The result is at least 1.
    """
    quotas = [_quota_v2(group) for group in _groups("", root, own)]
    quotas += [_quota_v1(group) for group in _groups("cpu", root, own)]
    return min((quota for quota in quotas if quota), default=None)


def cgroup_memory(root: Path = ROOT, own: Path = OWN) -> tuple[int, Path] | None:
    """Return the smallest memory limit that binds this process in bytes, and its file; or None.

    `memory.high` counts as well: above it the kernel slows the process down instead of ending it.
    """
    files = [
        group / name for group in _groups("", root, own) for name in ("memory.max", "memory.high")
    ]
    files += [group / "memory.limit_in_bytes" for group in _groups("memory", root, own)]
    limits = [(limit, file) for file in files if (limit := _bytes_in(file))]
    return min(limits, default=None)


def _groups(controller: str, root: Path, own: Path) -> Iterator[Path]:
    """Yield the folders of the process's group and of those above it.

    `controller` is a version 1 controller such as "cpu"; "" means version 2.
    """
    paths = {PurePosixPath()}
    for line in _read(own).splitlines():
        _, controllers, place = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(","):
            group = PurePosixPath(place.lstrip("/"))
            if ".." not in group.parts:  # a group outside of what this process can see
                paths |= {group, *group.parents}
    if controller:
        # where two controllers share a folder, it has both names, and often a link for each
        shared = [mount for mount in root.glob("*,*") if controller in mount.name.split(",")]
        mounts = [root / controller, *sorted(shared)]
    else:
        mounts = [root, root / "unified"]
    for mount in mounts:
        for path in sorted(paths):
            yield mount / path


def _quota_v2(group: Path) -> int | None:
    quota, _, period = _read(group / "cpu.max").strip().partition(" ")
    return _cores(quota, period)


def _quota_v1(group: Path) -> int | None:
    return _cores(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _cores(quota: str, period: str) -> int | None:
    try:
        runs, of = int(quota), int(period)
    except ValueError:  # the quota is "max", which means no limit, or there is no such file
        return None
    return max(1, runs // of) if runs > 0 and of > 0 else None


def _bytes_in(file: Path) -> int | None:
    try:
        limit = int(_read(file))
    except ValueError:  # "max", or no such file
        return None
    return limit if 0 < limit < _NO_LIMIT else None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
