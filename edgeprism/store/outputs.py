"""What EdgePrism wrote into `.txt` sidecars, as a table of the caption store."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeprism.store.database import Database
from edgeprism.store.paths import bytes_to_path, path_to_bytes

_MOST_PLACES = 256  # the same caption may stand beside thousands of pictures


Read = Callable[[str, tuple[Any, ...]], list[tuple[Any, ...]]]
Write = Callable[[Callable[[Database], object], object], object]


class OutputTable:
    """Remembers every content with the path that it was written to, links of folders resolved.

    A content is remembered before it is written, so that a killed run leaves no file that nobody
    knows.
    """

    def __init__(self, read: Read, write: Write) -> None:
        """`read` returns the rows of a statement, `write` does its first argument."""
        self._read, self._write = read, write

    def is_written(self, path: Path, sha256: str) -> bool:
        """Return whether EdgePrism wrote this content to `path`."""
        statement = "SELECT 1 FROM outputs WHERE path = ? AND sha256 = ?"
        return bool(self._read(statement, (_place(path), sha256)))

    def is_empty(self) -> bool:
        """Return whether no content is known."""
        return not self._read("SELECT 1 FROM outputs LIMIT 1", ())

    def places(self, sha256: str, name: str) -> list[Path]:
        """Return up to 256 paths of this content, those of the file name `name` first."""
        end = os.fsencode("/" + name)
        rows = self._read(
            "SELECT path FROM outputs WHERE sha256 = ?"
            " ORDER BY substr(path, ?) = ? DESC, rowid LIMIT ?",
            (sha256, -len(end), end, _MOST_PLACES),
        )
        return [Path(bytes_to_path(row[0])) for row in rows]

    def remember(self, path: Path, sha256: str) -> None:
        """Remember a content that EdgePrism is about to write to `path`."""
        values = (_place(path), sha256)
        self._write(
            lambda database: database.execute(
                "INSERT OR IGNORE INTO outputs VALUES (?, ?)", values
            ),
            None,
        )

    def forget(self, path: Path, sha256: str) -> None:
        """Forget a content that was taken out of `path`."""
        values = (_place(path), sha256)
        self._write(
            lambda database: database.execute(
                "DELETE FROM outputs WHERE path = ? AND sha256 = ?", values
            ),
            None,
        )


def _place(path: Path) -> bytes:
    return path_to_bytes(os.path.join(os.path.realpath(path.parent), path.name))
