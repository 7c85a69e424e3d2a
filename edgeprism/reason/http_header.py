"""Headers of HTTP answers that end before their empty line.

Python's client takes the end of the connection for the end of the header: a header that was cut
would pass for a whole one without a body.
"""

from __future__ import annotations

import http.client
from typing import Any


class HeaderCutError(http.client.HTTPException):
    """The connection ended inside the header."""

    def __init__(self) -> None:
        super().__init__("in the middle of its header")


class Response(http.client.HTTPResponse):
    """An answer whose header must be whole."""

    def begin(self) -> None:
        """Read the status line and the header. Raises HeaderCutError if it has no end."""
        lines = _Lines(self.fp)
        self.fp: Any = lines
        try:
            super().begin()
        finally:
            if self.fp is lines:  # else the answer has no body, and its file is closed already
                self.fp = lines.file
        if lines.last.rstrip(b"\r\n") or not lines.last:
            raise HeaderCutError


class _Lines:
    """A file that remembers the last line read from it."""

    def __init__(self, file: Any) -> None:
        self.file, self.last = file, b""

    def readline(self, limit: int = -1) -> bytes:
        self.last = self.file.readline(limit)
        return self.last

    def close(self) -> None:
        self.file.close()
