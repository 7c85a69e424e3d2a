"""Standard input and output as pipes of a protocol, line by line, for one event loop.

The threads here are daemons: a read that nobody ends, or a client that takes no answer, does not
keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator

_AHEAD = 16  # lines that are read before they are asked for
_CHUNK = 1 << 16
LONGEST_LINE = 1 << 20  # bytes; a request with all its texts at their limits is shorter
_LAST_WORDS_S = 2.0  # that a client may take to read the last answers


@contextlib.contextmanager
def claimed_pipes() -> Iterator[tuple[int, int]]:
    """Yield descriptors of standard input and output that nobody else has.

    Inside the block, file descriptor 0 is empty and 1 is standard error. So nothing that a library
    or a child prints gets among the answers, and no child reads the client's requests.
    """
    source, target = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    try:
        yield source, target
    finally:  # the two stay open: a thread may still wait at them
        os.dup2(source, 0)
        os.dup2(target, 1)


class Lines(threading.Thread):
    """Iterates over the lines of a descriptor, until its end or `end`."""

    def __init__(self, source: int) -> None:
        super().__init__(name="standard input", daemon=True)
        self._source = source
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._room = threading.Semaphore(_AHEAD)

    def run(self) -> None:
        """Read until the end of the input. Of a line over the limit, the rest is left out."""
        line = bytearray()
        with contextlib.suppress(OSError):
            while data := os.read(self._source, _CHUNK):
                first, *others = data.split(b"\n")
                line += first[: LONGEST_LINE - len(line)]
                for other in others:
                    self._room.acquire()
                    self._put(line.decode("utf-8", "replace"))
                    line = bytearray(other)
        self.end()

    def end(self) -> None:
        """End the iteration; from any thread."""
        self._put(None)

    def _put(self, line: str | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody iterates any more
            self._loop.call_soon_threadsafe(self._lines.put_nowait, line)

    async def __aiter__(self) -> AsyncIterator[str]:
        while (line := await self._lines.get()) is not None:
            yield line
            self._room.release()


class Writer(threading.Thread):
    """Writes texts to a descriptor; `on_broken` is called once nobody reads them any more."""

    def __init__(self, target: int, on_broken: Callable[[], object]) -> None:
        super().__init__(name="standard output", daemon=True)
        self._descriptor, self._on_broken = target, on_broken
        self._texts: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def run(self) -> None:
        """Write until `close`."""
        while (text := self._texts.get()) is not None:
            data = memoryview(text.encode())
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:
                self._on_broken()
                return

    async def write(self, text: str) -> None:
        """Write a text, after those before it."""
        self._texts.put(text)

    async def flush(self) -> None:
        """Do nothing: what is written waits for nothing."""

    def close(self) -> None:
        """Write what is left, if the client reads it."""
        self._texts.put(None)
        self.join(_LAST_WORDS_S)
