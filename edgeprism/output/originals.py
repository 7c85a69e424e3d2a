"""What people had written in text files that EdgePrism replaced or continued: a way back.

A text file cannot say which of its words are EdgePrism's. So before EdgePrism changes a `.txt` that
holds somebody's text, that text is kept in the data folder, in `originals/`, as a small JSON file:
under a hash of the file's path (links of folders resolved), for the last change there, and in
`by-content/` under the hash of what EdgePrism wrote, for a file that is moved or renamed.
`edgeprism cache clear` does not touch them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgeprism.errors import OutputError
from edgeprism.files.atomic import write_atomically
from edgeprism.files.home import data_dir
from edgeprism.files.regular import open_regular


@dataclass(frozen=True)
class Original:
    """A text file as it was, and as EdgePrism left it."""

    content: bytes  # somebody's, byte for byte
    appended: bytes  # what EdgePrism wrote behind it; empty if it replaced the content
    written_sha256: str  # of the whole file as EdgePrism wrote it


class Originals:
    """The originals in one folder; several processes may use it."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def find(self, path: Path) -> Original | None:
        """Return the original of EdgePrism's last change of `path`; None if there is none."""
        note = _read(self._note(path))
        return None if note is None else note[1]

    def find_content(self, sha256: str) -> list[tuple[Path, Original]]:
        """Return the originals of a content that EdgePrism wrote, and the paths it wrote it to."""
        folder = self._contents(sha256)
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            return []
        notes = (_read(folder / name) for name in names)
        return [note for note in notes if note is not None and note[1].written_sha256 == sha256]

    def keep(self, path: Path, original: Original) -> None:
        """Remember the original of `path` before the file is written; raises OutputError."""
        entry = {
            "path": _resolved(path),
            "content": base64.b64encode(original.content).decode(),
            "appended": base64.b64encode(original.appended).decode(),
            "written_sha256": original.written_sha256,
        }
        data = json.dumps(entry).encode()  # in ASCII, so that a name may have any bytes
        for note in (self._content_note(path, original), self._note(path)):
            try:
                note.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(note, data)
            except (OSError, OutputError) as error:
                raise OutputError(
                    f"{path}: its text cannot be kept in {note.parent}, so it was left alone: "
                    f"{error}",
                    "Make that folder writable, or set EDGEPRISM_HOME.",
                ) from error

    def forget(self, path: Path, original: Original) -> None:
        """Forget this original of `path`, which has its content back."""
        if self.find(path) == original:
            self._note(path).unlink(missing_ok=True)
        note = self._content_note(path, original)
        note.unlink(missing_ok=True)
        with suppress(OSError):  # other files' originals are in it
            note.parent.rmdir()

    def are_empty(self) -> bool:
        """Return whether nothing is kept."""
        try:
            return not any(self._root().iterdir())
        except OSError:
            return True

    def _root(self) -> Path:
        return self._folder if self._folder is not None else data_dir() / "originals"

    def _note(self, path: Path) -> Path:
        return self._root() / f"{_short_hash(os.fsencode(_resolved(path)))}.json"

    def _contents(self, sha256: str) -> Path:
        return self._root() / "by-content" / sha256[:32]

    def _content_note(self, path: Path, original: Original) -> Path:
        """Return the place of a note that no other path or former text has."""
        former = b"\0".join([os.fsencode(_resolved(path)), original.content])
        return self._contents(original.written_sha256) / f"{_short_hash(former)}.json"


def _read(note: Path) -> tuple[Path, Original] | None:
    try:
        with open_regular(note) as file:
            entry = json.load(file)
        return Path(entry["path"]), Original(
            base64.b64decode(entry["content"]),
            base64.b64decode(entry["appended"]),
            str(entry["written_sha256"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # there is none; or it is damaged, and the file counts as somebody's


def _resolved(path: Path) -> str:
    """Return the path that a file has whatever links lead to its folder."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
