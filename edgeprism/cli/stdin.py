"""`-`: the picture on standard input, for every command that takes pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import click

from edgeprism.errors import UsageError

STDIN = "-"
_CHUNK = 1 << 20


def check_stdin(images: Sequence[str]) -> None:
    """Raise UsageError if standard input is named as several pictures, or is a terminal."""
    if images.count(STDIN) > 1:
        raise UsageError("Standard input can hold only one picture.", "Name the others as files.")
    if STDIN in images and sys.stdin.isatty():
        raise UsageError(
            "`-` reads a picture from standard input, which is a terminal.",
            "Pipe a picture into the command, or name its file.",
        )


def stdin_as_file(images: Iterable[str]) -> list[str | IO[bytes]]:
    """Return the pictures, with the binary file of standard input in place of `-`."""
    return [sys.stdin.buffer if image == STDIN else image for image in images]


def saved_stdin() -> Path:
    """Save standard input to a file that exists until the command ends, and return its path.

    The processes that decode pictures read files by path.
    """
    import shutil
    import tempfile

    from edgeprism.picture.source import MAX_FILE_BYTES

    folder = Path(tempfile.mkdtemp(prefix="edgeprism-"))
    click.get_current_context().call_on_close(lambda: shutil.rmtree(folder, ignore_errors=True))
    path = folder / "standard-input"
    with path.open("wb") as file:
        left = MAX_FILE_BYTES + 1  # of an endless stream so much that reading refuses it
        while left and (part := sys.stdin.buffer.read(min(left, _CHUNK))):
            file.write(part)
            left -= len(part)
    return path
