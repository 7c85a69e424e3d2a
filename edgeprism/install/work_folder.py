"""Where `pull` works: one process at a time, and what a killed one left is cleared up."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgeprism.errors import PullError
from edgeprism.files.home import data_dir
from edgeprism.files.size_text import size_text
from edgeprism.install.wheel import empty_but_wheels


def refuse_when_offline() -> None:
    """Raise PullError if the environment forbids the network."""
    if switch := offline_switch():
        raise PullError(f"{switch} is set, so nothing can be fetched.", f"Unset {switch} to pull.")


def offline_switch() -> str:
    """Return the environment variable that forbids the network; "" if none does."""
    if os.environ.get("EDGEPRISM_OFFLINE"):
        return "EDGEPRISM_OFFLINE"
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):  # huggingface_hub obeys the first set
        if value := os.environ.get(name, ""):
            return name if value.upper() in ("1", "ON", "YES", "TRUE") else ""
    return ""


@contextlib.contextmanager
def written_safely(target: Path) -> Iterator[None]:
    """Turn an OSError inside the block into a PullError that names `target`."""
    try:
        yield
    except OSError as error:
        raise PullError(
            f"{target} cannot be written: {error.strerror or error}.",
            "Free some room, or point EDGEPRISM_HOME to a folder you may write to.",
        ) from error


@contextlib.contextmanager
def work_folder(name: str) -> Iterator[Path]:
    """Lock and create `partial/NAME` in the data folder; at the end remove all but wheels."""
    root = data_dir() / "partial"
    root.mkdir(parents=True, exist_ok=True)
    try:
        with _lock(root / f"{name}.lock", name):
            work = root / name
            work.mkdir(exist_ok=True)
            try:
                yield work
            finally:
                empty_but_wheels(work)
                with contextlib.suppress(OSError):  # not empty: a whole wheel stays for the next
                    work.rmdir()
    finally:
        with contextlib.suppress(OSError):  # not empty: another model is being pulled
            root.rmdir()


@contextlib.contextmanager
def _lock(path: Path, name: str) -> Iterator[None]:
    """Hold a lock that one process can have; the system frees it when that process ends."""
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl, so nothing prevents two pulls of one model there
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PullError(
                f"{name} is being pulled by another process.", "Wait until it is done."
            ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def require_space(folder: Path, needed: int, variable: str = "EDGEPRISM_HOME") -> None:
    """Raise PullError if the disk of an existing folder, which `variable` moves, is too full."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PullError(
            f"{folder}: {size_text(free)} are free, {size_text(needed)} are needed.",
            f"Free some room, or point {variable} to another disk.",
        )


def mend_interrupted(target: Path) -> None:
    """Remove what killed processes left beside `target`, and restore a model they set aside."""
    for old in target.parent.glob(f".{target.name}.old-*"):
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)
    for partial in target.parent.glob(f".{target.name}.partial-*"):
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
