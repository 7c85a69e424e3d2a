"""A bundle comes into being under another name and gets its own only when it is complete."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType

from edgeprism.bundle.manifest import FILE_NAME, FileEntry, Manifest
from edgeprism.bundle.read_manifest import manifest_from_json
from edgeprism.errors import UsageError
from edgeprism.files.digests import sha256_of_file


def check_out(out: Path, overwrite: bool) -> None:
    """UsageError if `out` cannot become a bundle; nothing is written."""
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is not a folder.", "Create it first.")
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise UsageError(f"{out} exists already.", "Choose another name, or pass `overwrite`.")
    if not out.is_dir() or out.is_symlink() or not (out / FILE_NAME).is_file():
        raise UsageError(f"{out} is not a bundle, so it is not replaced.", "Choose another name.")


class BundleWriter:
    """Context manager around `folder`, a sibling of `out` that becomes it in `finish`.

    Left without `finish` (a failure, Ctrl-C), the folder is removed with all that is in it.
    """

    def __init__(self, out: Path, overwrite: bool) -> None:
        self.out = Path(os.path.abspath(out))
        check_out(self.out, overwrite)
        self.folder, self._old = _temporary_names(self.out, os.getpid())

    def __enter__(self) -> BundleWriter:
        self.folder.mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        clean_up(self.out, os.getpid())

    def file_entries(self) -> dict[str, FileEntry]:
        """Digest and size of every file that is there now."""
        return {
            path.name: FileEntry(sha256_of_file(path), path.stat().st_size)
            for path in sorted(self.folder.iterdir())
        }

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, make everything durable, and take the final name."""
        text = manifest.to_json()
        manifest_from_json(text, str(self.out / FILE_NAME))  # what the runtime would refuse
        with (self.folder / FILE_NAME).open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(self.folder)
        if self.out.exists():
            self.out.rename(self._old)
        self.folder.rename(self.out)
        _sync_folder(self.out.parent)


def clean_up(out: Path, pid: int) -> None:
    """Remove what process `pid` left beside `out`, wherever it was stopped.

    A bundle that was moved aside comes back if its successor did not take its place.
    """
    folder, old = _temporary_names(out, pid)
    if old.exists() and not out.exists():
        old.rename(out)
    for path in (old, folder):
        shutil.rmtree(path, ignore_errors=True)


def _temporary_names(out: Path, pid: int) -> tuple[Path, Path]:
    """The bundle under way, and the one it replaces while the two change places."""
    return out.with_name(f".{out.name}.partial-{pid}"), out.with_name(f".{out.name}.old-{pid}")


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # other systems do not open folders
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
