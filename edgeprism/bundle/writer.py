"""Write a bundle under a temporary name and rename it only when it is complete."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from edgeprism.bundle.manifest import FILE_NAME, FileEntry, Manifest
from edgeprism.bundle.read_manifest import manifest_from_bundle, manifest_from_json
from edgeprism.errors import ManifestError, OutputError, UsageError
from edgeprism.files.atomic import flush_to_disk, output_error
from edgeprism.files.digests import sha256_of_file


def check_out(out: Path, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Raise UsageError if no bundle can be written to `out`; writes nothing.

    A bundle that holds one of `inputs` is not replaced, because they would go with it. Raises
    OutputError if the folder that is to hold the bundle cannot be written.
    """
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is not a folder.", "Create it first.")
    whole = os.path.realpath(out)
    for path in inputs:
        if Path(os.path.realpath(path)).is_relative_to(whole):
            raise UsageError(f"{out} is or holds an input, {path}.", "Choose another name.")
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise output_error(out, error) from error
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise UsageError(f"{out} exists already.", "Choose another name, or pass `overwrite`.")
    if not out.is_dir() or out.is_symlink() or not (out / FILE_NAME).is_file():
        raise UsageError(f"{out} is not a bundle, so it is not replaced.", "Choose another name.")
    _require_bundle_alone(out)


def _require_bundle_alone(out: Path) -> None:
    """Raise UsageError if the folder `out` is another program's or holds more than a bundle.

    Replacing a bundle removes its folder, and files of other programs are called manifest.json too.
    """
    try:
        manifest = manifest_from_bundle(out)
    except (ManifestError, OSError) as error:
        raise UsageError(
            f"{out} is not a bundle, so it is not replaced: its {FILE_NAME} is none of a bundle.",
            "Choose another name, or remove the folder yourself.",
        ) from error
    own = {FILE_NAME, *manifest.files}
    others = sorted(path.name for path in out.iterdir() if path.name not in own)
    if others:
        raise UsageError(
            f"{out} holds more than a bundle, so it is not replaced: {', '.join(others[:5])}"
            f"{' and more' if len(others) > 5 else ''}.",
            "Move these files elsewhere, or choose another name.",
        )


def manifest_digest(bundle: Path) -> str | None:
    """Return the SHA-256 of a bundle's manifest, which names every file; None if there is none."""
    try:
        return hashlib.sha256((bundle / FILE_NAME).read_bytes()).hexdigest()
    except OSError:
        return None


def require_unchanged(bundle: Path, digest: str | None) -> None:
    """Raise OutputError if the manifest of `bundle` has another digest than it had."""
    if manifest_digest(bundle) != digest:
        raise OutputError(
            f"{bundle} was changed by another program meanwhile; nothing was written.",
            "Let only one program write to it, or choose another name.",
        )


class BundleWriter:
    """A context manager with a temporary `folder` next to `out`; `finish` renames it to `out`.

    If the block ends without `finish` (after an error or Ctrl-C), it removes the folder. A bundle
    that another program wrote to `out` meanwhile is never replaced, with `overwrite` neither: who
    allowed to replace a bundle meant the one that was there.
    """

    def __init__(self, out: Path, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
        self.out = Path(os.path.abspath(out))
        self._replaced = manifest_digest(self.out)
        check_out(self.out, overwrite, inputs)
        self.folder, self._old = _temporary_names(self.out, os.getpid())

    def __enter__(self) -> BundleWriter:
        self.folder.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        clean_up(self.out, os.getpid())

    def file_entries(self) -> dict[str, FileEntry]:
        """Return digest and size of every file that is in the folder now."""
        return {
            path.name: FileEntry(sha256_of_file(path), path.stat().st_size)
            for path in sorted(self.folder.iterdir())
        }

    def finish(self, manifest: Manifest) -> str | None:
        """Write the manifest, flush everything to the disk, and rename the folder to `out`.

        Returns the manifest's digest. Raises UsageError or OutputError if another program has
        written to `out` since this writer was made; what it wrote stays.
        """
        text = manifest.to_json()
        # raises ManifestError if the runtime would refuse the manifest
        manifest_from_json(text, str(self.out / FILE_NAME))
        (self.folder / FILE_NAME).write_text(text, encoding="utf-8")
        for path in (*self.folder.iterdir(), self.folder):
            flush_to_disk(path)
        digest = manifest_digest(self.folder)
        self._take_place()
        flush_to_disk(self.out.parent)
        return digest

    def _take_place(self) -> None:
        """Rename the folder to `out`, but only in the place of what was there at the beginning."""
        if self._replaced is not None:
            require_unchanged(self.out, self._replaced)
            self.out.rename(self._old)
            # Another program may have been as fast. `clean_up` gives its bundle the name back.
            require_unchanged(self._old, self._replaced)
        try:
            self.folder.rename(self.out)
        except OSError as error:  # a folder with files is not replaced by renaming
            if not self.out.exists():
                raise
            raise UsageError(
                f"{self.out} exists already: another program wrote it meanwhile.",
                "Choose another name.",
            ) from error


def clean_up(out: Path, pid: int) -> None:
    """Remove the temporary folders that process `pid` left next to `out`.

    If the process had renamed an old bundle to make room and the new one did not take its place,
    the old bundle gets its name back.
    """
    folder, old = _temporary_names(out, pid)
    if old.exists() and not out.exists():
        old.rename(out)
    for path in (old, folder):
        shutil.rmtree(path, ignore_errors=True)


def _temporary_names(out: Path, pid: int) -> tuple[Path, Path]:
    """Return two paths: the unfinished bundle's, and the old one's while it is being replaced."""
    return out.with_name(f".{out.name}.partial-{pid}"), out.with_name(f".{out.name}.old-{pid}")
