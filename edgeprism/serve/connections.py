"""A connection that cannot be held by a client that does nothing.

uvicorn limits the size of a request's head and closes a connection that stays idle after an answer.
It lets clients take any time for their first byte, drip a head byte by byte, or read no answer, and
it takes any number of connections. This class adds those limits.
"""

from __future__ import annotations

import asyncio
import time

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgeprism.serve.options import Limits


class GuardedConnection(H11Protocol):
    """uvicorn's connection, with time limits; `limits` is set on a subclass for each server."""

    limits = Limits()

    _timer: asyncio.TimerHandle | None = None  # until the head has arrived, or the client reads
    _idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection; where there are too many, one that waits for a request ends."""
        super().connection_made(transport)
        self._idle_since = time.monotonic()
        if len(self.connections) > self.limits.connections:
            waiting = [c for c in self.connections if isinstance(c, GuardedConnection)]
            waiting = [c for c in waiting if c.awaits_request()]
            min(waiting, key=lambda c: c._idle_since, default=self).transport.abort()
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Take data, and limit the time for the rest of a request's head."""
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """Let the client begin another request."""
        self._idle_since = time.monotonic()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also if its client has not read the last answer."""
        super().timeout_keep_alive_handler()
        self._abort_later(self.limits.write_seconds)

    def pause_writing(self) -> None:
        """Wait for a client that reads slowly, but not for ever."""
        super().pause_writing()
        self._abort_later(self.limits.write_seconds)

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        self._cancel_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._cancel_timer()
        super().connection_lost(exc)

    def awaits_request(self) -> bool:
        """Return whether no request is being received or answered."""
        return self.conn.their_state is h11.IDLE

    def _watch_head(self) -> None:
        if not self.awaits_request():
            if not self.flow.write_paused:
                self._cancel_timer()
        elif self._timer is None:
            self._abort_later(self.limits.head_seconds)

    def _abort_later(self, seconds: float) -> None:
        self._cancel_timer()
        if self.transport is not None:
            self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
