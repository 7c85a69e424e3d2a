"""Takes EdgePrism's words out of sidecars again, and brings back what they replaced or continued.

A text that anyone changed since EdgePrism wrote it is somebody's, and stays.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from edgeprism.files.atomic import output_error, write_atomically
from edgeprism.output.originals import Originals
from edgeprism.output.sidecar import check_changeable, read_sidecar, xmp_error
from edgeprism.output.txt import MAX_TXT_BYTES, is_blank
from edgeprism.output.xmp_encoding import MAX_XMP_BYTES
from edgeprism.output.xmp_tree import XmpError
from edgeprism.output.xmp_undo import remove_description

# "removed": the file, or the description in it, was EdgePrism's alone and is gone. "restored": a
# former text is back. "left": the file holds nothing that EdgePrism wrote, or it was changed since.
Undoing = Literal["removed", "restored", "left"]


def undo_sidecar(
    path: Path,
    *,
    written_before: Callable[[Path], str | None] | None = None,
    originals: Originals | None = None,
    dry_run: bool = False,
) -> Undoing:
    """Take EdgePrism's words out of the sidecar `path`, by its suffix a .txt or .xmp file.

    Args:
        path: An absolute path.
        written_before: Returns the sha256 of what EdgePrism last wrote to a .txt, or None.
        originals: What stood in .txt files before; by default those of this user.
        dry_run: Change nothing, and say only what would be done.

    Raises:
        OutputError: The file cannot be changed safely; it is untouched.
    """
    is_xmp = path.suffix.lower() == ".xmp"
    try:
        data = read_sidecar(path, MAX_XMP_BYTES if is_xmp else MAX_TXT_BYTES)
        if data is None:
            return "left"
        if is_xmp:
            return _undo_xmp(path, data, dry_run)
        return _undo_txt(path, data, written_before, originals or Originals(), dry_run)
    except (OSError, ValueError) as error:
        raise output_error(path, error) from error


def _undo_xmp(path: Path, data: bytes, dry_run: bool) -> Undoing:
    try:
        undone = remove_description(data)
    except XmpError as error:
        raise xmp_error(path, error) from error
    if undone is None:
        return "left"
    if not dry_run:
        _put(path, undone.data)
    return "restored" if undone.restored else "removed"


def _undo_txt(
    path: Path,
    data: bytes,
    written_before: Callable[[Path], str | None] | None,
    originals: Originals,
    dry_run: bool,
) -> Undoing:
    original, digest = originals.find(path), hashlib.sha256(data).hexdigest()
    if original is None:
        if written_before is None or written_before(path) != digest:
            return "left"
        former = None
    elif original.written_sha256 == digest:
        former = original.content
    elif original.appended and data.endswith(original.appended):
        former = data.removesuffix(original.appended)  # a person went on writing in front of it
    else:
        return "left"
    if not dry_run:
        _put(path, former)
        originals.forget(path)
    return "removed" if former is None or is_blank(former) else "restored"


def _put(path: Path, data: bytes | None) -> None:
    check_changeable(path)
    if data is None:
        os.unlink(path)
    else:
        write_atomically(path, data)
