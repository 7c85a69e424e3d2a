"""A TSV file → rows, one at a time, so that only the current row is in memory.

The dialect is the one that pandas writes and reads with a tab as separator: UTF-8, with double
quotes around cells that hold a tab, a quote or a line feed. The reader reports an unreadable row
and continues after it.
"""

from __future__ import annotations

import collections
import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgeprism.errors import UsageError
from edgeprism.files.regular import open_regular

MAX_ROW_BYTES = 64 << 20
_BOM = b"\xef\xbb\xbf"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Row:
    """A row's cells by column; `offset` is the byte at which it begins, `line` counts from 1."""

    cells: dict[str, str]
    offset: int
    line: int


@dataclass(frozen=True)
class BadRow:
    """An unreadable row, and why."""

    line: int
    reason: str


class _RowTooLong(Exception):
    pass


class _BadText(Exception):
    pass


class _Lines:
    """The file's lines as text, with their offsets; it never reads more than a row's limit."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.file, self.limit = file, limit
        self.offset = self.line = 0  # offset of the next line, and number of lines read
        self._cut = False  # the rest of the last line was not read
        self.begin_row()

    def begin_row(self) -> None:
        while self._cut and (more := self.file.readline(_CHUNK)):
            self.offset += len(more)
            self._cut = not more.endswith(b"\n")
        self.row_offset, self.row_line = self.offset, self.line + 1
        self.second: tuple[int, int] | None = None  # (offset, line) of the row's second line
        self.row_bytes = 0
        self.ran_out = False  # the file ended inside the row

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.row_bytes and self.second is None:
            self.second = (self.offset, self.line)
        data = self.file.readline(self.limit - self.row_bytes + 1)
        if not data:
            self.ran_out = True
            raise StopIteration
        self.offset += len(data)
        self.line += 1
        self.row_bytes += len(data)
        if self.row_bytes > self.limit:
            self._cut = not data.endswith(b"\n")
            raise _RowTooLong
        if self.line == 1:
            data = data.removeprefix(_BOM)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _BadText from error

    def go_to_second_line(self) -> None:
        """Continue with the row's second line as a new row, because a quote was never closed."""
        if self.second is not None:
            self.offset, self.line = self.second
            self._cut = False
            self.file.seek(self.offset)


class TsvFile:
    """One file; each method opens it again, so several readers can run at the same time."""

    def __init__(self, path: Path, *, max_row_bytes: int = MAX_ROW_BYTES) -> None:
        """Read the header. Raises UsageError if it is missing, unreadable or repeats a name."""
        self.path, self.max_row_bytes = path, max_row_bytes
        with self._open() as file:
            lines = _Lines(file, max_row_bytes)
            first = next(self._parse(lines), None)
        if first is None or isinstance(first, BadRow):
            reason = "the file is empty" if first is None else first.reason
            raise UsageError(f"{path}: not a table: {reason}.", "Give a VLMEvalKit TSV file.")
        # Option columns are single capital letters; all other names are case-insensitive.
        names = [name.strip() for name in first[0]]
        self.columns = [name if len(name) == 1 else name.lower() for name in names]
        counts = collections.Counter(self.columns)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise UsageError(f"{path}: two columns are called {twice[0]!r}.", "Rename one.")

    def rows(self) -> Iterator[Row | BadRow]:
        """Yield all rows after the header; a row with another number of cells is a BadRow."""
        with self._open() as file:
            lines = _Lines(file, self.max_row_bytes)
            parsed = self._parse(lines)
            next(parsed)
            for row in parsed:
                yield row if isinstance(row, BadRow) else self._to_row(*row)

    def row_at(self, offset: int) -> Row | BadRow:
        """Return the row that begins at byte `offset`, which an earlier Row holds."""
        with self._open() as file:
            file.seek(offset)
            lines = _Lines(file, self.max_row_bytes)
            lines.offset, lines.line = offset, 1  # not line 0, where a BOM is removed
            lines.begin_row()
            row = next(self._parse(lines), BadRow(0, "the file has become shorter"))
            return row if isinstance(row, BadRow) else self._to_row(*row)

    def md5(self) -> str:
        """Return the MD5 of the whole file, which data sets publish."""
        digest = hashlib.md5(usedforsecurity=False)
        with self._open() as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def _to_row(self, cells: list[str], offset: int, line: int) -> Row | BadRow:
        if len(cells) != len(self.columns):
            return BadRow(line, f"{len(cells)} cells, the header has {len(self.columns)}")
        return Row(dict(zip(self.columns, cells, strict=True)), offset, line)

    def _parse(self, lines: _Lines) -> Iterator[tuple[list[str], int, int] | BadRow]:
        reader = csv.reader(lines, delimiter="\t")
        while True:
            lines.begin_row()
            try:
                cells = self._next_row(reader)
            except StopIteration:
                return
            except _RowTooLong:
                reason = f"holds more than {self.max_row_bytes / (1 << 20):.3g} MiB"
                if lines.second is not None:
                    reason += ", or a quote is opened and never closed"
                yield BadRow(lines.row_line, reason)
                lines.go_to_second_line()
                continue
            except _BadText:
                yield BadRow(lines.row_line, "not UTF-8 text")
                lines.go_to_second_line()
                continue
            except csv.Error as error:
                yield BadRow(lines.row_line, f"not readable: {error}")
                continue
            if lines.ran_out:
                yield BadRow(lines.row_line, "a quote is opened and never closed")
                lines.go_to_second_line()
                if lines.second is None:
                    return
            elif cells:  # blank lines are left out
                yield cells, lines.row_offset, lines.row_line

    def _next_row(self, reader: Iterator[list[str]]) -> list[str]:
        """Read a row with csv's limit of 128 KiB per cell, which is global, raised for this row."""
        before = csv.field_size_limit(self.max_row_bytes + 1)
        try:
            return next(reader)
        finally:
            csv.field_size_limit(before)

    def _open(self) -> BinaryIO:
        try:
            return open_regular(self.path)  # each method reads it anew: a pipe cannot
        except OSError as error:
            raise UsageError(
                f"{self.path}: cannot be read: {error.strerror or error}.", "Check `data`."
            ) from error
