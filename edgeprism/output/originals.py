"""What people had written in text files that EdgePrism replaced or continued: a way back.

A text file cannot say which of its words are EdgePrism's. So before EdgePrism changes a `.txt` that
holds somebody's text, that text is kept in the data folder, in `originals/`: one small JSON file
for each changed file, under a hash of its absolute path. `edgeprism cache clear` does not touch it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from edgeprism.errors import OutputError
from edgeprism.files.atomic import write_atomically
from edgeprism.files.home import data_dir


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
        """Return the original of the file `path`; None if EdgePrism changed nobody's text."""
        try:
            entry = json.loads(self._place(path).read_bytes())
            return Original(
                base64.b64decode(entry["content"]),
                base64.b64decode(entry["appended"]),
                str(entry["written_sha256"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None  # a damaged note says nothing, and the file counts as somebody's

    def keep(self, path: Path, original: Original) -> None:
        """Remember the original of `path` before the file is written; raises OutputError."""
        entry = {
            "path": os.fsencode(os.path.abspath(path)).decode("utf-8", "backslashreplace"),
            "content": base64.b64encode(original.content).decode(),
            "appended": base64.b64encode(original.appended).decode(),
            "written_sha256": original.written_sha256,
        }
        place = self._place(path)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, json.dumps(entry).encode())
        except (OSError, OutputError) as error:
            raise OutputError(
                f"{path}: its text cannot be kept in {place.parent}, so it was left alone: {error}",
                "Make that folder writable, or set EDGEPRISM_HOME.",
            ) from error

    def forget(self, path: Path) -> None:
        """Forget the original of `path`, which has its content back."""
        self._place(path).unlink(missing_ok=True)

    def _place(self, path: Path) -> Path:
        folder = self._folder if self._folder is not None else data_dir() / "originals"
        name = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()
        return folder / f"{name[:32]}.json"
