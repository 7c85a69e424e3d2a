"""The same file under a second name, without storing its bytes twice where the disk allows it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path


def link_or_copy(source: Path, target: Path, *, symbolic: bool) -> None:
    """Make a hard link to `source` at `target`; a symbolic link or a copy where that fails.

    `symbolic` allows symbolic links, for sources that stay where they are. Raises OSError if
    `target` cannot be written.
    """
    source = source.resolve()
    with contextlib.suppress(OSError):  # another file system, or one without hard links
        os.link(source, target)
        return
    if symbolic:
        with contextlib.suppress(OSError, NotImplementedError):  # Windows asks for a privilege
            os.symlink(source, target)
            return
    shutil.copyfile(source, target)


def links_work(source_folder: Path, folder: Path) -> bool:
    """Return whether `link_or_copy` with `symbolic` makes links from one folder to the other.

    Both folders must exist; `folder` must be writable. Raises OSError if it is not.
    """
    one_disk = source_folder.stat().st_dev == folder.stat().st_dev
    with tempfile.TemporaryDirectory(dir=folder, prefix=".links-") as name:
        probe = Path(name)
        (probe / "file").touch()
        try:
            if one_disk:
                with contextlib.suppress(OSError):
                    os.link(probe / "file", probe / "hard")
                    return True
            os.symlink(probe / "file", probe / "symbolic")
        except (OSError, NotImplementedError):
            return False
    return True


def is_shared(path: Path) -> bool:
    """Return whether a file's bytes stay on the disk when `path` is deleted."""
    return path.is_symlink() or path.stat().st_nlink > 1
