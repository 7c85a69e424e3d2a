"""What happens while a request is answered, and how engine threads tell a request's task of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from edgeprism.records import Answer, Caption


@dataclass(frozen=True)
class Piece:
    """New text of the caption of picture `index`."""

    index: int
    text: str


@dataclass(frozen=True)
class Described:
    """The caption of picture `index` is finished."""

    index: int
    caption: Caption


@dataclass(frozen=True)
class Failed:
    """Picture `index` gets no caption."""

    index: int
    error: Exception


@dataclass(frozen=True)
class Focused:
    """The reasoner has drawn from the question what to observe; "" for nothing."""

    focus: str


@dataclass(frozen=True)
class Written:
    """New text of the answer."""

    text: str


@dataclass(frozen=True)
class Answered:
    """The reasoner has answered."""

    answer: Answer


CaptionEvent = Piece | Described | Failed
Event = CaptionEvent | Focused | Written | Answered


class Channel:
    """Carries events from engine threads to one request's task, without making a thread wait.

    A task that reads slowly, because its client does, finds the pieces of a caption joined: so the
    channel never holds more than the captions themselves.
    """

    def __init__(self, on_end: Callable[[], object]) -> None:
        """`on_end` is called for each caption that has ended, before anybody reads that."""
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._events: deque[CaptionEvent] = deque()
        self._filled = asyncio.Event()

    def put(self, event: CaptionEvent) -> None:
        """Add an event; from any thread."""
        with contextlib.suppress(RuntimeError):  # the server has ended, and its loop is closed
            self._loop.call_soon_threadsafe(self._add, event)

    async def get(self) -> CaptionEvent:
        """Return the oldest event; wait for one if there is none."""
        while not self._events:
            self._filled.clear()
            await self._filled.wait()
        return self._events.popleft()

    def _add(self, event: CaptionEvent) -> None:
        if not isinstance(event, Piece):
            self._on_end()
        last = self._events[-1] if self._events else None
        if isinstance(event, Piece) and isinstance(last, Piece) and last.index == event.index:
            self._events[-1] = Piece(event.index, last.text + event.text)
        else:
            self._events.append(event)
        self._filled.set()


class TextChannel:
    """Carries text from an engine's thread to one request's task, without making it wait.

    What is not read yet is one text.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._filled = asyncio.Event()
        self._text = ""
        self._ended = False

    def put(self, text: str) -> None:
        """Add text; from any thread."""
        with contextlib.suppress(RuntimeError):  # the server has ended, and its loop is closed
            self._loop.call_soon_threadsafe(self._add, text)

    def end(self) -> None:
        """Let the texts end, after those that were put before; in the loop."""
        self._ended = True
        self._filled.set()

    def _add(self, text: str) -> None:
        self._text += text
        self._filled.set()

    async def texts(self) -> AsyncGenerator[str]:
        """Yield what was put, until the end."""
        while self._text or not self._ended:
            await self._filled.wait()
            self._filled.clear()
            text, self._text = self._text, ""
            if text:
                yield text
            if self._ended:
                self._filled.set()
