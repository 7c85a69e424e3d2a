"""Takes EdgePrism's words out of sidecars again, and brings back what they replaced or continued.

A text that anyone changed since EdgePrism wrote it is somebody's, and stays.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeprism.files.atomic import output_error, write_atomically
from edgeprism.output.authorship import Authorship, Outputs
from edgeprism.output.originals import Originals
from edgeprism.output.sidecar import check_changeable, read_sidecar, xmp_error
from edgeprism.output.txt import MAX_TXT_BYTES, is_blank
from edgeprism.output.xmp_encoding import MAX_XMP_BYTES
from edgeprism.output.xmp_tree import EDGEPRISM, XmpError
from edgeprism.output.xmp_undo import remove_description

# "removed": the file, or the description in it, was EdgePrism's alone and is gone. "restored": a
# former text is back. "left": the file holds nothing that EdgePrism wrote, or it was changed since.
Undoing = Literal["removed", "restored", "left"]
_MARKS = tuple(EDGEPRISM.encode(codec) for codec in ("utf-8", "utf-16-le", "utf-16-be"))


@dataclass(frozen=True)
class Undo:
    """What is to be done with a sidecar; nothing is done before `apply`."""

    path: Path
    done: Undoing
    remaining: bytes | None = None  # of the file, if it is to stay
    forget: Callable[[], None] | None = None  # what EdgePrism remembers of it

    @property
    def file_stays(self) -> bool:
        """Whether the file stays, without the caption."""
        return self.remaining is not None

    def apply(self) -> None:
        """Do it. Raises OutputError if the file cannot be changed; it is untouched then."""
        if self.done == "left":
            return
        try:
            if self.remaining is None:
                os.unlink(self.path)
            else:
                write_atomically(self.path, self.remaining)
            if self.forget is not None:
                self.forget()
        except (OSError, ValueError) as error:
            raise output_error(self.path, error) from error


def plan_undo(
    path: Path, *, outputs: Outputs | None = None, originals: Originals | None = None
) -> Undo:
    """Return what takes EdgePrism's words out of the sidecar `path`.

    Args:
        path: An absolute path.
        outputs: What EdgePrism wrote into .txt files.
        originals: What stood in .txt files before; by default those of this user.

    Raises:
        OutputError: The file cannot be changed safely.
    """
    is_xmp = path.suffix.lower() == ".xmp"
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return Undo(path, "left")  # EdgePrism writes regular files alone
        data = read_sidecar(path, MAX_XMP_BYTES if is_xmp else MAX_TXT_BYTES) or b""
        undo = _undo_xmp(path, data) if is_xmp else _undo_txt(path, data, outputs, originals)
    except FileNotFoundError:
        return Undo(path, "left")
    except (OSError, ValueError) as error:
        raise output_error(path, error) from error
    if undo.done != "left":
        check_changeable(path)
    return undo


def _undo_xmp(path: Path, data: bytes) -> Undo:
    try:
        undone = remove_description(data)
    except XmpError as error:
        if not any(mark in data for mark in _MARKS):
            return Undo(path, "left")  # it is broken, and nothing in it is EdgePrism's
        raise xmp_error(path, error) from error
    if undone is None:
        return Undo(path, "left")
    return Undo(path, "restored" if undone.restored else "removed", undone.data)


def _undo_txt(
    path: Path, data: bytes, outputs: Outputs | None, originals: Originals | None
) -> Undo:
    authorship = Authorship(outputs, originals)
    known = authorship.find(path, data)
    if known is None:
        return Undo(path, "left")
    former: bytes | None = None
    if known.original is not None:
        former = known.original.content
        if known.original.written_sha256 != hashlib.sha256(data).hexdigest():
            # A person went on writing in front of it.
            former = data.removesuffix(known.original.appended)
    done: Undoing = "removed" if former is None or is_blank(former) else "restored"
    return Undo(path, done, former, lambda: authorship.forget(path, data, known))
