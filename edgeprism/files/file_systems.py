"""What a file system can do: keep times of change, and share memory between processes."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from functools import lru_cache
from pathlib import Path

_LOCAL = frozenset(
    {"apfs", "bcachefs", "btrfs", "ecryptfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "jfs",
     "nilfs2", "overlay", "ramfs", "reiserfs", "rootfs", "tmpfs", "ufs", "xfs", "zfs"}
)  # fmt: skip
# Their servers keep a time of change, and hand it out.
_KEEP_CHANGE_TIMES = _LOCAL | {"ceph", "nfs", "nfs4"}
# NTFS keeps a time of change too, but Windows' `stat` gives the time of creation in its place.
_SHARE_MEMORY = _LOCAL | {"ntfs", "ntfs3"}
# What the kernel makes up as it is read: no files of anybody, and links that lead anywhere.
_PSEUDO = frozenset(
    {"binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "efivarfs",
     "mqueue", "nsfs", "proc", "pstore", "securityfs", "selinuxfs", "sysfs", "tracefs"}
)  # fmt: skip
_MOUNTS = Path("/proc/self/mountinfo")
_OCTAL = re.compile(rb"\\([0-7]{3})")
_WINDOWS_REMOTE = 4
_MACOS_TYPE = slice(72, 88)  # f_fstypename in macOS' struct statfs with 64-bit inodes


def keeps_change_times(path: Path, device: int) -> bool:
    """Return whether the file system of `path` notes every change of a file's content.

    FAT has no such time, and many network and FUSE file systems make one up from the date that
    programs can set. `device` is the file's st_dev, under which the answer is remembered.
    """
    return _type_of_device(device, os.fspath(path)) in _KEEP_CHANGE_TIMES


def shares_memory(folder: Path) -> bool:
    """Return whether processes can share memory through a file in `folder`, as SQLite's WAL does.

    Network file systems cannot: two machines would not see each other's writes.
    """
    return file_system_of(os.fspath(folder)) in _SHARE_MEMORY


def is_pseudo(folder: Path) -> bool:
    """Return whether a folder, such as /proc, is the kernel's view of itself and holds no files."""
    return file_system_of(os.fspath(folder)) in _PSEUDO


@lru_cache(maxsize=64)
def _type_of_device(device: int, path: str) -> str:
    return file_system_of(path)


def file_system_of(path: str) -> str:
    """Return the type of the file system that holds `path`, e.g. "ext4"; "" if it is not known."""
    place = os.path.realpath(path)
    while not os.path.lexists(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    readers = {"linux": _type_on_linux, "darwin": _type_on_macos, "win32": _type_on_windows}
    reader = readers.get(sys.platform)
    return "" if reader is None else reader(os.fsencode(place))


def _type_on_linux(place: bytes) -> str:
    """Return the type of the innermost mount that holds `place`, from the kernel's table."""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return ""
    longest, found = -1, b""
    for line in lines:
        fields, _, rest = line.partition(b" - ")
        mount = _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), fields.split(b" ")[4])
        inside = place == mount or place.startswith(mount.rstrip(b"/") + b"/")
        if inside and len(mount) >= longest:  # of two at one place the later one is on top
            longest, found = len(mount), rest.split(b" ")[0]
    return found.decode("ascii", "replace")


def _type_on_windows(place: bytes) -> str:
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    root = os.path.splitdrive(os.fsdecode(place))[0] + "\\"
    return "smb" if kernel.GetDriveTypeW(root) == _WINDOWS_REMOTE else "ntfs"


def _type_on_macos(place: bytes) -> str:
    buffer = ctypes.create_string_buffer(4096)
    if ctypes.CDLL(None).statfs(place, buffer) != 0:
        return ""
    return buffer.raw[_MACOS_TYPE].split(b"\0")[0].decode("ascii", "replace")
