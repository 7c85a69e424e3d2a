"""Standard input, output and error as the commands need them, even closed, full or non-blocking.

- A result that cannot be written is an error: `StandardOutput` raises OutputError, which names
  the cause, and the command ends with an exit code other than 0.
- Messages are worth less than the work: what standard error does not take is dropped.
- A closed descriptor is replaced, because the next file that a program opens would get its
  number, and a library that prints would write into that file.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO, cast

from edgeprism.errors import OutputError, UsageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_INPUT, _OUTPUT, _ERROR = 0, 1, 2


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Make the three streams usable inside the block.

    They write UTF-8, unless PYTHONIOENCODING names another encoding, and replace characters that
    it lacks. A stream that another program or a test has put in place of Python's own stays.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    if os.name == "posix":
        _open_closed_descriptors()
        _replace_streams()
    else:
        _use_utf8()
    try:
        yield
    finally:
        # what is left is written here, where a failure cannot be shown any more
        with contextlib.suppress(OSError, OutputError, ValueError, AttributeError):
            sys.stdout.flush()
        sys.stdin, sys.stdout, sys.stderr = before


class StandardOutput(io.FileIO):
    """The bytes of standard output: all are written, or OutputError says why not."""

    lost = False

    def write(self, data: ReadableBuffer) -> int:
        """Write; raises OutputError, or BrokenPipeError if the reader of a pipe has left.

        After the first error it drops everything, so that no buffer is left to fail at exit.
        """
        if self.lost:
            return memoryview(data).nbytes
        try:
            return _write(self, data)
        except BrokenPipeError:
            self.lost = True
            raise
        except OSError as error:
            self.lost = True
            closed = error.errno == errno.EBADF
            why = "it is closed" if closed else error.strerror or str(error)
            raise OutputError(
                f"Standard output cannot be written: {why}.", "What was to be printed is lost."
            ) from error


class StandardError(io.FileIO):
    """The bytes of standard error; what cannot be written is dropped."""

    def write(self, data: ReadableBuffer) -> int:
        """Write or drop."""
        try:
            return _write(self, data)
        except OSError:
            return memoryview(data).nbytes


class StandardInput(io.FileIO):
    """Standard input that is closed: whoever reads it is told so."""

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Raise UsageError."""
        raise UsageError("Standard input is closed.", "Give it a file: < FILE")

    def readall(self) -> bytes:
        """Raise UsageError."""
        raise UsageError("Standard input is closed.", "Give it a file: < FILE")


def _write(raw: io.FileIO, data: ReadableBuffer) -> int:
    """Write once; wait where a non-blocking descriptor cannot take anything now."""
    while (written := io.FileIO.write(raw, data)) is None:
        import select  # not at the top: few descriptors do not wait

        poll = select.poll()
        poll.register(raw.fileno(), select.POLLOUT)
        poll.poll()
    return written


def _open_closed_descriptors() -> None:
    """Open the null device for closed ones, so that reading input and writing output fail."""
    for number, flags in ((_INPUT, os.O_WRONLY), (_OUTPUT, os.O_RDONLY), (_ERROR, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)


def _replace_streams() -> None:
    own = sys.__stdin__, sys.__stdout__, sys.__stderr__
    if sys.stdin is None:
        raw = StandardInput(_INPUT, "r", closefd=False)
        sys.stdin = io.TextIOWrapper(io.BufferedReader(raw), encoding="utf-8", errors="replace")
    if sys.stdout is None or sys.stdout is own[1]:
        if sys.stdout is not None:
            sys.stdout.flush()
        sys.stdout = _to_text(StandardOutput(_OUTPUT, "w", closefd=False), sys.stdout, "<stdout>")
    if sys.stderr is None or sys.stderr is own[2]:
        sys.stderr = _to_text(StandardError(_ERROR, "w", closefd=False), sys.stderr, "<stderr>")


def _to_text(raw: io.FileIO, before: TextIO | None, name: str) -> TextIO:
    """Return a text stream over `raw`, in the encoding of the stream that it replaces."""
    raw.name = name
    encoding, errors = _encoding(before)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=raw.isatty())


def _encoding(before: TextIO | None) -> tuple[str, str]:
    """Return encoding and error handler: those of PYTHONIOENCODING, else UTF-8."""
    if not os.environ.get("PYTHONIOENCODING") or sys.flags.ignore_environment or before is None:
        return "utf-8", "backslashreplace"
    errors = before.errors or "strict"
    # a character that the encoding lacks is no reason to fail
    return before.encoding, "backslashreplace" if errors == "strict" else errors


def _use_utf8() -> None:
    """Windows: Python's own streams know the console, so they stay."""
    for stream in (sys.stdout, sys.stderr):
        encoding, errors = _encoding(stream)
        with contextlib.suppress(AttributeError):  # a stream put in its place may lack it
            cast("io.TextIOWrapper", stream).reconfigure(encoding=encoding, errors=errors)
